"""Connections to ports of VMs: through the router of their network, bounded, and nobody's trouble but their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pileus.agent.calls import MACHINE_STREAMS_MAX
from pileus.drivers.host.errors import DriverError
from pileus.kernel.errors import Conflict, PileusError, Transient
from pileus.kernel.flow import PART_BYTES, WINDOW_BYTES, Flow
from pileus.kernel.kind import Resource
from pileus.server.problems import TooMany
from pileus.server.reach import Place, place, until_ended
from pileus.server.tunnel import Tunnel
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

ROUTED: dict[str, Any] = {"router": "single", "public_range": "203.0.113.0/29"}


class Service:
    """The VM's end of a connection."""

    def __init__(self) -> None:
        self.received = b""
        self.finished = False
        self.closed = False
        self.reads = asyncio.Event()
        self.reads.set()
        """Cleared: it reads nothing."""
        self.taken = 0
        """Bytes of what it says that were read from it."""
        self._says: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, content: bytes) -> None:
        self._says.put_nowait(content)

    async def read(self) -> bytes:
        content = await self._says.get()
        if content == b"broken":
            raise DriverError("StreamLost", "the VM reset the connection")
        self.taken += len(content)
        return content

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.received += data

    async def finish(self) -> None:
        self.finished = True

    async def close(self) -> None:
        self.closed = True


class Site:
    """A cloud with the VM web of account acme, on whose port 22 services listen."""

    def __init__(self, world: Cloud) -> None:
        self.world = world
        self.services: list[Service] = []

    async def open(self) -> None:
        await self.world.create("tenancy.account", "acme")
        await self.world.create("compute.vm", "web", "acme")
        await self.world.until(lambda: self.world.is_ready("compute.vm", "web", "acme"))
        (self.host,) = self.world.hosts.values()
        self.place = await place(self.world.store, await self.vm(), "")
        self.host.guests.listening[self.place.address, 22] = self._accept

    def _accept(self) -> Service:
        self.services.append(Service())
        return self.services[-1]

    async def vm(self) -> Resource:
        return await self.world.resource("compute.vm", "web", "acme")

    async def connect(self, port: int = 22, **other: Any) -> Tunnel:
        place = Place(host=self.place.host, appliance=self.place.appliance, address=self.place.address)
        agents = self.world.servers[0].agents
        return await agents.connect(place.host, other.get("appliance", place.appliance), place.address, port)

    async def streams(self) -> int:
        (agent,) = self.world.running.values()
        return len(agent._calls._flows)

    async def soon(self, true: Callable[[], bool]) -> None:
        """Let virtual time pass until ``true()``."""

        async def holds() -> bool:
            return true()

        await self.world.until(holds, limit_s=60)

    async def works(self) -> None:
        """The host still makes machines, and is heard."""
        await self.world.create("compute.vm", "other", "acme", nics=[])
        await self.world.until(lambda: self.world.is_ready("compute.vm", "other", "acme"))
        assert await self.world.is_ready("infra.host", "host0")


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Site]:
    async with cloud(1, **ROUTED) as world:
        site = Site(world)
        await site.open()
        yield site


def test_bytes_go_both_ways_and_each_direction_ends_on_its_own() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            (service,) = site.services
            await tunnel.write(b"hello")
            await tunnel.finish()
            await site.soon(lambda: service.finished)
            assert service.received == b"hello"
            for part in (b"good", b"bye", b""):
                service.say(part)
            assert await _all(tunnel) == b"goodbye"
            assert tunnel.done
            await tunnel.close()
            await site.soon(lambda: service.closed)
            await site.world.until(lambda: _none(site))

    run(main)


