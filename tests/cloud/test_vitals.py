"""Vitals of VMs, asked of simulated hosts by way of server and agent; and VMs that hang."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pileus.agent.calls import LOOKS_MAX
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.base import PortCounters
from pileus.fleet.vitals import VMS_MAX, Vitals
from pileus.kernel.errors import Transient
from pileus.kernel.stream import Call, Chunk, End
from tests.cloud.test_hostile_agents import forger
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run


@contextlib.asynccontextmanager
async def tenancy(*names: str, hosts: int = 1) -> AsyncIterator[tuple[Cloud, dict[str, str]]]:
    """Give a cloud with the account acme and these VMs, running; and their ids."""
    async with cloud(hosts) as world:
        await world.create("tenancy.account", "acme")
        for name in names:
            await world.create("compute.vm", name, "acme", nics=[])
        for name in names:
            await world.until(functools.partial(world.is_ready, "compute.vm", name, "acme"))
        yield world, {name: (await world.get("compute.vm", name, "acme"))["id"] for name in names}


async def look(world: Cloud, *vms: str, timeout_s: float = 2.0, host: str = "") -> dict[str, Vitals]:
    return await world.servers[0].agents.vitals(host or next(iter(world.hosts)), vms, timeout_s)


async def node(world: Cloud) -> tuple[str, str]:
    """Return host and VM of a node that is ready."""
    await world.create("fleet.manager", "firewalls")
    await world.create("fleet.consent", "firewalls", "acme", manager="firewalls", nodes_max=3)
    wish: dict[str, Any] = {"role": "firewall", "vcpus": 1, "memory_mib": 64, "nics": 1}
    await world.create("fleet.package", "fw-1", manager="firewalls", version="1", image="appliance", **wish)
    await world.create("fleet.node", "edge", "acme", manager="firewalls", nics=[{"network": "default"}])
    await world.until(lambda: world.is_ready("fleet.node", "edge", "acme"))
    found = await world.resource("fleet.node", "edge", "acme")
    return found.host, found.assigned.vm


def test_the_vitals_of_plain_vms_are_what_their_machines_are() -> None:
    async def main() -> None:
        async with tenancy("web", "idle") as (world, ids):
            (host,) = world.hosts.values()
            host.machines.machines[ids["web"]].disk = (8192, 2)
            await world.patch("compute.vm", "idle", "acme", power="paused")
            await world.until(lambda: world.is_ready("compute.vm", "idle", "acme"))
            found = await look(world, *ids.values())
            assert found[ids["web"]] == Vitals(
                vm=ids["web"], process="running", boots=1, disk_bytes=8192, disk_operations=2
            )
            assert (found[ids["idle"]].process, found[ids["idle"]].node) == ("paused", "absent")
            host.machines.crash(ids["web"])
            assert (await look(world, ids["web"]))[ids["web"]].process == "stopped"

    run(main)


def test_a_nodes_vitals_have_its_own_words_and_what_it_sent() -> None:
    async def main() -> None:
        async with tenancy() as (world, _):
            host, vm = await node(world)
            simulated = world.hosts[host]
            (nic,) = simulated.machines.machines[vm].spec.nics
            simulated.switch.traffic[nic.id] = PortCounters(rx_bytes=7, rx_packets=1, tx_bytes=1500, tx_packets=1)
            simulated.guests.statuses[vm] = {"applications": {"web": {"state": "running", "exits": 10**15}}}
            seen = (await look(world, vm, host=host))[vm]
            assert (seen.process, seen.node, seen.heard_s, seen.net_bytes) == ("running", "ready", 0.0, 1500)
            assert seen.status["applications"]["web"]["exits"] == 10**15
            assert seen.hash == (await world.resource("fleet.node", "edge", "acme")).observed.hash

    run(main)


def test_a_node_that_says_nothing_is_as_last_known_and_keeps_nobody_waiting() -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            host, vm = await node(world)
            guests = world.hosts[host].guests
            guests.unpolled.add(vm)
            assert (await look(world, vm, host=host))[vm].node == "ready"
            guests.silent[vm] = clock()
            began = clock()
            found = await look(world, vm, ids["web"], host=host)
            assert clock() - began < 3.0
            assert (found[vm].process, found[vm].node) == ("running", "silent")
            assert 1.9 < found[vm].heard_s < 3.0
            assert found[ids["web"]].process == "running"
            await asyncio.sleep(60)
            assert (await look(world, vm, host=host))[vm].heard_s >= 60.0
            guests.quarantined[vm] = "it shouts"
            del guests.silent[vm]
            assert (await look(world, vm, host=host))[vm].node == "quarantined"

    run(main)


def test_a_hung_vm_is_known_in_time_and_its_owner_is_told() -> None:
    async def main() -> None:
        async with tenancy("web", "other") as (world, ids):
            (host,) = world.hosts.values()
            host.machines.hang(ids["web"])
            began = clock()
            found = await look(world, *ids.values())
            assert clock() - began < 3.0
            assert (found[ids["web"]].process, found[ids["other"]].process) == ("hung", "running")
            began = clock()
            assert (await look(world, ids["web"]))[ids["web"]].process == "hung"
            assert clock() - began < 0.5
            await world.until(lambda: reason(world, "Hung"))
            assert await world.is_ready("compute.vm", "other", "acme")
            host.machines.unhang(ids["web"])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"), 5.0)

    run(main)


async def reason(world: Cloud, wanted: str) -> bool:
    found = await world.get("compute.vm", "web", "acme")
    return bool(found["conditions"][0]["reason"] == wanted)


@pytest.mark.parametrize("known", ["known to hang", "not known to hang"])
def test_a_restart_ends_a_hung_vm_and_starts_it_anew(known: str) -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            (host,) = world.hosts.values()
            machine = host.machines.machines[ids["web"]]
            pid = machine.pid
            host.machines.hang(ids["web"])
            if known == "known to hang":
                await world.until(lambda: reason(world, "Hung"))
            began = clock()
            await world.patch("compute.vm", "web", "acme", boot_serial=1)
            await world.until(lambda: restarted(world), 6.0)
            assert clock() - began < 6.0
            assert (machine.state, machine.hung, machine.boots) == ("running", False, 2)
            assert machine.pid != pid
            await world.settle()
            assert machine.boots == 2, "once, and not again"
            assert (await world.get("compute.vm", "web", "acme"))["observed"]["failures"] == 0

    async def restarted(world: Cloud) -> bool:
        found = await world.get("compute.vm", "web", "acme")
        return bool(found["observed"]["boot_serial"] == 1 and found["conditions"][0]["status"] == "true")

    run(main)


@pytest.mark.parametrize("power", ["stopped", "gone"])
def test_a_hung_vm_can_be_stopped_and_deleted(power: str) -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            (host,) = world.hosts.values()
            host.machines.hang(ids["web"])
            if power == "gone":
                await world.delete("compute.vm", "web", "acme")
                await world.until(lambda: gone(world), 30.0)
                return
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            assert host.machines.machines[ids["web"]].state == "stopped"

    async def gone(world: Cloud) -> bool:
        return not await world.exists("compute.vm", "web", "acme")

    run(main)


def test_other_vms_are_served_while_many_hang() -> None:
    async def main() -> None:
        names = [f"vm{number}" for number in range(19)]
        async with tenancy(*names, "web") as (world, ids):
            (host,) = world.hosts.values()
            for name in names:
                host.machines.hang(ids[name])
                await world.patch("compute.vm", name, "acme", shutdown_timeout_s=300, power="stopped")
            began = clock()
            await world.patch("compute.vm", "web", "acme", power="paused")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"), 5.0)
            await world.patch("compute.vm", "web", "acme", power="running")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"), 5.0)
            assert clock() - began < 5.0

    run(main)


def test_only_vms_of_the_host_are_told_of() -> None:
    async def main() -> None:
        async with tenancy("web", hosts=2) as (world, ids):
            here = (await world.resource("compute.vm", "web", "acme")).host
            (there,) = set(world.hosts) - {here}
            assert set(await look(world, ids["web"], "nobody", host=here)) == {ids["web"]}
            assert await look(world, ids["web"], host=there) == {}
            assert world.servers[0].agents.holds(here)
            await world.stop_agent(here)
            with pytest.raises(Transient) as refused:
                await look(world, ids["web"], host=here)
            assert refused.value.code == "no-agent"
            assert not world.servers[0].agents.holds(here)

    run(main)


def test_a_host_that_cannot_look_knows_nothing_rather_than_fail() -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            (host,) = world.hosts.values()
            host.machines.refuse("pulses", "", DriverError("Broken", "it is broken"))
            assert (await look(world, ids["web"]))[ids["web"]].process == "unknown"

    run(main)


def answers(world: Cloud, vm: str) -> list[Any]:
    good = {"vm": vm, "process": "running"}
    return [
        b"nonsense",
        msgspec.json.encode([{**good, "process": "dancing"}]),
        msgspec.json.encode([{**good, "disk_bytes": "many"}]),
        msgspec.json.encode([{**good, "status": []}]),
        b"[" * 100_000,
        msgspec.json.encode([{**good, "status": {"x": "y" * (1 << 20)}}]),
    ]


def test_a_host_that_says_nonsense_is_not_believed() -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            (host,) = world.hosts
            bad = await forger(world, host)
            for part in answers(world, ids["web"]):
                asked = asyncio.create_task(look(world, ids["web"]))
                call = await bad.hear(Call)
                bad.say(Chunk(number=call.number, part=part))
                bad.say(End(number=call.number))
                with pytest.raises(Transient) as refused:
                    await asked
                assert refused.value.code == "bad-answer"
            asked = asyncio.create_task(look(world, ids["web"]))
            call = await bad.hear(Call)
            told = [Vitals(vm="another", process="running"), Vitals(vm=ids["web"], process="hung")]
            bad.say(Chunk(number=call.number, part=msgspec.json.encode(told)))
            bad.say(End(number=call.number))
            assert {vm: each.process for vm, each in (await asked).items()} == {ids["web"]: "hung"}
            began = clock()
            asked = asyncio.create_task(look(world, ids["web"]))
            with pytest.raises(Transient) as refused:
                await asked
            assert refused.value.code == "no-answer"
            assert clock() - began < 3.1

    run(main)


def test_an_agent_refuses_what_it_cannot_bear() -> None:
    async def main() -> None:
        async with tenancy("web") as (world, ids):
            (host,) = world.hosts
            agents = world.servers[0].agents
            wrong: list[dict[str, Any]] = [
                {}, {"vms": "web"}, {"vms": [1]}, {"vms": ["x"] * (VMS_MAX + 1)}, {"vms": ["x" * 200]},
                {"vms": [], "timeout_s": 1e9}, {"vms": [], "timeout_s": -1}, {"vms": [], "timeout_s": "soon"},
            ]  # fmt: skip
            for arguments in wrong:
                with pytest.raises(Transient):
                    _ = [part async for part in agents.call(host, "vitals", "", arguments)]
            world.hosts[host].machines.hang(ids["web"])
            looks = [look(world, ids["web"]) for _ in range(LOOKS_MAX + 1)]
            ended = await asyncio.gather(*looks, return_exceptions=True)
            assert sum(isinstance(each, Transient) for each in ended) == 1
            assert (await look(world, ids["web"]))[ids["web"]].process == "hung"

    run(main)
