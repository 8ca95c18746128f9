"""The sessions that are kept in the appliance: what they may take of its memory, and their beginning and end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pileus.node.mirror import sockets
from pileus.node.mirror.captures import Captures, Kept
from pileus.node.mirror.flows import FLOW_BYTES, FLOWS_MAX
from pileus.node.mirror.model import Wanted
from pileus.node.mirror.packets import Queue
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.sockets import QUEUE_BYTES_MAX
from pileus.node.mirror.store import Session

STORE_SHARE, FLOWS_SHARE, QUEUES_SHARE = 0.3, 0.06, 0.1
"""Of what the machine has, for all sessions; the rest is for itself and for readers."""

FLOWS_MIN = 32
QUEUE_BYTES_MIN = 64 << 10

_MEMORY = "/proc/meminfo"


class Room(NamedTuple):
    """What one session may have."""

    store_bytes: int = 0
    flows: int = 0
    queue_bytes: int = 0


class Shelves:
    """Sessions by id; everything about them happens in the thread of ``captures``."""

    def __init__(self, captures: Captures) -> None:
        self._captures = captures
        self._queues: dict[str, Queue] = {}
        self._memory_bytes = memory_bytes()

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

    def change(self, changes: Iterable[tuple[str, str, Room]]) -> None:
        """Call sessions (ids) otherwise, or give them other room."""

        def do() -> None:
            for id, name, room in changes:
                kept = self._captures.kept.get(id)
                if kept is not None:
                    kept.session.name = name
                    fit(kept.session, self._queues.get(id), room)

        self._captures.call(do)

    def end(self, id: str) -> None:
        """Take what still waits, and no more; what was kept can be read."""

        def do() -> None:
            kept, queue = self._captures.kept.get(id), self._queues.pop(id, None)
            if kept is not None and queue is not None:
                queue.drain()
                kept.session.dropped = queue.look()
                self._captures.forget(queue.wire)
            if kept is not None and not kept.session.is_over:
                kept.end()

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

    def rooms(self, sessions: Mapping[str, Wanted]) -> dict[str, Room]:
        """Return what each session that is kept may have."""
        asked = {id: each.store_bytes for id, each in sessions.items() if each.to == "store"}
        return rooms(asked, self._memory_bytes)


def rooms(asked: Mapping[str, int], memory_bytes: int) -> dict[str, Room]:
    """Return what each gets who asks for so many bytes of store: that, unless it is more than its fair share. Pure."""
    stores = shares(asked, int(memory_bytes * STORE_SHARE))
    count = max(1, len(asked))
    flows = int(memory_bytes * FLOWS_SHARE) // FLOW_BYTES // count
    queue_bytes = int(memory_bytes * QUEUES_SHARE) // count
    flows, queue_bytes = max(FLOWS_MIN, min(FLOWS_MAX, flows)), max(QUEUE_BYTES_MIN, min(QUEUE_BYTES_MAX, queue_bytes))
    return {id: Room(stores[id], flows, queue_bytes) for id in asked}


def shares(asked: Mapping[str, int], there: int) -> dict[str, int]:
    """Return what each gets: who asks for less than an equal part gets that, the others share what is left (max-min). Pure."""
    given = {}
    for others, id in zip(range(len(asked) - 1, -1, -1), sorted(asked, key=asked.__getitem__), strict=True):
        given[id] = min(asked[id], there // (others + 1))
        there -= given[id]
    return given


def fit(session: Session, queue: Queue | None, room: Room) -> None:
    """Let the session have this room."""
    session.ring.resize(room.store_bytes)
    session.flows.resize(room.flows)
    if queue is not None:
        sockets.resize(queue.wire, room.queue_bytes)


def memory_bytes() -> int:
    """Return how much memory the machine has."""
    with open(_MEMORY) as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemTotal:"))
