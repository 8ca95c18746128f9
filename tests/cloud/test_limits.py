"""Limits of offering, account and zone: what holds is the lowest, also on VMs that run, and within two seconds."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import Throttle
from pileus.kernel.errors import Conflict
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

SOON_S = 2.0


@contextlib.asynccontextmanager
async def tenancy() -> AsyncIterator[Cloud]:
    """Give a cloud with an offering that has limits, and a VM of it with two NICs and a further disk."""
    async with cloud() as world:
        await world.create("tenancy.account", "acme")
        await world.create(
            "compute.offering", "thin", vcpus=1, memory_mib=64, disk_gib=1, iops_limit=300, rate_limit_kbps=9000
        )
        await world.create("storage.volume", "data", "acme", size_gib=1, iops_limit=250)
        nics = [{"network": "default"}, {"network": "default"}]
        await world.create("compute.vm", "v1", "acme", offering="thin", nics=nics, volumes=[{"volume": "data"}])
        await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)


def in_force(world: Cloud) -> tuple[list[Throttle], list[int]]:
    """Return the limits of the only machine's disks and of the ports."""
    (host,) = world.hosts.values()
    (machine,) = host.machines.machines.values()
    return [disk.throttle for disk in machine.spec.disks], [port.rate_limit_kbps for port in host.switch.ports.values()]


async def soon(world: Cloud, root: Throttle, data: Throttle, rate: int) -> None:
    """Wait until these limits hold. Raises: AssertionError after two seconds."""
    began = clock()

    async def holds() -> bool:
        return in_force(world) == ([root, data], [rate, rate])

    await world.until(holds, limit_s=SOON_S)
    assert clock() - began <= SOON_S


def test_the_lowest_limit_that_is_set_holds_at_once_on_a_running_vm() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await soon(world, Throttle(iops=300), Throttle(iops=250), 9000)
            await world.patch("tenancy.account", "acme", limits={"iops_limit": 200, "throughput_limit_kib_s": 1024})
            both = Throttle(iops=200, bytes_per_s=1 << 20)
            await soon(world, both, both, 9000)
            await world.patch("infra.zone", "local", limits={"rate_limit_kbps": 5000, "iops_limit": 275})
            await soon(world, both, both, 5000)
            await world.patch("compute.offering", "thin", rate_limit_kbps=4000, iops_limit=100)
            await soon(world, Throttle(iops=100, bytes_per_s=1 << 20), both, 4000)
            await world.patch("storage.volume", "data", "acme", iops_limit=50)
            await soon(world, Throttle(iops=100, bytes_per_s=1 << 20), Throttle(iops=50, bytes_per_s=1 << 20), 4000)
            for kind, name in (("tenancy.account", "acme"), ("infra.zone", "local")):
                none = {"iops_limit": 0, "throughput_limit_kib_s": 0, "rate_limit_kbps": 0}
                await world.patch(kind, name, limits=none)
            await world.patch("compute.offering", "thin", rate_limit_kbps=0, iops_limit=0)
            await soon(world, Throttle(), Throttle(iops=50), 0)
            machine = next(iter(next(iter(world.hosts.values())).machines.machines.values()))
            assert machine.boots == 1

    run(main)


def test_an_offering_of_the_same_size_is_taken_on_by_a_running_vm() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("compute.offering", "thinner", vcpus=1, memory_mib=64, disk_gib=1, iops_limit=30)
            await world.create("compute.offering", "larger", vcpus=2, memory_mib=64, disk_gib=1)
            await world.patch("compute.vm", "v1", "acme", offering="thinner")
            await soon(world, Throttle(iops=30), Throttle(iops=250), 0)
            with pytest.raises(Conflict, match="must be stopped to change its size"):
                await world.patch("compute.vm", "v1", "acme", offering="larger")

    run(main)


def test_a_vm_starts_with_the_limits_of_its_account() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme", limits={"iops_limit": 7, "rate_limit_kbps": 70})
            vm: dict[str, Any] = await world.create("compute.vm", "v1", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            assert in_force(world) == ([Throttle(iops=7)], [70])
            vm = await world.get("compute.vm", "v1", "acme")
            assert (vm["assigned"]["iops_limit"], vm["assigned"]["rate_limit_kbps"]) == (7, 70)

    run(main)


def test_a_throttle_that_fails_is_tried_again() -> None:
    async def main() -> None:
        async with tenancy() as world:
            (host,) = world.hosts.values()
            for number in range(1, 6):
                host.machines.fail_call(number, DriverError("QmpRefused", "not now"))
            await world.patch("tenancy.account", "acme", limits={"iops_limit": 20})

            async def holds() -> bool:
                return in_force(world)[0] == [Throttle(iops=20)] * 2

            await world.until(holds, limit_s=60.0)

    run(main)