def test_what_is_not_read_waits_at_the_vm_and_the_host_goes_on() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            (service,) = site.services
            whole = bytes(range(256)) * (PART_BYTES // 256)
            for _ in range(100):
                service.say(whole)
            await asyncio.sleep(30)
            assert service.taken <= WINDOW_BYTES + 2 * PART_BYTES
            await site.works()
            service.say(b"")
            assert await _all(tunnel) == whole * 100

    run(main)


def test_what_the_vm_does_not_read_waits_at_the_sender_and_the_host_goes_on() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            (service,) = site.services
            service.reads.clear()
            whole = bytes(4 * WINDOW_BYTES)
            sending = asyncio.create_task(_send(tunnel, whole))
            await asyncio.sleep(30)
            assert not sending.done()
            await site.works()
            service.reads.set()
            await sending
            await site.soon(lambda: service.finished)
            assert service.received == whole

    run(main)


def test_what_was_sent_reaches_a_slow_vm_although_the_sender_has_closed() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            (service,) = site.services
            service.reads.clear()
            service.say(b"")
            await tunnel.write(bytes(WINDOW_BYTES // 2))
            await tunnel.finish()
            assert await tunnel.read() == b""
            await tunnel.close()
            await asyncio.sleep(5)
            service.reads.set()
            await site.soon(lambda: service.closed)
            assert (len(service.received), service.finished) == (WINDOW_BYTES // 2, True)

    run(main)


def test_a_vm_that_never_reads_holds_nothing_of_a_sender_that_has_gone() -> None:
    async def main() -> None:
        async with opened() as site:
            for ends_well in (True, False):
                tunnel = await site.connect()
                service = site.services[-1]
                service.reads.clear()
                service.say(b"")
                await tunnel.write(b"x")
                if ends_well:
                    await tunnel.finish()
                assert await tunnel.read() == b""
                await tunnel.close()
                await site.soon(lambda: site.services[-1].closed)
            assert await site.streams() == 0

    run(main)


def test_an_idle_connection_lives_for_an_hour() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            (service,) = site.services
            await asyncio.sleep(3700)
            await tunnel.write(b"still")
            await site.soon(lambda: service.received == b"still")
            service.say(b"here")
            assert await tunnel.read() == b"here"

    run(main)


def test_a_connection_that_breaks_says_so_after_what_came_before() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            site.services[0].say(b"last words")
            site.services[0].say(b"broken")
            assert await tunnel.read() == b"last words"
            with pytest.raises(Transient, match="reset the connection"):
                await tunnel.read()
            with pytest.raises(Transient, match="reset the connection"):
                await tunnel.write(b"x")
            await tunnel.close()
            assert site.services[0].closed

    run(main)


def test_connections_end_with_the_agent_and_can_be_made_again() -> None:
    async def main() -> None:
        async with opened() as site:
            (host,) = site.world.hosts
            tunnel = await site.connect()
            await site.world.stop_agent(host)
            with pytest.raises(Transient, match="agent went away"):
                await tunnel.read()
            await tunnel.close()
            with pytest.raises(Transient, match="not connected"):
                await site.connect()
            await site.soon(lambda: site.services[0].closed)
            await site.world.start_agent(host)
            await site.world.until(lambda: _connects(site))

    run(main)


def test_a_refused_and_a_silent_way_are_named() -> None:
    async def main() -> None:
        async with opened() as site:
            with pytest.raises(Conflict, match="port 23 refused") as refused:
                await site.connect(23)
            assert refused.value.code == "connect-refused"
            with pytest.raises(Transient, match="does not answer") as silent:
                await site.connect(appliance="none")
            assert silent.value.code == "node-silent"
            assert await site.streams() == 0

    run(main)


def test_one_appliance_carries_so_many_connections_and_then_refuses() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnels = [await site.connect() for _ in range(MACHINE_STREAMS_MAX)]
            with pytest.raises(TooMany, match="close some first"):
                await site.connect()
            await tunnels[0].close()
            await site.soon(lambda: site.services[0].closed)
            assert await _connects(site)

    run(main)


def test_a_side_that_sends_more_than_it_may_is_ended() -> None:
    async def main() -> None:
        async with opened() as site:
            tunnel = await site.connect()
            site.services[0].reads.clear()
            tunnel.granted(10 * WINDOW_BYTES)
            await _send(tunnel, bytes(5 * WINDOW_BYTES))
            with pytest.raises(Transient, match="more than it may"):
                await tunnel.read()
            await site.soon(lambda: site.services[0].closed)
            await site.works()

    run(main)


def test_a_connection_ends_when_the_vm_is_stopped_boots_again_or_is_deleted() -> None:
    async def main() -> None:
        async with opened() as site:
            world = site.world
            server = world.servers[0]

            async def reason(change: Any) -> str:
                await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
                watching = asyncio.create_task(until_ended(server.store, server.hub, await site.vm()))
                await asyncio.sleep(120)
                assert not watching.done()
                await change
                with pytest.raises(Transient) as raised:
                    async with asyncio.timeout(120):
                        await watching
                return raised.value.message

            assert await reason(world.patch("compute.vm", "web", "acme", boot_serial=1)) == "vm web boots again"
            assert await reason(world.patch("compute.vm", "web", "acme", power="stopped")) == "vm web was stopped"
            await world.patch("compute.vm", "web", "acme", power="running")
            assert await reason(world.delete("compute.vm", "web", "acme")) in (
                "vm web was stopped",
                "vm web was deleted",
            )

    run(main)


def test_each_missing_link_is_named() -> None:
    async def main() -> None:
        async with opened() as site:
            world, store = site.world, site.world.store
            await world.create("network.network", "lonely", "acme", range="10.9.0.0/24", router="none")
            await world.create("compute.vm", "two", "acme", nics=[{"network": "lonely"}, {"network": "default"}])
            await world.create("compute.vm", "none", "acme", nics=[])
            for name in ("two", "none"):
                await world.until(functools.partial(world.is_ready, "compute.vm", name, "acme"))
            two = await world.resource("compute.vm", "two", "acme")
            assert (await place(store, two, "")).address.startswith("10.1.1.")  # the one that has a router
            assert await _refusal(site, "two", "lonely") == (
                "network lonely has no router, so nothing can connect to it from outside; `pileus console vm two` works"
            )
            assert await _refusal(site, "two", "dmz") == "vm two has no NIC in a network dmz; it is in lonely, default"
            assert await _refusal(site, "none") == "vm none has no NIC in a network"
            (appliance,) = [vm for vm in await world.list("compute.vm", owned=True) if vm["id"] == site.place.appliance]
            with pytest.raises(Conflict, match="no NIC in a network"):
                await place(store, await store.get(appliance["id"]), "")
            for power, message in (
                ("paused", "vm web is paused; `pileus resume vm web` lets it run on"),
                ("stopped", "vm web is stopped; `pileus start vm web` starts it"),
            ):
                await world.patch("compute.vm", "web", "acme", power=power)
                await world.until(functools.partial(_is, site, power))
                assert await _refusal(site, "web") == message

    run(main)


async def _refusal(site: Site, vm: str, network: str = "") -> str:
    found = await site.world.resource("compute.vm", vm, "acme")
    with pytest.raises(PileusError) as raised:
        await place(site.world.store, found, network)
    return raised.value.message


async def _is(site: Site, power: str) -> bool:
    return bool((await site.vm()).observed.power == power)


async def _connects(site: Site) -> bool:
    await (await site.connect()).close()
    return True


async def _none(site: Site) -> bool:
    return await site.streams() == 0


async def _send(flow: Flow, content: bytes) -> None:
    await flow.write(content)
    await flow.finish()


async def _all(flow: Flow) -> bytes:
    whole = b""
    while part := await flow.read():
        whole += part
    return whole
