"""Restarts that nobody told when they happened: what lay between the processes is no use of CPUs and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import msgspec
import pytest
import sqlalchemy as sa

from pileus.drivers.host.qemu.fake import FakeHost, FakeMachine
from pileus.kernel.store.tables import usage
from tests.cloud.invariants import Ledger, check
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

AWAY_S = 600.0
CLOCK_S = 0.002
"""Hosts tell times in milliseconds."""


@contextlib.asynccontextmanager
async def vm() -> AsyncIterator[tuple[Cloud, str, FakeHost, FakeMachine]]:
    """Give a cloud with a VM that runs, and its host's id, its host and its machine."""
    async with cloud() as world:
        (host,) = world.hosts
        await world.create("tenancy.account", "acme")
        await world.create("compute.vm", "web", "acme")
        await ready(world)
        machines = world.hosts[host].machines
        (machine,) = machines.machines.values()
        yield world, host, machines, machine
        await check(world, Ledger(), full=True)


async def ready(world: Cloud) -> None:
    await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
    await world.settle()


async def is_gone(world: Cloud) -> bool:
    return not await world.exists("compute.vm", "web", "acme")


async def assert_metered(world: Cloud, machine: FakeMachine, on: Sequence[tuple[float, float]]) -> None:
    """CPUs were in use in just these spans, the last of which goes on, and the disk throughout."""
    rows = await world.store.fetch(
        sa.select(usage.c.since, usage.c.until, usage.c.amounts)
        .where(usage.c.id == machine.spec.id)
        .order_by(usage.c.since)
    )
    found = [(since, until) for since, until, amounts in rows if "vcpus" in msgspec.json.decode(amounts)]
    assert [moment for span in found for moment in span] == pytest.approx(
        [moment for span in on for moment in span], abs=CLOCK_S
    )
    assert found[-1][1] == 0
    assert all("disk_mib" in msgspec.json.decode(amounts) for *_, amounts in rows)
    assert all(before[1] == after[0] for before, after in pairwise(rows))


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_host_that_was_off_costs_its_vms_nothing_for_that(restarts: int) -> None:
    async def main() -> None:
        async with vm() as (world, host, machines, machine):
            spans = []
            for _ in range(restarts):
                began = machine.started_at or 0.0
                await asyncio.sleep(AWAY_S)
                await world.stop_agent(host)
                machines.reboot()
                spans.append((began, clock()))
                await asyncio.sleep(AWAY_S)
                await world.start_agent(host)
                await ready(world)
            await assert_metered(world, machine, [*spans, (machine.started_at or 0.0, 0.0)])

    run(main)


def test_a_vm_that_was_started_again_while_its_host_was_cut_off_is_not_metered_in_between() -> None:
    async def main() -> None:
        async with vm() as (world, host, machines, machine):
            began = machine.started_at or 0.0
            await world.cut_link(host)
            await asyncio.sleep(AWAY_S)
            machines.crash(machine.spec.id)
            ended = clock()
            await asyncio.sleep(AWAY_S)
            world.heal_link(host)
            await ready(world)
            await assert_metered(world, machine, [(began, ended), (machine.started_at or 0.0, 0.0)])

    run(main)


def test_of_several_restarts_in_silence_the_last_gap_is_known() -> None:
    async def main() -> None:
        async with vm() as (world, host, machines, machine):
            began = machine.started_at or 0.0
            await world.cut_link(host)
            for _ in range(3):
                await asyncio.sleep(AWAY_S)
                machines.crash(machine.spec.id)
                ended = clock()
            await asyncio.sleep(AWAY_S)
            world.heal_link(host)
            await ready(world)
            await assert_metered(world, machine, [(began, ended), (machine.started_at or 0.0, 0.0)])

    run(main)


async def fail_in_silence(world: Cloud, host: str, machines: FakeHost, machine: FakeMachine) -> float:
    """Let the machine end while its host is cut off, and fail to start from then on; return when it ended."""
    await world.cut_link(host)
    await asyncio.sleep(AWAY_S)
    machines.memory_mib = 0
    machines.crash(machine.spec.id)
    ended = clock()
    await asyncio.sleep(AWAY_S)
    assert machine.exit is not None
    assert machine.exit.reason == "failed"
    assert machine.exit.at > ended + AWAY_S / 2
    return ended


def test_starts_that_fail_in_silence_are_no_use() -> None:
    async def main() -> None:
        async with vm() as (world, host, machines, machine):
            began, room_mib = machine.started_at or 0.0, machines.memory_mib
            ended = await fail_in_silence(world, host, machines, machine)
            machines.memory_mib = room_mib
            world.heal_link(host)
            await ready(world)
            await assert_metered(world, machine, [(began, ended), (machine.started_at or 0.0, 0.0)])

    run(main)


def test_what_failed_to_start_in_silence_and_is_removed_ended_when_it_ended() -> None:
    async def main() -> None:
        async with vm() as (world, host, machines, machine):
            began = machine.started_at or 0.0
            ended = await fail_in_silence(world, host, machines, machine)
            await world.delete("compute.vm", "web", "acme")
            world.heal_link(host)
            await world.until(lambda: is_gone(world))
            rows = await world.store.fetch(
                sa.select(usage.c.since, usage.c.until, usage.c.amounts).where(usage.c.id == machine.spec.id)
            )
            (on,) = [(since, until) for since, until, amounts in rows if "vcpus" in msgspec.json.decode(amounts)]
            assert on == pytest.approx((began, ended), abs=CLOCK_S)

    run(main)
