"""How the host reaches a machine's backchannel: the socket of its virtio-serial port, or its switch port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.base import FrameExchange
from pileus.node.conversation import Receiver, Transport
from pileus.node.transport import FrameTransport, SocketTransport

CONNECT_TIMEOUT_S = 5.0
FRAMES_QUEUED_MAX = 256


class Carrier(Transport, Protocol):
    """A transport that the host can end, or be deaf to for a while."""

    def pause(self, seconds: float) -> None:
        """Take nothing from the machine for a while."""

    def close(self) -> None:
        """Let go."""


class Callee(Receiver, Protocol):
    """Whom a carrier serves."""

    def begin(self) -> None:
        """The machine's end is there, or there anew."""

    def end(self) -> None:
        """The carrier is gone."""


Dial = Callable[[Callee], Awaitable[Carrier]]
"""Raises DriverError (NodeSilent) when there is nothing to reach."""


def dial_socket(socket: Path, machine: str) -> Dial:
    """Return how to reach the port whose chardev listens at ``socket``."""

    async def dial(callee: Callee) -> Carrier:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, made = await loop.create_unix_connection(lambda: SocketTransport(callee, callee.end), str(socket))
        except (OSError, TimeoutError) as exc:
            raise DriverError("NodeSilent", f"machine {machine} has no backchannel now; is it running?") from exc
        loop.call_soon(callee.begin)
        return made

    return dial


Exchange = Callable[[str], Awaitable[FrameExchange]]


def dial_port(exchange: Exchange, port: str) -> Dial:
    """Return how to reach the machine behind a port of the switch."""

    async def dial(callee: Callee) -> Carrier:
        return FrameCarrier(await exchange(port), callee)

    return dial


class FrameCarrier(FrameTransport):
    """Frames of the switch's control path, each way as fast as the switch takes them; too many are lost."""

    def __init__(self, exchange: FrameExchange, callee: Callee) -> None:
        super().__init__(self._queue, callee, callee.begin)
        self._exchange = exchange
        self._callee = callee
        self._deaf_until = 0.0
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(FRAMES_QUEUED_MAX)
        self._tasks = [asyncio.ensure_future(self._send_all()), asyncio.ensure_future(self._receive_all())]
        self.start()

    def pause(self, seconds: float) -> None:
        """Take nothing from the machine for a while; what the switch cannot keep is lost."""
        self._deaf_until = asyncio.get_running_loop().time() + seconds

    def close(self) -> None:
        """Let go."""
        self.stop()
        for task in self._tasks:
            task.cancel()

    def _queue(self, frame: bytes) -> None:
        if not self._frames.full():
            self._frames.put_nowait(frame)

    async def _send_all(self) -> None:
        try:
            while True:
                await self._exchange.send(await self._frames.get())
        except (OSError, DriverError):
            self._callee.end()

    async def _receive_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while payload := await self._exchange.receive():
                self.arrived(payload)
                if (wait_s := self._deaf_until - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
        except (OSError, DriverError):
            return
        finally:
            self._callee.end()
            await self._exchange.close()
