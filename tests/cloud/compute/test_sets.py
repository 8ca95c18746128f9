"""Sets: scaled, stopped, started and restarted together, with a result for each member."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cloud.test_vm_life import tenancy
from tests.cloud.world import Cloud
from tests.virtual_time import run

from pileus.drivers.host.errors import DriverError
from pileus.kernel.errors import Conflict, Denied, QuotaExceeded
from pileus.kernel.store.lists import Filter


async def members(world: Cloud, name: str = "web") -> list[Any]:
    found = await world.get("compute.set", name, "acme")
    return await world.store.list(Filter(kind="compute.vm", owner=found["id"]))


async def settles(world: Cloud, name: str = "web") -> dict[str, Any]:
    await world.until(lambda: world.is_ready("compute.set", name, "acme"))
    return await world.get("compute.set", name, "acme")


def test_a_set_is_scaled_up_and_down_and_its_newest_members_go_first() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.create("compute.set", "web", "acme", count=3)
            found = await settles(world)
            assert [vm.name for vm in await members(world)] == ["web-0001", "web-0002", "web-0003"]
            assert found["observed"]["powers"] == {"running": 3}
            first = {vm.id for vm in await members(world)}
            await world.patch("compute.set", "web", "acme", count=5)
            await settles(world)
            assert len(first & {vm.id for vm in await members(world)}) == 3
            await world.patch("compute.set", "web", "acme", count=2)
            await settles(world)
            assert [vm.name for vm in await members(world)] == ["web-0001", "web-0002"]
            await world.patch("compute.set", "web", "acme", count=0)
            await settles(world)
            assert await members(world) == []

    run(main)


def test_all_members_are_paused_stopped_and_started_together_and_each_that_is_not_says_why() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.create("compute.set", "web", "acme", count=4, nics=[])
            await settles(world)
            for power in ("paused", "running", "stopped", "running"):
                await world.patch("compute.set", "web", "acme", power=power)
                found = await settles(world)
                assert found["observed"]["powers"] == {power: 4}
            bad = (await members(world))[2]
            await world.patch("compute.set", "web", "acme", power="stopped")
            await settles(world)
            world.hosts[bad.host].machines.refuse("start", bad.id, DriverError("StartFailed", "no such device"))
            await world.patch("compute.set", "web", "acme", power="running")

            async def three() -> bool:
                return bool((await world.get("compute.set", "web", "acme"))["observed"]["ready"] == 3)

            await world.until(three)
            await world.settle(30.0)
            (result,) = (await world.get("compute.set", "web", "acme"))["observed"]["results"]
            assert (result["number"], result["vm"], result["reason"]) == (3, bad.id, "StartFailed")
            world.hosts[bad.host].machines.refuse("start", bad.id, None)
            await settles(world)

    run(main)


def test_a_rolling_restart_boots_every_member_once_and_never_many_at_a_time() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.create("compute.set", "web", "acme", count=6, nics=[])
            await settles(world)
            started: list[str] = []
            await world.patch("compute.set", "web", "acme", restart_serial=1)

            async def all_booted() -> bool:
                vms = await members(world)
                under_way = [vm for vm in vms if vm.desired.boot_serial == 1 > vm.observed.boot_serial]
                assert len(under_way) <= 1
                started.extend(vm.name for vm in under_way if vm.name not in started)
                return all(vm.observed.boot_serial == 1 for vm in vms)

            await world.until(all_booted)
            await settles(world)
            boots = [world.hosts[vm.host].machines.machines[vm.id].boots for vm in await members(world)]
            assert boots == [2] * 6
            assert started == sorted(started)

    run(main)


def test_the_quota_holds_for_all_members_and_members_change_with_their_set_alone() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.patch("tenancy.vdc", "main", "acme", quota={"vms": 5})
            with pytest.raises(QuotaExceeded):
                await world.create("compute.set", "web", "acme", count=6, nics=[])
            await world.create("compute.set", "web", "acme", count=3, nics=[])
            with pytest.raises(QuotaExceeded):
                await world.patch("compute.set", "web", "acme", count=6)
            await settles(world)
            with pytest.raises(Denied, match="member of a set"):
                await world.patch("compute.vm", "web-0001", "acme", power="stopped")
            with pytest.raises(Conflict, match="belongs to set web"):
                await world.delete("compute.vm", "web-0001", "acme")
            await world.patch("compute.set", "web", "acme", count=1)
            await settles(world)
            await world.create("compute.set", "more", "acme", count=4, nics=[])
            await settles(world, "more")

    run(main)


def test_a_set_goes_on_where_a_server_was_killed() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            quota = {"vms": 1000, "vcpus": 1000, "memory_mib": 1_000_000, "volumes": 1000, "disk_gib": 1000}
            await world.patch("tenancy.vdc", "main", "acme", quota=quota)
            await world.create("compute.set", "web", "acme", count=110, nics=[], vcpus=1, memory_mib=64)

            async def some() -> bool:
                return len(await members(world)) >= 100

            await world.until(some)
            await world.stop_server()
            await world.start_server("another")
            found = await settles(world)
            assert found["observed"]["powers"] == {"running": 110}
            await world.patch("compute.set", "web", "acme", count=2)
            await settles(world)

    run(main)
