"""The slower data path, where the kernel refuses eBPF: one packet socket, and the parser that is the eBPF program's oracle.

It counts, refuses and delivers the same; what its socket has no room for is lost on the way, as its sequence numbers show.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from typing import Any

from pileus.node.mirror import sockets, wire
from pileus.node.mirror.pcapng import INBOUND, OUTBOUND
from pileus.node.mirror.sessions import Sessions
from pileus.node.mirror.store import Copy

_TURN_FRAMES = 64
"""Then others have their turn."""

_UNIT_NS = {0: 100_000, 1: 100}
"""Of time stamps, by ERSPAN's granularity; others are no clock that we could follow."""

Owner = int | tuple[bytes, int, int]
"""A session: by its key, or a foreign one by its source, session ID and ERSPAN type."""

_II = wire.GRE_ERSPAN_1_2.to_bytes(2, "big")
_KEPT_AT, _KEPT_HEAD = 36, struct.Struct(">HIHHIHH")
"""From GRE's protocol to the end of ERSPAN's header; of type II there is less, and then the frame."""

_KEPT_BYTES_MIN = 64
_OVERHEAD_II, _OVERHEAD_III = 50, 54
_TRUNCATED = 1 << 10


class PacketPath:
    """The path between two interfaces; it lives in the thread that calls ``on_readable``, and so do ``sessions``."""

    def __init__(self, tunnel: str, sniffers: str, keep: Callable[[Owner, Copy], None]) -> None:
        """``keep`` gets what is to be kept, and whose it is. Raises: OSError."""
        self.sessions = Sessions()
        self.wire = sockets.tunnel(tunnel)
        self._keep = keep
        try:
            self._sniffers = sockets.sender(sniffers)
        except OSError:
            self.wire.close()
            raise

    def close(self) -> None:
        """Deliver no more; ``wire`` is closed by who watches it."""
        self._sniffers.close()

    def on_readable(self) -> None:
        """Take what arrived."""
        with contextlib.suppress(OSError):  # nothing left, or the NIC went
            for _ in range(_TURN_FRAMES):
                self._take(self.wire.recv(sockets.FRAME_BYTES_MAX))

    def _take(self, frame: bytes) -> None:
        taken = self.sessions.take(frame)
        if taken is None:
            return
        to, given = taken
        if to == "sniffers":
            # What the NIC has no room for is lost there, and nobody waits.
            with contextlib.suppress(OSError):
                self._sniffers.send(given)
            return
        copy = read_kept(given)
        if copy is not None:
            self._keep(owner(given), copy)


class Queue:
    """The own queue of a session that the eBPF data path lets through to be kept."""

    def __init__(self, interface: str, tests: list[sockets.Test], take: Callable[[Copy, int], Any]) -> None:
        """Raises: OSError."""
        self.wire = sockets.queue(interface, tests)
        self.dropped = 0
        self._take = take

    def on_readable(self) -> None:
        """Take what waits, as far as others may wait for that."""
        self._read(_TURN_FRAMES)

    def drain(self, limit: int = 20_000) -> None:
        """Take all that waits; what comes meanwhile only up to ``limit``."""
        while limit > 0 and self._read(_TURN_FRAMES) == _TURN_FRAMES:
            limit -= _TURN_FRAMES

    def look(self) -> int:
        """Return how many packets the queue had no room for so far."""
        self.dropped += sockets.drops(self.wire)
        return self.dropped

    def _read(self, frames: int) -> int:
        for count in range(frames):
            try:
                frame = self.wire.recv(sockets.FRAME_BYTES_MAX)
            except OSError:  # nothing left, or the NIC went
                return count
            copy = read_kept(frame)
            if copy is not None:
                self._take(copy, time.time_ns())
        return frames


def owner(frame: bytes) -> Owner:
    """Return whose frame that was taken to be kept is."""
    erspan = 2 if frame[_KEPT_AT : _KEPT_AT + 2] == _II else 3
    if erspan == 3 and frame[_OVERHEAD_III - 1] & 1:
        return int.from_bytes(frame[_OVERHEAD_III : wire.OVERHEAD_BYTES], "big") & wire.KEY_MAX
    return frame[26:30], int.from_bytes(frame[44:46], "big") & 0x3FF, erspan


def read_kept(frame: bytes) -> Copy | None:
    """Return the packet in a frame that is to be kept: the data path has checked it, to its last byte."""
    if len(frame) < _KEPT_BYTES_MIN:
        return None
    protocol, sequence, _, word, stamp, _, flags = _KEPT_HEAD.unpack_from(frame, _KEPT_AT)
    if protocol == wire.GRE_ERSPAN_1_2:
        return Copy(sequence, 0, 0, 0, bool(word & _TRUNCATED), frame[_OVERHEAD_II:])
    unit_ns = _UNIT_NS.get(flags >> 1 & 3, 0)
    start = wire.OVERHEAD_BYTES if flags & 1 else _OVERHEAD_III
    return Copy(sequence, stamp, unit_ns, OUTBOUND if flags & 8 else INBOUND, bool(word & _TRUNCATED), frame[start:])
