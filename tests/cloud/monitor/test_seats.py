"""Entitlements: the last seat goes to one, dead VMs return theirs, terms end."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid, QuotaExceeded
from pileus.kernel.kind import Resource

ACCOUNT = "acme"


async def furnish(world: Cloud, vms: int = 2, **entitlement: Any) -> None:
    await world.create("tenancy.account", ACCOUNT)
    await world.patch("tenancy.vdc", "main", ACCOUNT, quota={"vms": 40, "vcpus": 40, "volumes": 40, "disk_gib": 100})
    for number in range(vms):
        await world.create("compute.vm", f"vm{number}", ACCOUNT)
    if vms <= 2:
        for name in ("vm0", "vm1"):
            await world.until(functools.partial(world.is_ready, "compute.vm", name, ACCOUNT))
    await world.create("monitor.entitlement", "db", ACCOUNT, product="Database", **{"limit": 1, **entitlement})


async def check_out(world: Cloud, name: str, vm: str, **desired: Any) -> None:
    await world.create("monitor.seat", name, ACCOUNT, entitlement="db", vm=vm, **desired)


async def entitlement(world: Cloud) -> Resource:
    return await world.resource("monitor.entitlement", "db", ACCOUNT)


async def is_used(world: Cloud, used: int) -> bool:
    found = await entitlement(world)
    return found.observed is not None and bool(found.observed.used == used)


async def is_gone(world: Cloud, kind: str, name: str) -> bool:
    return not await world.exists(kind, name, ACCOUNT)


def test_of_32_clients_one_gets_the_last_seat() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world, 32, limit=5)
            asked = [check_out(world, f"s{number}", f"vm{number}") for number in range(32)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            refused = [each for each in found if isinstance(each, QuotaExceeded)]
            assert len(refused) == 27
            assert [each for each in found if each is not None and not isinstance(each, QuotaExceeded)] == []
            assert "5 of 5 instances" in refused[0].message
            await world.until(lambda: is_used(world, 5))

    run(main)


def test_a_seat_comes_back_with_its_vm_and_when_that_does_not_run() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await check_out(world, "one", "vm0", lease_s=60)
            with pytest.raises(Conflict, match="has seat one"):
                await check_out(world, "again", "vm0")
            with pytest.raises(QuotaExceeded):
                await check_out(world, "two", "vm1")
            await world.patch("compute.vm", "vm0", ACCOUNT, power="stopped")
            began = clock()
            await world.until(lambda: is_used(world, 0), limit_s=200.0)
            assert 60.0 <= clock() - began < 90.0
            await check_out(world, "two", "vm1")
            await world.delete("compute.vm", "vm1", ACCOUNT)
            await world.until(lambda: is_gone(world, "monitor.seat", "two"))
            await world.until(lambda: is_used(world, 0))

    run(main)


def test_a_term_begins_ends_and_has_a_grace() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            now = clock()
            await furnish(world, starts=iso(now + 1000), ends=iso(now + 2000), grace_s=500, limit=3)
            with pytest.raises(Conflict, match="begins"):
                await check_out(world, "early", "vm0")
            await asyncio.sleep(1001 - (clock() - now))
            await check_out(world, "one", "vm0")

            async def has(state: str) -> bool:
                return bool((await entitlement(world)).observed.state == state)

            await world.until(lambda: has("grace"), limit_s=1200.0)
            assert clock() - now >= 2000
            with pytest.raises(Conflict, match="ended"):
                await check_out(world, "late", "vm1")
            assert await world.is_ready("monitor.seat", "one", ACCOUNT)
            await world.until(lambda: has("expired"), limit_s=700.0)
            assert clock() - now >= 2500
            await world.until(lambda: is_gone(world, "monitor.seat", "one"))
            await world.until(lambda: is_used(world, 0))

    run(main)


def test_a_soft_limit_is_passed_and_reported() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world, metric="vcpus", limit=1, enforcement="soft")
            await check_out(world, "one", "vm0")
            await check_out(world, "two", "vm1")
            await world.until(lambda: is_used(world, 2))
            found = await entitlement(world)
            assert found.ready is not None
            assert (found.ready.status, found.ready.reason) == ("false", "OverUse")
            assert not await world.is_ready("monitor.seat", "two", ACCOUNT)
            await world.delete("monitor.seat", "one", ACCOUNT)
            await world.until(lambda: world.is_ready("monitor.seat", "two", ACCOUNT))

    run(main)


def test_a_pinned_place_stays_with_its_vm_until_that_is_deleted() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world, binding="pinned")
            await check_out(world, "one", "vm0")
            await world.delete("monitor.seat", "one", ACCOUNT)
            await world.until(lambda: is_used(world, 0))
            with pytest.raises(QuotaExceeded, match="pinned"):
                await check_out(world, "two", "vm1")
            await check_out(world, "one-again", "vm0")
            await world.delete("compute.vm", "vm0", ACCOUNT)
            await world.until(lambda: is_gone(world, "compute.vm", "vm0"))
            await world.until(lambda: is_gone(world, "monitor.seat", "one-again"))
            await check_out(world, "two", "vm1")

    run(main)


def test_contradictions_are_refused_and_what_is_in_use_stays() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            with pytest.raises(Invalid, match="and begins only"):
                await world.create(
                    "monitor.entitlement",
                    "x",
                    ACCOUNT,
                    product="x",
                    limit=1,
                    starts=iso(clock() + 9),
                    ends=iso(clock()),
                )
            with pytest.raises(Invalid, match="no time"):
                await world.create("monitor.entitlement", "x", ACCOUNT, product="x", limit=1, ends="tomorrow")
            with pytest.raises(Invalid, match="users"):
                await check_out(world, "one", "vm0", users=3)
            await world.create("monitor.entitlement", "people", ACCOUNT, product="people", metric="users", limit=5)
            with pytest.raises(Invalid, match="a seat is for at most 1000000000 users"):
                await world.create("monitor.seat", "all", ACCOUNT, entitlement="people", vm="vm0", users=1 << 63)
            await check_out(world, "one", "vm0")
            with pytest.raises(Conflict, match="used by seat one"):
                await world.delete("monitor.entitlement", "db", ACCOUNT)

    run(main)
