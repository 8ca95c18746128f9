"""One connection to a QEMU's monitor: commands with a time limit, events, descriptors. Knows no machine's meaning."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from qemu.qmp import EventListener, Message, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import ExecuteError

from pileus.drivers.host.errors import DriverError, QmpRefused

Event = Callable[[str, Mapping[str, Any]], None]


class Monitor:
    """QMP over ``path``; connects when first needed and again after a loss. ``on_event(name, fields)`` per event."""

    timeout_s = 10.0
    """For one command; QEMU answers in milliseconds unless its process is stopped or the disk hangs."""

    def __init__(self, path: Path, on_event: Event) -> None:
        self._path = path
        self._listener = _Listener(on_event)
        self._client: QMPClient | None = None
        self._socket: socket.socket | None = None
        self._connecting = asyncio.Lock()
        self._sending_fd = asyncio.Lock()

    async def execute(
        self, name: str, arguments: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        """Return QEMU's answer. Raises QmpRefused, DriverError (NoAnswer)."""
        try:
            async with asyncio.timeout(timeout_s or self.timeout_s):
                client = await self._connected()
                return await client.execute(name, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise QmpRefused(error.error_class, f"QEMU refused {name}: {error}") from error
        except (QMPError, OSError, EOFError, TimeoutError, RuntimeError) as error:
            raise DriverError("NoAnswer", f"QEMU did not answer {name}; its process may be ending") from error

    async def execute_with_fd(self, fd: int, name: str, arguments: Mapping[str, Any]) -> Any:
        """Like ``execute``, for a command that takes over the descriptor sent just before it (getfd, add-fd)."""
        async with self._sending_fd:
            await self.execute("query-status")  # connects
            assert self._socket is not None
            # White space between JSON texts is allowed; QEMU keeps the descriptor for the next command.
            socket.send_fds(self._socket, [b" "], [fd])
            return await self.execute(name, arguments)

    async def close(self) -> None:
        """Let go of the monitor, whatever state the connection is in."""
        client, self._client = self._client, None
        if client is not None:
            # RuntimeError: uvloop's word for a connection that closed while something was being written.
            with suppress(QMPError, OSError, EOFError, RuntimeError):
                await client.disconnect()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _connected(self) -> QMPClient:
        if self._client is not None and self._client.runstate is Runstate.RUNNING:
            return self._client
        async with self._connecting:
            if self._client is None or self._client.runstate is not Runstate.RUNNING:
                await self.close()
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> QMPClient:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        client = QMPClient()
        client.register_listener(self._listener)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._path))
            # A second handle on the same connection, because the client does not offer sendmsg on every event loop.
            self._socket = connection.dup()
            await client.connect(connection)
        except BaseException:
            connection.close()
            await self.close()
            raise
        return client


class _Listener(EventListener):
    """Hands events on at once instead of queueing them."""

    def __init__(self, on_event: Event) -> None:
        super().__init__()
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        self._on_event(str(event["event"]), cast(Mapping[str, Any], event.get("data", {})))
