"""Messages and streams over one wire. Pure: bytes in, events out; bytes out when asked for them.

Messages arrive whole and in order, and go before streams, so that no stream delays a configuration. A stream's sender
may have no more under way than the receiver granted. Only the host opens streams.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from pileus.node.wire import BODY_BYTES_MAX, Side, Signal, Wire, frame_text

MESSAGE_BYTES_MAX = (16 << 20) + (64 << 10)
"""A payload of 16 MiB, and what is said of it."""

WINDOW_BYTES = 256 << 10
"""What a stream's sender may have under way: 20 ms at 12 MB/s, more than a virtio-serial port does."""

STREAMS_MAX = 64
REASON_BYTES_MAX = 512
UNSENT_MESSAGES_BYTES_MAX = 2 * MESSAGE_BYTES_MAX

PART, LAST, OPEN, OPENED, CHUNK, GRANT, FINISH, CLOSE, PING, PONG = range(1, 11)
_STREAM = struct.Struct(">BI")
_COUNT = struct.Struct(">I")
_PING_PAYLOAD, _PONG_PAYLOAD = bytes((PING,)), bytes((PONG,))
_PING_TEXT, _PONG_TEXT = frame_text(_PING_PAYLOAD), frame_text(_PONG_PAYLOAD)
_PART_BYTES = BODY_BYTES_MAX - 1
_CHUNK_BYTES = BODY_BYTES_MAX - _STREAM.size


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message arrived."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Ponged:
    """The node answers a ping (only a host gets this; the node's session answers by itself)."""

    number: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The host asks for a stream (only a node gets this)."""

    stream: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The node made the stream's connection."""

    stream: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes of a stream; ``grant`` them back when they are consumed."""

    stream: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Drained:
    """More of the stream's bytes may be taken up now than before."""

    stream: int


