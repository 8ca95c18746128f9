"""The two data paths of a decapsulator, alike for the role: eBPF, and where the kernel refuses it, packet by packet."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Protocol

from pileus.node.ebpf.kernel import BpfRefused
from pileus.node.mirror import sockets
from pileus.node.mirror.captures import Captures
from pileus.node.mirror.model import Wanted
from pileus.node.mirror.packets import Owner, PacketPath, Queue
from pileus.node.mirror.sessions import Counts, Sessions
from pileus.node.mirror.store import Copy
from pileus.node.mirror.xdp import XdpPath

Take = Callable[[Copy, int], None]


class Way(Protocol):
    """A data path between two NICs. ``mode``: native or generic eBPF; otherwise what the kernel said against it."""

    kind: str
    mode: str

    def queue(self, wanted: Wanted, take: Take) -> Queue | None:
        """Have the packets of the session, which is about to be put, taken. Raises: OSError."""

    def put(self, wanted: Wanted) -> None:
        """Let the session's packets through. Raises: OSError."""

    def remove(self, wanted: Wanted) -> None:
        """Let them through no more. Raises: OSError."""

    def counts(self, wanted: Wanted) -> Counts:
        """Return what was counted of the session; from every thread."""

    def refused(self) -> dict[str, int]:
        """Return the frames that were refused, by reason."""

    def close(self) -> None:
        """Let nothing through."""


class XdpWay:
    """In the kernel; what is kept comes by a queue of each session."""

    kind = "xdp"

    def __init__(self, tunnel: str, sniffers: str) -> None:
        """Raises: BpfRefused."""
        self._tunnel = tunnel
        self._path = XdpPath.open(socket.if_nametoindex(tunnel), socket.if_nametoindex(sniffers))
        self.mode: str = self._path.mode

    def queue(self, wanted: Wanted, take: Take) -> Queue:
        """Return the session's own queue, in which its packets are as soon as they are let through."""
        source, foreign = socket.inet_aton(wanted.source), wanted.foreign
        if foreign is not None:
            tests = sockets.foreign_tests(source, foreign.erspan, foreign.type)
        else:
            tests = sockets.key_tests(source, wanted.key)
        return Queue(self._tunnel, tests, take)

    def put(self, wanted: Wanted) -> None:
        """Let the session's packets through."""
        _put(self._path, wanted)

    def remove(self, wanted: Wanted) -> None:
        """Let them through no more."""
        _remove(self._path, wanted)

    def counts(self, wanted: Wanted) -> Counts:
        """Return what the program counted."""
        return self._path.counts(wanted.slot) or Counts()

    def refused(self) -> dict[str, int]:
        """Return what the program refused."""
        return _told(self._path.refused())

    def close(self) -> None:
        """Take the programs off the NICs."""
        self._path.close()


class PacketWay:
    """In Python; packets that are kept need no queue of their own."""

    kind = "packets"

    def __init__(self, tunnel: str, sniffers: str, captures: Captures, why: str) -> None:
        """Raises: OSError."""
        self.mode = why
        self._captures = captures
        self._takes: dict[Owner, Take] = {}
        self._path = PacketPath(tunnel, sniffers, self._keep)
        captures.call(lambda: captures.watch(self._path.wire, self._path.on_readable))

    def queue(self, wanted: Wanted, take: Take) -> None:
        """Remember who takes the session's packets."""
        whose = _owner(wanted)
        self._captures.call(lambda: self._takes.update({whose: take}))

    def put(self, wanted: Wanted) -> None:
        """Let the session's packets through."""
        self._captures.call(lambda: _put(self._path.sessions, wanted))

    def remove(self, wanted: Wanted) -> None:
        """Let them through no more."""

        def do() -> None:
            _remove(self._path.sessions, wanted)
            self._takes.pop(_owner(wanted), None)

        self._captures.call(do)

    def counts(self, wanted: Wanted) -> Counts:
        """Return what was counted."""
        return self._path.sessions.counts(wanted.slot) or Counts()

    def refused(self) -> dict[str, int]:
        """Return what was refused."""
        return _told(self._path.sessions.refused())

    def close(self) -> None:
        """Let go of the NICs."""

        def do() -> None:
            self._captures.forget(self._path.wire)
            self._path.close()

        self._captures.call(do)

    def _keep(self, whose: Owner, copy: Copy) -> None:
        take = self._takes.get(whose)
        if take is not None:
            take(copy, time.time_ns())


def _owner(wanted: Wanted) -> Owner:
    return wanted.key if wanted.foreign is None else (socket.inet_aton(wanted.source), *wanted.foreign)


def _put(path: XdpPath | Sessions, wanted: Wanted) -> None:
    path.put(wanted.slot, wanted.key, wanted.source, "store" if wanted.to == "store" else "sniffers")
    if wanted.foreign is not None:
        path.put_foreign(wanted.source, *wanted.foreign, wanted.key)


def _remove(path: XdpPath | Sessions, wanted: Wanted) -> None:
    if wanted.foreign is not None:
        path.remove_foreign(wanted.source, *wanted.foreign)
    path.remove(wanted.slot)


def _told(refused: dict[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in refused.items() if count}


def open_way(tunnel: str, sniffers: str, captures: Captures, can_xdp: bool) -> Way:
    """Return the fastest path that the kernel lets us have. Raises: OSError."""
    why = "it was not asked for"
    if can_xdp:
        try:
            return XdpWay(tunnel, sniffers)
        except BpfRefused as refused:
            why = str(refused)[:500]
    return PacketWay(tunnel, sniffers, captures, why)
