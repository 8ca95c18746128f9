"""The sessions that are kept in the appliance: what they may take of its memory, and their beginning and end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pileus.node.mirror.captures import Captures, Kept
from pileus.node.mirror.model import Wanted
from pileus.node.mirror.packets import Queue
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.store import Session

MEMORY_SHARE = 0.4
"""Of what the machine has, for packets of all sessions; the rest is for itself, queues and readers."""

_MEMORY = "/proc/meminfo"


class Shelves:
    """Sessions by id; everything about them happens in the thread of ``captures``."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._queues: dict[str, Queue] = {}
        self._bytes_max = int(memory_bytes() * MEMORY_SHARE)

    def put(self, id: str, session: Session, path: Callable[[], Counts], queue: Queue | None) -> None:
        """Keep the session; ``queue``: where its packets come from, None when the path brings them."""

        def look() -> Counts:
            if queue is not None and self._queues.get(id) is queue:
                session.dropped = queue.look()
            return path()

        def do() -> None:
            self._captures.kept[id] = Kept(session, look)
            if queue is not None:
                self._queues[id] = queue
                self._captures.watch(queue.wire, queue.on_readable)

        self._captures.call(do)

    def change(self, id: str, name: str, store_bytes: int) -> None:
        """Call it otherwise, or give it other room."""

        def do() -> None:
            kept = self._captures.kept.get(id)
            if kept is not None:
                kept.session.name = name
                kept.session.ring.resize(store_bytes)

        self._captures.call(do)

    def end(self, id: str) -> None:
        """Take what still waits, and no more; what was kept can be read."""

        def do() -> None:
            kept, queue = self._captures.kept.get(id), self._queues.pop(id, None)
            if kept is not None and queue is not None:
                queue.drain()
                kept.session.dropped = queue.look()
                self._captures.forget(queue.wire)
            if kept is not None:
                kept.session.is_over = True

        self._captures.call(do)

    def remove(self, id: str) -> None:
        """Keep it no more; who reads it comes to its end."""
        self._captures.call(lambda: self._captures.kept.pop(id, None))

    def drops(self) -> dict[str, int]:
        """Return how many packets each session's queue had no room for."""

        def do() -> dict[str, int]:
            for id, queue in self._queues.items():
                self._captures.kept[id].session.dropped = queue.look()
            return {id: kept.session.dropped for id, kept in self._captures.kept.items()}

        return self._captures.call(do)

    def shares(self, sessions: Mapping[str, Wanted]) -> dict[str, int]:
        """Return how many bytes each session that is kept may have."""
        return shares({id: each.store_bytes for id, each in sessions.items() if each.to == "store"}, self._bytes_max)


def shares(asked: Mapping[str, int], bytes_max: int) -> dict[str, int]:
    """Return what each is given: what it asks for, or of what there is as much as it asks for in proportion. Pure."""
    total = sum(asked.values())
    if total <= bytes_max:
        return dict(asked)
    return {id: each * bytes_max // total for id, each in asked.items()}


def memory_bytes() -> int:
    """Return how much memory the machine has."""
    with open(_MEMORY) as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemTotal:"))