@dataclass(frozen=True, slots=True)
class Finished:
    """No more bytes will come."""

    stream: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream is over; ``reason`` is empty, or says why its connection failed."""

    stream: int
    reason: str


Event = Signal | Message | Ponged | Asked | Accepted | Arrived | Drained | Finished | Closed


class _Flow:
    """One stream. ``credit``: what we may send; ``granted``: what the other end may send; ``owed``: to grant next."""

    __slots__ = ("credit", "ending", "granted", "owed", "unsent")

    def __init__(self) -> None:
        self.credit = WINDOW_BYTES
        self.granted = WINDOW_BYTES
        self.owed = 0
        self.unsent = bytearray()
        self.ending = 0
        """FINISH or CLOSE once that shall follow the unsent bytes; -FINISH when it was said."""


class Session:
    """One end of a conversation. ``noise`` counts bytes that the other end had no business to send."""

    def __init__(self, side: Side, key: bytes, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.wire = Wire(side, key)
        self._side = side
        self._message_bytes_max = message_bytes_max
        self.opens = 0
        """How many sessions there were: a stream's number means something in one of them."""
        self.offence = ""
        """What the other end, proved as it is, said that it never should; who minds it empties it."""
        self._noise = 0
        self._reset()

    @property
    def open(self) -> bool:
        """Whether both ends have proved themselves."""
        return self.wire.open

    def start(self) -> None:
        """Give up the session, if there is one, and ask for a new one."""
        self.wire.start()
        self._reset()

    def drop(self, reason: str) -> None:
        """Give up the session and forget what was under way; a new one is not asked for."""
        self.wire.lose(reason)
        self.wire.clear()
        self._reset()

    def take_noise(self) -> int:
        """Return the noise since the last call."""
        noise = self._noise + self.wire.noise
        self._noise = self.wire.noise = 0
        return noise

    def foresee(self) -> None:
        """Have the next ping's answer ready, or expect the answer; ``take_foreseen`` is the short way for both."""
        if self._side == "host":
            if self._pings:
                self.wire.foresee(_PONG_TEXT, b"")
        elif not self._flows:
            self.wire.foresee(_PING_TEXT, _PONG_TEXT)

    def receive(self, data: bytes) -> list[Event]:
        """Return what ``data`` completes, in order. After ``Signal.LOST`` no stream and no message is left."""
        events: list[Event] = []
        for found in self.wire.receive(data):
            if isinstance(found, bytes):
                # A payload behind the one for which the session was given up.
                events += self._on_payload(found) if self.wire.open else ()
            else:
                if found in (Signal.OPENED, Signal.LOST):
                    self._reset()
                    self.opens += found is Signal.OPENED
                events.append(found)
        return events

    def send(self, message: bytes, payload: bytes = b"") -> None:
        """Queue a message, ``payload`` being its end. Raises: ValueError when it is too long, or too much is queued."""
        length = len(message) + len(payload)
        queued = sum(len(one) for one, _ in self._messages)
        if length > MESSAGE_BYTES_MAX or queued + length > UNSENT_MESSAGES_BYTES_MAX:
            raise ValueError(f"a message of {length} bytes is too much")
        if length <= _PART_BYTES:
            message, payload = message + payload, b""
        self._messages.append((memoryview(message), LAST if not payload else PART))
        if payload:
            # A long one is not copied.
            self._messages.append((memoryview(payload), LAST))

    def ping(self, number: int) -> None:
        """Queue a ping. Pings are answered in order, so ``number`` stays here."""
        self._pings.append(number)
        self._urgent.append(_PING_PAYLOAD)

    def ponged(self) -> int:
        """Return the number of the ping that is answered now; 0 when there is none."""
        return self._pings.popleft() if self._pings else 0

    def ask(self, body: bytes) -> int:
        """Ask for a stream and return its number. Raises: ValueError when there are too many."""
        if len(self._flows) >= STREAMS_MAX:
            raise ValueError(f"a node has at most {STREAMS_MAX} streams at a time")
        self._last_stream += 1
        self._add(self._last_stream)
        self._urgent.append(_STREAM.pack(OPEN, self._last_stream) + body)
        return self._last_stream

    def accept(self, stream: int) -> None:
        """Say that the stream's connection is made."""
        self._urgent.append(_STREAM.pack(OPENED, stream))

    def refuse(self, stream: int, reason: str) -> None:
        """End the stream at once, unsent bytes and all."""
        if self._drop(stream):
            words = reason.encode(errors="replace")[:REASON_BYTES_MAX]
            self._urgent.append(_STREAM.pack(CLOSE, stream) + words)

    def write(self, stream: int, data: bytes) -> None:
        """Queue bytes of a stream; wait while ``unsent`` is much."""
        flow = self._flows.get(stream)
        if flow is not None and not flow.ending:
            flow.unsent += data

    def unsent(self, stream: int) -> int:
        """Return how many bytes of the stream wait here."""
        flow = self._flows.get(stream)
        return 0 if flow is None else len(flow.unsent)

    def finish(self, stream: int) -> None:
        """Say, after what is unsent, that no more bytes come."""
        flow = self._flows.get(stream)
        if flow is not None and not flow.ending:
            flow.ending = FINISH

    def close(self, stream: int) -> None:
        """End the stream after what is unsent."""
        flow = self._flows.get(stream)
        if flow is not None:
            flow.ending = CLOSE

    def grant(self, stream: int, count: int) -> None:
        """Let the other end send ``count`` bytes more."""
        flow = self._flows.get(stream)
        if flow is None:
            return
        flow.owed += count
        if flow.owed >= WINDOW_BYTES // 4:
            self._urgent.append(_STREAM.pack(GRANT, stream) + _COUNT.pack(flow.owed))
            flow.granted += flow.owed
            flow.owed = 0

    def outgoing(self, limit: int) -> bytes:
        """Return about ``limit`` bytes to send now, the most urgent first; empty when there is nothing to send."""
        out = self.wire.take_replies()
        while self.wire.open and len(out) < limit:
            payload = self._next_payload() if self._urgent or self._messages or self._turns else None
            if payload is None:
                break
            out += self.wire.seal(payload)
        return bytes(out)

    def _reset(self) -> None:
        self._urgent: deque[bytes] = deque()
        self._pings: deque[int] = deque()
        self._messages: deque[tuple[memoryview, int]] = deque()
        """What is unsent, and what the last part of it is."""
        self._partial = bytearray()
        self._flows: dict[int, _Flow] = {}
        self._turns: deque[int] = deque()
        self._last_stream = 0

    def _next_payload(self) -> bytes | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._messages:
            rest, last = self._messages[0]
            if len(rest) <= _PART_BYTES:
                self._messages.popleft()
                return bytes((last,)) + rest
            self._messages[0] = rest[_PART_BYTES:], last
            return bytes((PART,)) + rest[:_PART_BYTES]
        for _ in range(len(self._turns)):
            stream = self._turns[0]
            self._turns.rotate(-1)
            payload = self._next_chunk(stream, self._flows[stream])
            if payload is not None:
                return payload
        return None

    def _next_chunk(self, stream: int, flow: _Flow) -> bytes | None:
        count = min(len(flow.unsent), flow.credit, _CHUNK_BYTES)
        if count:
            body = bytes(flow.unsent[:count])
            del flow.unsent[:count]
            flow.credit -= count
            return _STREAM.pack(CHUNK, stream) + body
        if flow.unsent or not flow.ending:
            return None
        if flow.ending == CLOSE:
            self._drop(stream)
            return _STREAM.pack(CLOSE, stream)
        if flow.ending == FINISH:
            flow.ending = -FINISH
            return _STREAM.pack(FINISH, stream)
        return None

    def _add(self, stream: int) -> None:
        self._flows[stream] = _Flow()
        self._turns.append(stream)

    def _drop(self, stream: int) -> bool:
        if self._flows.pop(stream, None) is None:
            return False
        self._turns.remove(stream)
        return True

    def _on_payload(self, payload: bytes) -> list[Event]:
        kind = payload[0]
        if kind in (PART, LAST):
            return self._on_part(payload)
        if kind == (PING if self._side == "node" else PONG) and len(payload) == 1:
            return self._on_ping()
        if not OPEN <= kind <= CLOSE or len(payload) < _STREAM.size:
            return self._lose("a frame of an unknown kind")
        stream, body = _STREAM.unpack_from(payload)[1], payload[_STREAM.size :]
        if kind == OPEN:
            return self._on_open(stream, body)
        flow = self._flows.get(stream)
        if flow is None or kind != CHUNK:
            self._noise += len(payload)
        # Without a flow: closed here, and the other end does not know yet.
        return [] if flow is None else self._on_flow(kind, stream, flow, body)

    def _on_part(self, payload: bytes) -> list[Event]:
        if len(self._partial) + len(payload) - 1 > self._message_bytes_max:
            return self._lose("a message that is too long")
        self._partial += payload[1:]
        if payload[0] == PART:
            return []
        body, self._partial = bytes(self._partial), bytearray()
        return [Message(body)]

    def _on_ping(self) -> list[Event]:
        if self._side == "host":
            return [Ponged(self.ponged())]
        self._urgent.append(_PONG_PAYLOAD)
        return []

    def _on_open(self, stream: int, body: bytes) -> list[Event]:
        if self._side == "host" or stream <= self._last_stream or len(self._flows) >= STREAMS_MAX:
            return self._lose("a stream that may not be")
        self._last_stream = stream
        self._add(stream)
        return [Asked(stream, body)]

    def _on_flow(self, kind: int, stream: int, flow: _Flow, body: bytes) -> list[Event]:
        if kind == CHUNK:
            if len(body) > flow.granted:
                return self._lose("more of a stream than was granted")
            flow.granted -= len(body)
            if not body:
                self._noise += _STREAM.size
            return [Arrived(stream, body)] if body else []
        if kind == GRANT:
            if len(body) != _COUNT.size or flow.credit + _COUNT.unpack(body)[0] > WINDOW_BYTES:
                return self._lose("a grant that may not be")
            flow.credit += _COUNT.unpack(body)[0]
            return [Drained(stream)]
        if kind == CLOSE:
            self._drop(stream)
            return [Closed(stream, body[:REASON_BYTES_MAX].decode(errors="replace"))]
        return [Accepted(stream) if kind == OPENED else Finished(stream)]

    def _lose(self, reason: str) -> list[Event]:
        self.offence = reason
        self.wire.lose(reason)
        self._reset()
        return [Signal.LOST]
