"""Frames of the backchannel: bytes in, proved payloads out. It knows no socket, no clock and no message.

Either end may restart at any time and leave half a frame behind. So every frame starts with a mark, everything that is
no frame is skipped, and only what a session's key seals in the expected order is a payload. Opening a session::

    node                                host
    GREET                        ->                     "I am here" (may be missing)
                                 <-     CALL            nonce of the host
    PROOF                        ->                     both nonces, the node's proof that it has the key
                                 <-     CONFIRM         the host's proof
    SEALED ...                   <->    SEALED ...      tag over the direction's key, a counter and the payload

A frame: mark (2), kind (1), length of the body (2), body, tag (16: keyed BLAKE2b of a sealed frame, else a checksum).
"""

from __future__ import annotations

import secrets
import struct
from enum import Enum
from hashlib import blake2b
from hmac import compare_digest
from typing import Literal

Side = Literal["host", "node"]

KEY_BYTES = 32
BODY_BYTES_MAX = 4096
"""Small, so that an urgent frame waits for at most one of them: about a millisecond on the slowest port."""

MARK = b"\xf5\x9a"
GREET, CALL, PROOF, CONFIRM, SEALED = range(1, 6)
_HEADER = struct.Struct(">2sBH")
_TAG_BYTES = 16
_HANDSHAKE = struct.Struct("16s16s32s")
"""All frames of the opening have one size: half of one never waits for more than the next one brings."""

FRAME_OVERHEAD_BYTES = _HEADER.size + _TAG_BYTES
PREAMBLE = bytes(BODY_BYTES_MAX + FRAME_OVERHEAD_BYTES)
"""Completes whatever frame the other end may still be waiting for, so that it sees what follows."""

_NO_NONCE = bytes(16)
_NO_PROOF = bytes(32)
_NEVER = [-1, -1]
_CONTEXT = b"pileus backchannel 2 "


class Signal(Enum):
    """What else than a payload can happen."""

    OPENED = "both ends have proved themselves"
    LOST = "the session is over"
    GREETED = "the node is there and has no session"
    REFUSED = "the other end does not have the key"


