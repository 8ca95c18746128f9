"""A console that nobody reads, or a guest that reads nothing, is its own trouble and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketState

from pileus.agent.calls import TYPED_MAX
from pileus.drivers.host.guest.fake import FakeConsole
from pileus.kernel.errors import Transient
from pileus.server.agents import UNREAD_MAX, CallStream
from pileus.server.streams import GOING_AWAY, SEND_S, close, pump_console
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Cloud, str, CallStream]]:
    """Give a cloud, the id of the VM web in it, and that VM's console."""
    async with cloud() as world:
        await world.create("tenancy.account", "acme")
        vm = await world.create("compute.vm", "web", "acme", nics=[])
        await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
        (host,) = world.hosts
        yield world, vm["id"], await world.servers[0].agents.console(host, vm["id"])


async def works(world: Cloud) -> None:
    """The host still makes machines, and is heard."""
    await world.create("compute.vm", "other", "acme", nics=[])
    await world.until(lambda: world.is_ready("compute.vm", "other", "acme"))
    assert await world.is_ready("infra.host", "host0")


def test_what_is_typed_arrives_and_what_is_printed_too() -> None:
    async def main() -> None:
        async with opened() as (world, vm, console):
            (host,) = world.hosts.values()
            await console.write(b"ls\n")
            await world.until(lambda: _typed(world, vm, b"ls\n"))
            host.guests.print(vm, b"bin\n")
            assert await console.read() == b"bin\n"
            await console.close()
            await world.until(lambda: _closed(world, vm))

    run(main)


def test_a_console_that_nobody_reads_ends_and_its_host_goes_on() -> None:
    async def main() -> None:
        async with opened() as (world, vm, console):
            (host,) = world.hosts.values()
            await world.until(lambda: _open(world, vm))
            for _ in range(UNREAD_MAX + 10):
                host.guests.print(vm, b"y\n")
                await asyncio.sleep(0.01)
            await works(world)
            await world.until(lambda: _closed(world, vm))
            with pytest.raises(Transient, match="not read"):
                await _read_all(console)
            assert await console.read() == b""

    run(main)


def test_a_guest_that_reads_nothing_loses_its_console_and_its_host_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(console: FakeConsole, text: bytes) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeConsole, "write", stuck)

    async def main() -> None:
        async with opened() as (world, vm, console):
            await world.until(lambda: _open(world, vm))
            await console.write(b"x")
            await works(world)
            for _ in range(TYPED_MAX + 1):
                await console.write(b"x")
            with pytest.raises(Transient, match="does not read"):
                await console.read()
            await world.until(lambda: _closed(world, vm))

    run(main)


def test_a_console_whose_guest_reads_nothing_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(console: FakeConsole, text: bytes) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeConsole, "write", stuck)

    async def main() -> None:
        async with opened() as (world, vm, console):
            await world.until(lambda: _open(world, vm))
            await console.write(b"x")
            await console.close()
            await world.until(lambda: _closed(world, vm))
            await works(world)

    run(main)


class Endless:
    """A console that prints for ever."""

    async def read(self) -> bytes:
        return b"y\n"

    async def write(self, content: bytes) -> None:
        return

    async def close(self) -> None:
        return


def test_a_caller_that_takes_nothing_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        websocket = WebSocket({"type": "websocket"}, receive, send)
        websocket.application_state = websocket.client_state = WebSocketState.CONNECTED
        async with asyncio.timeout(2 * SEND_S):
            await pump_console(websocket, Endless())
            await close(websocket, GOING_AWAY, "over")

    run(main)


async def _read_all(console: CallStream) -> None:
    while await console.read():
        pass


async def _open(world: Cloud, vm: str) -> bool:
    (host,) = world.hosts.values()
    return vm in host.guests.consoles


async def _closed(world: Cloud, vm: str) -> bool:
    return not await _open(world, vm)


async def _typed(world: Cloud, vm: str, text: bytes) -> bool:
    (host,) = world.hosts.values()
    return host.guests.typed.get(vm, b"").endswith(text)
