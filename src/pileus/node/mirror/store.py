"""What is kept of one session: its packets, in a ring as pcapng, and its flows. No sockets, no clock: pure.

A reader has its own place in the ring and nothing else: one that is slow loses what went meanwhile, and nobody waits for it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pileus.node.mirror import pcapng
from pileus.node.mirror.flows import Flows, original_bytes
from pileus.node.mirror.sessions import Counts

LATE_NS = 1_000_000_000
"""A packet that seems to have been longer on its way tells that one of the two clocks was set: they are compared anew."""

_PIECE_BYTES = 64 << 10
_STAMPS = 1 << 32


class Copy(NamedTuple):
    """A packet as it arrived from its session's source."""

    sequence: int
    stamp: int
    """The sender's clock, 32 bits."""
    unit_ns: int
    """Of the stamp; 0: there is none."""
    direction: int
    """As in pcapng."""
    truncated: bool
    frame: bytes


class SenderClock:
    """Turns stamps of a sender whose clock began anywhere and wraps (after 429 s, in units of 100 ns) into Unix time."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        """What the sender's clock, unwrapped, is behind ours."""

    def at_ns(self, stamp: int, unit_ns: int, arrived_ns: int) -> int:
        """Return when the packet was copied, Unix nanoseconds: never after it arrived."""
        if unit_ns == 0:
            return arrived_ns
        sent, period = stamp * unit_ns, unit_ns * _STAMPS
        if self._offset_ns is None:
            self._offset_ns = arrived_ns - sent
        around = arrived_ns - self._offset_ns
        at_ns = sent + (around - sent + period // 2) // period * period + self._offset_ns
        if not 0 <= arrived_ns - at_ns <= LATE_NS:
            self._offset_ns += arrived_ns - at_ns
            at_ns = arrived_ns
        return at_ns


class _Piece:
    __slots__ = ("count", "data", "first")

    def __init__(self, first: int) -> None:
        self.first, self.count, self.data = first, 0, bytearray()


class Place:
    """Where a reader is in a ring. ``missed``: packets that went before it read them."""

    __slots__ = ("missed", "number", "offset", "piece")

    def __init__(self, number: int, piece: int, offset: int) -> None:
        self.number, self.piece, self.offset, self.missed = number, piece, offset, 0


class Ring:
    """Blocks of packets, at most ``bytes_max`` of them; the oldest go, some at a time. ``count``: all there ever were."""

    def __init__(self, bytes_max: int) -> None:
        self.count = 0
        self._bytes_max = bytes_max
        self._bytes = 0
        self._gone = 0
        self._pieces = deque([_Piece(0)])

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._bytes

    @property
    def held(self) -> int:
        """Packets that are held."""
        return self.count - self._pieces[0].first

    def resize(self, bytes_max: int) -> None:
        """Hold at most so much from now on."""
        self._bytes_max = bytes_max
        self._shrink()

    def add(self, block: bytes) -> None:
        """Hold one more packet."""
        piece = self._pieces[-1]
        if piece.count and len(piece.data) + len(block) > min(_PIECE_BYTES, self._bytes_max // 8):
            piece = _Piece(self.count)
            self._pieces.append(piece)
        piece.data += block
        piece.count += 1
        self.count += 1
        self._bytes += len(block)
        if self._bytes > self._bytes_max:
            self._shrink()

    def start(self) -> Place:
        """Return the place of a reader that reads everything; what is gone already it has missed."""
        return Place(0, -1, 0)

    def end(self) -> Place:
        """Return the place of a reader that reads what comes."""
        return Place(self.count, self._gone + len(self._pieces) - 1, len(self._pieces[-1].data))

    def read(self, place: Place) -> bytes:
        """Return the next whole blocks, about 64 KiB at most, and move the place; empty at the end."""
        if place.piece < self._gone:
            place.missed += self._pieces[0].first - place.number
            place.number, place.piece, place.offset = self._pieces[0].first, self._gone, 0
        data = b""
        while not data and place.piece < self._gone + len(self._pieces):
            piece = self._pieces[place.piece - self._gone]
            data = bytes(memoryview(piece.data)[place.offset :])
            place.number = piece.first + piece.count
            place.offset = len(piece.data)
            if piece is self._pieces[-1]:
                break
            place.piece, place.offset = place.piece + 1, 0
        return data

    def _shrink(self) -> None:
        while self._bytes > self._bytes_max and len(self._pieces) > 1:
            self._bytes -= len(self._pieces.popleft().data)
            self._gone += 1


class Numbers(NamedTuple):
    """How complete a session is at one moment; ``received`` = kept + dropped, sent = received + lost."""

    received: int = 0
    lost: int = 0
    dropped: int = 0


class Session:
    """One session that is kept. ``dropped``: packets that there was no time to take, by its own queue's count.

    ``before``: what an earlier program received, and kept, of it.
    """

    def __init__(self, name: str, bytes_max: int, is_foreign: bool = False) -> None:
        self.name = name
        self.ring = Ring(bytes_max)
        self.flows = Flows()
        self.dropped = self.before = 0
        self.is_over = False
        self._clock = SenderClock()
        self._first = 0 if not is_foreign else -1
        self._highest = -1

    def take(self, copy: Copy, arrived_ns: int) -> None:
        """Keep one packet, unless the session is over."""
        if self.is_over:
            return
        frame = copy.frame
        at_ns = self._clock.at_ns(copy.stamp, copy.unit_ns, arrived_ns)
        original = original_bytes(frame) if copy.truncated else len(frame)
        self.ring.add(pcapng.packet(at_ns, frame, original, copy.direction))
        self.flows.add(frame, at_ns, original)
        if self._first < 0:
            self._first = copy.sequence
        self._highest = max(self._highest, copy.sequence)

    def numbers(self, path: Counts) -> Numbers:
        """Return how complete it is; what waits in its queue counts as not yet arrived."""
        dropped = self.dropped + self.before
        received = self.ring.count + dropped
        if received == 0:
            return Numbers()
        highest = max(self._highest, path.highest if path.received == received else 0)
        return Numbers(received, max(0, highest - max(0, self._first) + 1 - received), dropped)


class Capture:
    """A reader's capture as pcapng: ``head`` first, then what ``read`` gives, and ``statistics`` last and in between."""

    def __init__(self, session: Session, path: Counts, start_ns: int, from_start: bool) -> None:
        self.session = session
        self.place = session.ring.start() if from_start else session.ring.end()
        self._from = self.place.number
        self._before = Numbers() if from_start else session.numbers(path)
        self._start_ns = start_ns

    def head(self) -> bytes:
        """Return the blocks that a capture begins with."""
        return pcapng.section("Pileus") + pcapng.interface(self.session.name, "mirrored packets")

    def read(self) -> bytes:
        """Return the next packets; empty when there are none now."""
        return self.session.ring.read(self.place)

    def statistics(self, path: Counts, now_ns: int) -> pcapng.Statistics:
        """Return how complete the capture is so far."""
        now = self.session.numbers(path)
        dropped = now.dropped - self._before.dropped
        delivered = self.place.number - self._from - self.place.missed
        missed = self.place.missed + dropped
        lost = max(0, now.lost - self._before.lost)
        whole = delivered + missed + lost
        comment = f"{delivered} of {whole} packets that were sent to it; {lost} lost on the way, {missed} not kept"
        return pcapng.Statistics(now_ns, self._start_ns, delivered + missed, lost, missed, delivered, comment)
