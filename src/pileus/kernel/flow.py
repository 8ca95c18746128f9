"""A byte stream over a connection that it shares: it holds up nobody, and neither side sends what the other cannot keep.

Each side grants the other a window of bytes and grants again as they are read (as in HTTP/2, RFC 9113 5.2). So whoever
serves the connection never waits for a reader, and pings and other streams go on while one stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from pileus.kernel.errors import PileusError, Transient

WINDOW_BYTES = 256 * 1024
"""Kept for a reader that does not read. At 2 ms round trip it carries 128 MB/s."""
PART_BYTES = 32 * 1024
"""Sent at once, so that others on the connection get their turn."""


class Duplex(Protocol):
    """Bytes both ways, each direction with an end of its own."""

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""

    async def write(self, content: bytes, /) -> None:
        """Send bytes; waits while the other side cannot take more."""

    async def finish(self) -> None:
        """End our direction; reading goes on."""


class Flow:
    """One stream. Whoever receives from the connection calls ``arrived``, ``granted`` and ``ended``."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], grant: Callable[[int], Awaitable[None]]) -> None:
        """``send`` puts bytes on the connection, none for the end of our direction; ``grant`` a grant."""
        self._send = send
        self._grant = grant
        self._inbox = bytearray()
        self._free = 0
        """Bytes that the other side may still send."""
        self._read_since = 0
        self._credit = 0
        """Bytes that we may still send."""
        self._open = False
        self._arriving = True
        self._finished = False
        self._over = False
        self._error: PileusError | None = None
        self._readable, self._writable = asyncio.Event(), asyncio.Event()

    # what comes over the connection; nothing here waits

    def arrived(self, part: bytes) -> None:
        """Bytes came; none: the other side ended its direction. Raises: Transient, the end of the stream, for too many."""
        if not self._arriving:
            return
        self._free -= len(part)
        if self._free < 0:
            error = Transient("the other side sent more than it may", code="overrun")
            self.ended(error)
            raise error
        self._inbox += part
        self._arriving = bool(part)
        self._readable.set()

    def granted(self, more_bytes: int) -> None:
        """The other side takes more."""
        self._open = True
        self._credit += max(0, more_bytes)
        self._writable.set()

    def ended(self, error: PileusError | None = None) -> None:
        """The stream is over: what came can still be read, and then says ``error``."""
        if not self._over:
            self._over, self._arriving, self._error = True, False, error
        self._readable.set()
        self._writable.set()

    # whose stream it is

    @property
    def done(self) -> bool:
        """Whether both directions ended and everything was read."""
        return self._finished and not self._arriving and not self._inbox and self._error is None

    async def start(self) -> None:
        """Let the other side send."""
        self._free += WINDOW_BYTES
        await self._grant(WINDOW_BYTES)

    async def opened(self) -> None:
        """Return when the other side has started. Raises: Transient when it ended instead."""
        while not self._open:
            self._check()
            await self._writable.wait()
            self._writable.clear()

    async def read(self) -> bytes:
        """Return what came; empty at the end. Raises: Transient when it broke."""
        while not self._inbox and self._arriving:
            self._readable.clear()
            await self._readable.wait()
        if not self._inbox:
            if self._error is not None:
                raise self._error
            return b""
        content = bytes(self._inbox)
        self._inbox.clear()
        self._read_since += len(content)
        if self._arriving and self._read_since >= WINDOW_BYTES // 2:
            more, self._read_since = self._read_since, 0
            self._free += more
            await self._grant(more)
        return content

    async def write(self, content: bytes) -> None:
        """Send bytes as the other side takes them. Raises: Transient when it is over."""
        rest = memoryview(content)
        while rest:
            self._check()
            size = min(len(rest), self._credit, PART_BYTES)
            if size == 0:
                self._writable.clear()
                await self._writable.wait()
                continue
            self._credit -= size
            await self._send(bytes(rest[:size]))
            rest = rest[size:]

    async def finish(self) -> None:
        """End our direction; over already: nothing."""
        self._finished = True
        if not self._over:
            await self._send(b"")

    def _check(self) -> None:
        if self._over:
            raise self._error or Transient("the other side ended the connection", code="ended")


async def carry(one: Duplex, other: Duplex) -> None:
    """Carry bytes both ways until both directions ended. Raises: what either raises, having stopped both."""
    tasks = [asyncio.ensure_future(_carry_to(other, one)), asyncio.ensure_future(_carry_to(one, other))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _carry_to(target: Duplex, source: Duplex) -> None:
    while content := await source.read():
        await target.write(content)
    await target.finish()
