"""What server and agent say to each other: msgpack frames over one mutually authenticated connection.

The agent says its revision; the server answers with the host's whole slice, then with each change. The agent reports
what is. Nothing is an order: a lost frame costs a delay, a repeated one nothing. Only what is named as gone may be
removed from a host: a server whose database is an old copy does not know what it forgot.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

PROTOCOL = 1
"""Raised when an older peer could misunderstand; both sides accept what they know."""

HEARTBEAT_S = 5.0
"""How often an agent says that it lives (reliability: fencing timeline)."""


class Message(Struct, frozen=True, tag_field="t", kw_only=True):
    """Base of all frames."""


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """Agent, first frame: what it runs, and the revision of its saved slice (0: none), which is for the log only."""

    version: str
    protocol: int
    revision: int


class Body(Struct, frozen=True, array_like=True):
    """A resource of the slice: its row's columns as the store has them, sections still as JSON text."""

    id: str
    kind: str
    name: str
    account_id: str
    account: str
    owner: str
    generation: int
    revision: int
    deleting_at: str | None
    desired: str
    assigned: str | None


class Slice(Message, frozen=True, kw_only=True, tag="slice"):
    """Server: the whole slice at ``revision``, and the ids that are known to have left it in the last day."""

    revision: int
    ids: tuple[str, ...]
    bodies: tuple[Body, ...]
    gone: tuple[str, ...] = ()


class Delta(Message, frozen=True, kw_only=True, tag="delta"):
    """Server: what changed up to ``revision``; ``gone`` left the slice."""

    revision: int
    bodies: tuple[Body, ...] = ()
    gone: tuple[str, ...] = ()


class Fact(Struct, frozen=True, array_like=True):
    """What is: the observed section of one resource (JSON text), seen while acting on ``generation``."""

    id: str
    kind: str
    generation: int
    observed: str


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """Agent: facts that changed since it last told them, numbered; repeated until acknowledged."""

    number: int
    facts: tuple[Fact, ...] = ()


class Acknowledge(Message, frozen=True, kw_only=True, tag="ack"):
    """Server: reports up to ``number`` are durable."""

    number: int


class Samples(Message, frozen=True, kw_only=True, tag="samples"):
    """Agent: counters by resource id (JSON text); the newest replaces the older, none is repeated."""

    counters: dict[str, str]


class Heartbeat(Message, frozen=True, kw_only=True, tag="beat"):
    """Agent: it lives."""


class Call(Message, frozen=True, kw_only=True, tag="call"):
    """Server: asks the host something now (a log, a console); ``verb`` is one of the agent's closed list."""

    number: int
    verb: str
    id: str
    arguments: dict[str, Any] = {}


class Chunk(Message, frozen=True, kw_only=True, tag="chunk"):
    """Either side: bytes of the call ``number``; in a call ``connect``, no bytes are the end of that direction."""

    number: int
    part: bytes


class Window(Message, frozen=True, kw_only=True, tag="window"):
    """Either side of a call ``connect``: the sender takes so many bytes more; the first says that it is open."""

    number: int
    more_bytes: int


class End(Message, frozen=True, kw_only=True, tag="end"):
    """Either side: the call is over; ``code`` and ``error`` say why when it failed."""

    number: int
    code: str = ""
    error: str = ""


Frame = Hello | Slice | Delta | Report | Acknowledge | Samples | Heartbeat | Call | Chunk | Window | End

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """Return the frame as bytes."""
    return _encoder.encode(frame)


def decode(frame: bytes) -> Frame:
    """Return the frame. Raises: msgspec.ValidationError, msgspec.DecodeError."""
    result: Frame = _decoder.decode(frame)
    return result
