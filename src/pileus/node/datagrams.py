"""A byte stream in both directions over frames that may be lost, doubled or reordered. Pure: time is an argument.

Each end has a number of its own, new at each start. Two ends are a pair when each has seen the other use its number;
then both streams begin at 0. Frames of an earlier pair name a number that is no more, and are dropped.

A frame: sender's number (4), receiver's number (4, 0: unknown), segment (4), segments received (4), length (2), bytes.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from dataclasses import dataclass

FRAME_BYTES_MAX = 1400
_HEADER = struct.Struct(">IIIIH")
SEGMENT_BYTES_MAX = FRAME_BYTES_MAX - _HEADER.size

WINDOW_MAX = 64
"""Segments under way, and kept while one before them is missing: at most 90 KB of memory per end."""

RETRY_S_MIN, RETRY_S_MAX = 0.05, 2.0
HELLO_S_MIN, HELLO_S_MAX = 0.5, 5.0
UNSENT_BYTES_MAX = 32 << 10
_LOSS_SIGNS = 3
"""Frames that acknowledge nothing new before the next segment counts as lost. Source: RFC 5681, fast retransmit."""


@dataclass(slots=True)
class _Segment:
    number: int
    body: bytes
    sent_at: float = 0.0
    tries: int = 0


class Datagrams:
    """One end. ``paired`` changes with ``pairings``, which counts them: whatever is above starts anew then."""

    def __init__(self) -> None:
        self.pairings = 0
        self._own = secrets.randbelow(2**32 - 1) + 1
        self._peer = 0
        self._former: deque[int] = deque(maxlen=16)
        """Peers that were; a frame of theirs that arrives late is no restart."""
        self._hello_to = 0
        self._hello_at = 0.0
        self._hello_every_s = HELLO_S_MIN
        self._owes_answer = False
        self._start()

    @property
    def paired(self) -> bool:
        """Whether the other end is known; nothing can be sent before."""
        return self._peer != 0

    def room(self) -> int:
        """Return how many bytes may be written now."""
        return max(0, UNSENT_BYTES_MAX - len(self._unsent)) if self.paired else 0

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        self._unsent += data

    def receive(self, frame: bytes, now: float) -> bytes:
        """Return the bytes that ``frame`` brings in order. When ``pairings`` changed they are of the new pair."""
        if len(frame) < _HEADER.size:
            return b""
        sender, receiver, number, received, length = _HEADER.unpack_from(frame)
        body = frame[_HEADER.size : _HEADER.size + length]
        if sender in (0, self._own, *self._former) or len(body) != length:
            return b""
        if receiver != self._own:
            self._hello_to = sender
            return b""
        if sender != self._peer:
            self._former.append(self._peer)
            self._peer = sender
            self.pairings += 1
            self._start()
        self._on_received(received, bool(body), now)
        return self._on_segment(number, body) if body else b""

    def outgoing(self, now: float) -> list[bytes]:
        """Return the frames to send now."""
        if not self.paired:
            return self._hellos(now)
        frames = [self._frame(segment, now) for segment in self._due(now)]
        if not frames and self._owes_answer:
            frames = [self._header(self._next_number, 0)]
        if frames:
            self._owes_answer = False
        return frames + self._hellos(now)

    def next_at(self) -> float | None:
        """Return when ``outgoing`` may have something although nothing arrives; None: never."""
        if not self.paired:
            return self._hello_at
        return self._under_way[0].sent_at + self._retry_s if self._under_way else None

    def _start(self) -> None:
        self._unsent = bytearray()
        self._next_number = 0
        self._under_way: deque[_Segment] = deque()
        self._front_lost = False
        """The oldest segment under way is to be sent again at once."""
        self._recover = 0
        """Until this segment is received, whatever is the oldest under way is a hole. Source: RFC 6582."""
        self._window = 8.0
        self._signs = 0
        self._round_trip_s = 0.0
        self._retry_s = 0.2
        self._expected = 0
        self._ahead: dict[int, bytes] = {}
        # The other end learns from an empty frame that we know its number.
        self._owes_answer = True

    def _hellos(self, now: float) -> list[bytes]:
        """Tell an end that does not know us, or whom we do not know, our number; rarely."""
        if self._hello_to:
            to, self._hello_to = self._hello_to, 0
            return [_HEADER.pack(self._own, to, 0, 0, 0)]
        if self.paired or now < self._hello_at:
            return []
        self._hello_at = now + self._hello_every_s
        self._hello_every_s = min(HELLO_S_MAX, self._hello_every_s * 2)
        return [_HEADER.pack(self._own, 0, 0, 0, 0)]

    def _on_received(self, received: int, has_body: bool, now: float) -> None:
        if received > self._next_number:
            return
        if not self._under_way or self._under_way[0].number >= received:
            self._signs += int(bool(self._under_way) and not has_body)
            if self._signs == _LOSS_SIGNS:
                self._lose_front(max(2.0, self._window / 2))
            return
        while self._under_way and self._under_way[0].number < received:
            segment = self._under_way.popleft()
            if segment.tries == 1:
                self._measure(now - segment.sent_at)
        self._signs = 0
        self._window = min(float(WINDOW_MAX), self._window + 1)
        self._front_lost = bool(self._under_way) and received < self._recover

    def _lose_front(self, window: float) -> None:
        self._window = window
        self._recover = self._next_number
        self._front_lost = True

    def _measure(self, took_s: float) -> None:
        self._round_trip_s = took_s if not self._round_trip_s else 0.875 * self._round_trip_s + 0.125 * took_s
        self._retry_s = min(RETRY_S_MAX, max(RETRY_S_MIN, 3 * self._round_trip_s))

    def _on_segment(self, number: int, body: bytes) -> bytes:
        self._owes_answer = True
        if self._expected <= number < self._expected + WINDOW_MAX:
            self._ahead[number] = body
        out = bytearray()
        while self._expected in self._ahead:
            out += self._ahead.pop(self._expected)
            self._expected += 1
        return bytes(out)

    def _due(self, now: float) -> list[_Segment]:
        if self._under_way and now >= self._under_way[0].sent_at + self._retry_s:
            # Nothing came back: go on more slowly.
            self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)
            self._lose_front(2.0)
        due = [self._under_way[0]] if self._front_lost else []
        self._front_lost = False
        while self._unsent and len(self._under_way) < int(self._window):
            body = bytes(self._unsent[:SEGMENT_BYTES_MAX])
            del self._unsent[: len(body)]
            segment = _Segment(self._next_number, body)
            self._next_number += 1
            self._under_way.append(segment)
            due.append(segment)
        return due

    def _frame(self, segment: _Segment, now: float) -> bytes:
        segment.sent_at = now
        segment.tries += 1
        return self._header(segment.number, len(segment.body)) + segment.body

    def _header(self, number: int, length: int) -> bytes:
        return _HEADER.pack(self._own, self._peer, number, self._expected, length)
