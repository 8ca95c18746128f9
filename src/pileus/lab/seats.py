"""What the processes of a lab tell each other: one JSON line each, over the pipes of who started them.

A process of the lab ends when its standard input does, so that none outlives the one that started it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TypeVar

import msgspec
from msgspec import Struct

LINE_BYTES_MAX = 64 * 2**20

T = TypeVar("T", bound=Struct)


class Seat(Struct, frozen=True, kw_only=True):
    """A host that is known to the server, and how its agent gets in; ``token`` is empty when it has a certificate."""

    host: str
    name: str
    token: str = ""
    tunnel_address: str = ""


class Opened(Struct, frozen=True, kw_only=True):
    """Server: it answers and has all hosts. ``error`` says instead why it does not."""

    url: str = ""
    seats: tuple[Seat, ...] = ()
    error: str = ""


class Ready(Struct, frozen=True, kw_only=True):
    """Server: every host and pool is as wished."""

    hosts: int


class Order(Struct, frozen=True, kw_only=True):
    """To a process of hosts: the agents it shall run."""

    url: str
    folder: str
    seats: tuple[Seat, ...]
    instant: bool = False


class Attached(Struct, frozen=True, kw_only=True):
    """From a process of hosts: how many of its agents have their slice."""

    count: int


def tell(message: Struct) -> None:
    """Write a line to who started this process; nothing when that one is gone."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        return


def read(line: bytes, type: type[T]) -> T:
    """Return the message of a line. Raises: msgspec.DecodeError, which an empty line is too."""
    return msgspec.json.decode(line, type=type)


async def lifeline() -> asyncio.StreamReader:
    """Return standard input as a stream; its end means that this process shall end."""
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader
