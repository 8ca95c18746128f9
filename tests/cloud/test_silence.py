"""Hosts that fall silent, and that speak again: both are noticed within seconds."""

from __future__ import annotations

import asyncio

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import MachineFact
from pileus.drivers.host.qemu.fake import FakeHypervisor
from pileus.drivers.host.system.base import SystemFacts
from pileus.drivers.host.system.fake import FakeSystem
from pileus.infra.host.types import SILENT_AFTER_S
from pileus.kernel.errors import Transient
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

SOON_S = SILENT_AFTER_S + 15.0


class BrokenSystem(FakeSystem):
    """A machine that does not say what it is."""

    async def facts(self) -> SystemFacts:
        raise DriverError("Broken", "it does not say")


async def not_written() -> None:
    """Fail as a server does that hears its hosts and cannot write it down."""
    raise Transient("the database is away")


async def reason(world: Cloud) -> str:
    """Return why the host is ready or not."""
    return str((await world.get("infra.host", "host0"))["conditions"][0]["reason"])


def test_a_host_that_speaks_again_over_its_old_connection_is_ready_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with cloud() as world:
            agents = world.servers[0].agents
            with monkeypatch.context() as away:
                away.setattr(agents, "_write_presence", not_written)
                await world.until(lambda: _is(world, "HostSilent"), SOON_S)
            assert agents.connected == 1
            await world.until(lambda: world.is_ready("infra.host", "host0"), 10.0)

    run(main)


def test_a_host_with_a_problem_that_then_dies_is_silent_soon() -> None:
    async def main() -> None:
        async with cloud() as world:
            (host,) = world.hosts
            world.hosts[host].system = BrokenSystem()
            await world.stop_agent(host)
            await world.start_agent(host)
            await world.until(lambda: _is(world, "Broken"))
            await world.settle()
            await world.stop_agent(host)
            began = clock()
            await world.until(lambda: _is(world, "HostSilent"))
            assert clock() - began < SOON_S

    run(main)


def test_what_is_on_a_host_that_came_back_is_unknown_until_it_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    look = FakeHypervisor.observe

    async def late(self: FakeHypervisor) -> dict[str, MachineFact]:
        await looked.wait()
        return await look(self)

    async def main() -> None:
        async with cloud() as world:
            (host,) = world.hosts
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.stop_agent(host)
            await world.until(lambda: _is(world, "HostSilent"))
            monkeypatch.setattr(FakeHypervisor, "observe", late)
            await world.start_agent(host)
            await world.until(lambda: world.is_ready("infra.host", "host0"))
            await asyncio.sleep(60.0)
            web = await world.get("compute.vm", "web", "acme")
            said = web["conditions"][0]
            assert (said["status"], said["reason"]) == ("unknown", "HostReturned")
            assert web["observed"]["power"] == "running"  # what was last heard
            looked.set()
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))

    run(main)


async def _is(world: Cloud, wanted: str) -> bool:
    return await reason(world) == wanted