class Wire:
    """One end of a byte stream. ``reason``: why the last session was lost. ``noise``: bytes that carried no payload."""

    def __init__(self, side: Side, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self.open = False
        self.reason = ""
        self.noise = 0
        self.proved = 0
        """Frames that were genuine, over all sessions."""
        self._side: Side = side
        self._key = key
        self._unread = bytearray()
        self._replies = bytearray()
        self._nonces: tuple[bytes, bytes] | None = None
        """Of the opening under way: the host's, the node's (not known yet to the host)."""
        self._keys = (b"", b"")
        """Of the session: to seal with, to prove with."""
        self._counters = [0, 0]
        self._foreseen_at = _NEVER
        """The counters of what was foreseen: a frame, and its answer."""
        self._foreseen = self._answer = b""

    def start(self) -> None:
        """Give up the session, if there is one, and ask for a new one: the node greets, the host calls."""
        self._end("")
        self._replies += PREAMBLE
        if self._side == "node":
            self._nonces = None
            self._reply(GREET, _NO_NONCE, _NO_NONCE, _NO_PROOF)
        else:
            self._nonces = (secrets.token_bytes(16), _NO_NONCE)
            self._reply(CALL, self._nonces[0], _NO_NONCE, _NO_PROOF)

    def take_replies(self) -> bytearray:
        """Return what opens sessions and must be sent before anything else."""
        replies, self._replies = self._replies, bytearray()
        return replies

    def seal(self, payload: bytes) -> bytes:
        """Return the next frame of the session. ``payload`` has at most ``BODY_BYTES_MAX`` bytes."""
        frame = _sealed(self._keys[0], self._counters[0], frame_text(payload))
        self._counters[0] += 1
        return frame

    def foresee(self, text: bytes, answer: bytes) -> None:
        """Have ready the frame with ``text``, if it came next, and its ``answer`` (empty: none), both ``frame_text``."""
        if self.open and self._foreseen_at != self._counters:
            self._foreseen_at = self._counters.copy()
            self._foreseen = _sealed(self._keys[1], self._counters[1], text)
            self._answer = _sealed(self._keys[0], self._counters[0], answer) if answer else b""

    def take_foreseen(self, data: bytes) -> bytes | None:
        """Take ``data`` if it is what was foreseen, whole, and return the answer; None: ``receive`` it."""
        if self._foreseen_at != self._counters or self._unread or not compare_digest(data, self._foreseen):
            return None
        self._counters[1] += 1
        if self._answer:
            self._counters[0] += 1
        self.proved += 1
        return self._answer

    def receive(self, data: bytes) -> list[Signal | bytes]:
        """Return what ``data`` completes, in order."""
        self._unread += data
        found: list[Signal | bytes] = []
        while self._unread:
            was_open = self.open
            frame = self._next_frame()
            if was_open and not self.open:
                found.append(Signal.LOST)
            if frame is None:
                break
            self.proved += 1
            kind, body = frame
            if kind == SEALED:
                found.append(body)
            else:
                self.noise += len(body)
                found += self._on_handshake(kind, *_HANDSHAKE.unpack(body))
        return found

    def lose(self, reason: str) -> None:
        """Give up the session; a new one is not asked for."""
        self._end(reason)

    def clear(self) -> None:
        """Forget what was under way in either direction: the bytes come from elsewhere now."""
        self._unread.clear()
        self._replies.clear()
        self._nonces = None

    def _end(self, reason: str) -> None:
        self.open = False
        self.reason = reason
        self._keys = (b"", b"")
        self._foreseen_at = _NEVER

    def _next_frame(self) -> tuple[int, bytes] | None:
        unread = self._unread
        while True:
            if not unread.startswith(MARK):
                start = unread.find(MARK)
                if start < 0:
                    self._skip(len(unread) - unread.endswith(MARK[:1]))
                    return None
                self._skip(start)
            if len(unread) < _HEADER.size:
                return None
            _, kind, length = _HEADER.unpack_from(unread)
            if not self._expects(kind, length):
                self._skip(len(MARK))
                continue
            end = _HEADER.size + length
            if len(unread) < end + _TAG_BYTES:
                return None
            text = bytes(unread[:end])
            if compare_digest(self._tag(kind, text), unread[end : end + _TAG_BYTES]):
                del unread[: end + _TAG_BYTES]
                return kind, text[_HEADER.size :]
            self._skip(len(MARK))

    def _expects(self, kind: int, length: int) -> bool:
        # A sealed frame without a session is from an earlier one: it is not worth waiting for its end.
        if kind == SEALED:
            return self.open and 0 < length <= BODY_BYTES_MAX
        return GREET <= kind <= CONFIRM and length == _HANDSHAKE.size

    def _tag(self, kind: int, text: bytes) -> bytes:
        if kind != SEALED:
            return _checksum(text)
        tag = _seal_tag(self._keys[1], self._counters[1], text)
        self._counters[1] += 1
        return tag

    def _skip(self, count: int) -> None:
        if count > 0:
            del self._unread[:count]
            self.noise += count
            if self.open:
                self._end("something else than the next frame arrived")

    def _on_handshake(self, kind: int, host: bytes, node: bytes, proof: bytes) -> list[Signal]:
        if self._side == "node":
            if kind == CALL:
                return self._answer_call(host)
            return self._open(node, host, proof) if kind == CONFIRM else []
        if kind == GREET:
            return [*self._lose_to_new_peer(), Signal.GREETED]
        return self._open(node, host, proof) if kind == PROOF else []

    def _answer_call(self, host: bytes) -> list[Signal]:
        lost = self._lose_to_new_peer()
        node = secrets.token_bytes(16)
        self._nonces = (host, node)
        self._reply(PROOF, host, node, self._proof("node", host, node))
        return lost

    def _open(self, node: bytes, host: bytes, proof: bytes) -> list[Signal]:
        """Open the session when the other end's proof is about our own fresh nonce, and good."""
        if self._nonces is None or self._nonces[0] != host:
            return []
        if self._side == "node" and self._nonces[1] != node:
            return []
        other: Side = "host" if self._side == "node" else "node"
        if not compare_digest(self._proof(other, host, node), proof):
            return [Signal.REFUSED]
        lost = self._lose_to_new_peer()
        self._nonces = None
        if self._side == "host":
            self._reply(CONFIRM, host, node, self._proof("host", host, node))
        self._keys = (self._frame_key(self._side, host, node), self._frame_key(other, host, node))
        self._counters = [0, 0]
        self.open = True
        return [*lost, Signal.OPENED]

    def _lose_to_new_peer(self) -> list[Signal]:
        if not self.open:
            return []
        self._end("the other end started anew")
        return [Signal.LOST]

    def _proof(self, side: Side, host: bytes, node: bytes) -> bytes:
        return self._derive(b"proof of ", side, host, node)

    def _frame_key(self, side: Side, host: bytes, node: bytes) -> bytes:
        return self._derive(b"frames of ", side, host, node)

    def _derive(self, purpose: bytes, side: Side, host: bytes, node: bytes) -> bytes:
        return blake2b(_CONTEXT + purpose + side.encode() + host + node, digest_size=32, key=self._key).digest()

    def _reply(self, kind: int, host: bytes, node: bytes, proof: bytes) -> None:
        text = _HEADER.pack(MARK, kind, _HANDSHAKE.size) + _HANDSHAKE.pack(host, node, proof)
        self._replies += text + _checksum(text)


def frame_text(payload: bytes) -> bytes:
    """Return a sealed frame without its tag."""
    return _HEADER.pack(MARK, SEALED, len(payload)) + payload


def _sealed(key: bytes, counter: int, text: bytes) -> bytes:
    return text + _seal_tag(key, counter, text)


def _seal_tag(key: bytes, counter: int, text: bytes) -> bytes:
    return blake2b(counter.to_bytes(8, "big") + text, digest_size=_TAG_BYTES, key=key).digest()


def _checksum(text: bytes) -> bytes:
    return blake2b(text, digest_size=_TAG_BYTES).digest()
