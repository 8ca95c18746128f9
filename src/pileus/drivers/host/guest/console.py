"""One connection to a machine's serial console. It knows no machine, only a unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pileus.drivers.host.errors import DriverError

UNREAD_BYTES_MAX = 1 << 20
"""What is kept for a slow reader; older bytes go first. Left unread in the socket they would hold up the guest."""

CONNECT_TIMEOUT_S = 5
"""A running QEMU accepts within its main loop's turn, milliseconds."""


class SocketConsole(asyncio.Protocol):
    """An open console. Made by ``open_console``."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    async def read(self) -> bytes:
        """Return what the guest printed since; waits for at least a byte. Empty when the console is gone or closed."""
        await self._arrived.wait()
        found = bytes(self._unread)
        self._unread.clear()
        if not self._gone.is_set():
            self._arrived.clear()
        return found

    async def write(self, text: bytes) -> None:
        """Type ``text``; waits while the guest reads nothing. Raises DriverError (NoConsole) when it is gone."""
        if self._transport is None or self._gone.is_set() or self._transport.is_closing():
            raise DriverError("NoConsole", "the serial console is closed; open it again")
        self._transport.write(text)
        await self._writable.wait()

    async def close(self) -> None:
        """Let go of the console; returns when the connection is down, with what was typed thrown away if unread."""
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio: the guest printed."""
        self._unread += data
        del self._unread[:-UNREAD_BYTES_MAX]
        self._arrived.set()

    def pause_writing(self) -> None:
        """asyncio: the guest does not read what is typed."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """asyncio: the guest reads again."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: QEMU ended or we closed."""
        self._gone.set()
        self._arrived.set()
        self._writable.set()


async def open_console(socket: Path, machine: str) -> SocketConsole:
    """Return the connected console. Raises DriverError (NoConsole) when nothing listens at ``socket``."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, console = await loop.create_unix_connection(SocketConsole, str(socket))
    except (OSError, TimeoutError) as exc:
        raise DriverError("NoConsole", f"machine {machine} has no serial console now; is it running?") from exc
    return console
