"""Snapshots: evidence that outlives the VM and its disks, is charged, and is nobody's to change."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

import msgspec
import pytest

from pileus.drivers.host.errors import DiskFull, DriverError
from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Conflict, Denied, Invalid, QuotaExceeded
from pileus.kernel.quota import space
from pileus.kernel.reading import Call
from pileus.kernel.store.lists import Filter
from pileus.lab.simulated import SimulatedHost
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import clock, run

ALL = (Rule(kinds=("*",), verbs=("get", "create", "update", "delete")),)
KIND = "storage.snapshot"


@contextlib.asynccontextmanager
async def tenancy() -> AsyncIterator[Cloud]:
    """Give a cloud with a VM that has two disks."""
    async with cloud() as world:
        await world.create("tenancy.account", "acme")
        await world.create("storage.volume", "data", "acme", size_gib=2)
        await world.create("compute.vm", "v1", "acme", volumes=[{"volume": "data"}])
        await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
        await world.settle()
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)
        assert await leftovers(world) == {}


def host(world: Cloud) -> SimulatedHost:
    (found,) = world.hosts.values()
    return found


async def root(world: Cloud) -> str:
    """Return the id of the VM's root volume."""
    return str((await world.get("compute.vm", "v1", "acme"))["assigned"]["volumes"][0])


async def used(world: Cloud, kind: str, name: str, account: str = "") -> int:
    """Return how much disk of a vdc or pool is given out."""
    id = (await world.resource(kind, name, account)).id
    return (await world.store.write(lambda tx: tx.budget(space(id, "disk_gib"))))[1]


async def tenant(world: Cloud) -> Call:
    """Return a call by a user of the account."""
    account = (await world.get("tenancy.account", "acme"))["id"]
    ann = Principal(user_id="ann", user="ann", account_id=account, account="acme", role="r", rules=ALL)
    return world.call("acme", ann)


async def taken(world: Cloud, name: str, volume: str) -> None:
    await world.create(KIND, name, "acme", volume=volume, reason="it was seen calling home")
    await world.until(lambda: world.is_ready(KIND, name, "acme"), 10.0)


def test_a_snapshot_of_a_running_vm_outlives_vm_and_volumes() -> None:
    async def main() -> None:
        async with tenancy() as world:
            began = clock()
            volume = await root(world)
            await taken(world, "root", volume)
            await taken(world, "data", "data")
            found = await world.get(KIND, "root", "acme")
            assert found["assigned"]["vm"] == "v1"
            assert found["desired"]["reason"] == "it was seen calling home"
            assert found["observed"]["taken_at"]
            data = (await world.get("storage.volume", "data", "acme"))["id"]
            assert sorted(host(world).machines.copies.values()) == sorted([volume, data])
            assert clock() - began < 10
            await world.delete("compute.vm", "v1", "acme")
            await world.settle()
            await world.delete("storage.volume", "data", "acme")
            await world.settle()
            assert host(world).pool.volumes == {}
            assert len(host(world).pool.snapshots) == 2
            assert await world.is_ready(KIND, "root", "acme")
            for name in ("root", "data"):
                await world.delete(KIND, name, "acme")
            await world.settle()
            assert host(world).pool.snapshots == {}

    run(main)


def test_it_is_charged_to_the_quota_and_the_pool_until_it_is_gone() -> None:
    async def main() -> None:
        async with tenancy() as world:
            pool = (await world.list("storage.pool"))[0]["name"]
            scopes = (("tenancy.vdc", "main", "acme"), ("storage.pool", pool, ""))
            before = [await used(world, *scope) for scope in scopes]
            await taken(world, "data", "data")
            assert [await used(world, *scope) for scope in scopes] == [each + 2 for each in before]
            quota = {"disk_gib": before[0] + 3}
            await world.patch("tenancy.vdc", "main", "acme", quota=quota)
            with pytest.raises(QuotaExceeded):
                await world.create(KIND, "more", "acme", volume="data")
            await world.delete(KIND, "data", "acme")
            await world.settle()
            assert [await used(world, *scope) for scope in scopes] == before

    run(main)


def test_a_volume_that_is_deleted_at_once_waits_for_its_copy() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create(KIND, "root", "acme", volume=await root(world))
            await world.delete("compute.vm", "v1", "acme")
            await world.until(lambda: world.is_ready(KIND, "root", "acme"), 60.0)
            await world.settle()
            assert not await world.exists("compute.vm", "v1", "acme")
            assert len(host(world).pool.snapshots) == 1

    run(main)


def test_a_lost_one_is_told_and_never_made_anew() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await taken(world, "data", "data")
            ((id, machine),) = world.hosts.items()
            await world.stop_agent(id)
            machine.pool.snapshots.clear()
            await world.start_agent(id)
            await world.settle()
            (found,) = (await world.get(KIND, "data", "acme"))["conditions"]
            assert (found["status"], found["reason"]) == ("false", "SnapshotLost")
            assert machine.pool.snapshots == {}

    run(main)


def test_a_copy_that_fails_is_tried_again_and_says_why_meanwhile() -> None:
    async def main() -> None:
        async with tenancy() as world:
            vm = (await world.get("compute.vm", "v1", "acme"))["id"]
            host(world).machines.refuse("copy_disk", vm, DriverError("CopyFailed", "no"))
            await world.create(KIND, "data", "acme", volume="data")

            async def said() -> bool:
                return bool((await world.get(KIND, "data", "acme"))["conditions"][0]["reason"] == "CopyFailed")

            await world.until(said, 10.0)
            host(world).machines.refuse("copy_disk", vm, None)
            await world.until(lambda: world.is_ready(KIND, "data", "acme"), 120.0)

    run(main)


def test_a_volume_starts_as_a_copy_where_the_snapshot_is_and_then_needs_it_no_more() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await taken(world, "data", "data")
            with pytest.raises(Invalid, match="2 GiB"):
                await world.create("storage.volume", "small", "acme", size_gib=1, snapshot="data")
            with pytest.raises(Invalid, match="not from both"):
                await world.create("storage.volume", "both", "acme", size_gib=2, snapshot="data", image="tiny")
            await world.create("storage.volume", "again", "acme", size_gib=3, snapshot="data")
            await world.until(lambda: world.is_ready("storage.volume", "again", "acme"), 10.0)
            await world.settle()
            await world.delete(KIND, "data", "acme")
            await world.settle()
            assert not await world.exists(KIND, "data", "acme")
            await world.create("compute.vm", "v2", "acme", volumes=[{"volume": "again"}])
            await world.until(lambda: world.is_ready("compute.vm", "v2", "acme"))

    run(main)


def test_what_nobody_made_yet_cannot_be_kept_and_an_operators_evidence_stays() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("storage.volume", "new", "acme", size_gib=1)
            with pytest.raises(Conflict, match="not made yet"):
                await world.create(KIND, "new", "acme", volume="new")
            await taken(world, "data", "data")
            with pytest.raises(Invalid, match="cannot be changed"):
                await world.patch(KIND, "data", "acme", reason="another")
            with pytest.raises(Denied, match="operator keeps"):
                await world.servers[0].surface.delete(await tenant(world), KIND, "data")

    run(main)


def test_the_disk_of_an_appliance_is_copied_and_read_by_an_operator_only() -> None:
    async def main() -> None:
        async with cloud(1, router="single", router_idle_s=60, public_range="203.0.113.0/29") as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            (router,) = [
                each for each in await world.store.list(Filter(kind="compute.vm")) if each.owner != each.account_id
            ]
            volume = router.assigned.volumes[0]
            ann, surface = await tenant(world), world.servers[0].surface
            with pytest.raises(Denied, match="appliance"):
                await surface.create(ann, KIND, b'{"name":"e1","desired":{"volume":"%s"}}' % volume.encode())
            await taken(world, "e1", volume)
            body = b'{"name":"mine","desired":{"snapshot":"e1","size_gib":8}}'
            with pytest.raises(Denied, match="appliance"):
                await surface.create(ann, "storage.volume", body)

    run(main)


def test_a_full_pool_is_told_and_keeps_no_volume_from_going() -> None:
    async def main() -> None:
        async with tenancy() as world:
            vm = (await world.get("compute.vm", "v1", "acme"))["id"]
            host(world).machines.refuse("copy_disk", vm, DiskFull("the pool has no room"))
            await world.create(KIND, "data", "acme", volume="data")

            async def said() -> bool:
                return bool((await world.get(KIND, "data", "acme"))["conditions"][0]["reason"] == "DiskFull")

            await world.until(said, 10.0)
            await world.patch("compute.vm", "v1", "acme", volumes=[])
            await world.settle()
            await world.delete(KIND, "data", "acme")
            await world.delete("storage.volume", "data", "acme")

    run(main)


def test_many_at_once_take_turns_and_let_everything_else_go_on() -> None:
    async def main() -> None:
        async with tenancy() as world:
            host(world).machines.latency = msgspec.structs.replace(host(world).machines.latency, copy_s=20.0)
            names = [f"s{number}" for number in range(20)]
            for name in names:
                await world.create(KIND, name, "acme", volume="data")
            await world.patch("compute.vm", "v1", "acme", isolated="yes")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"), 2.0)
            for name in names:
                await world.until(functools.partial(world.is_ready, KIND, name, "acme"), 600.0)

    run(main)


def test_an_agent_that_dies_while_it_copies_leaves_nothing_and_the_next_one_says_its_own_moment() -> None:
    async def main() -> None:
        async with tenancy() as world:
            ((id, machine),) = world.hosts.items()
            machine.machines.latency = msgspec.structs.replace(machine.machines.latency, copy_s=20.0)
            await world.create(KIND, "data", "acme", volume="data")
            asked = clock()
            await world.until(lambda: said_copying(world), 5.0)
            await asyncio.sleep(10.0)  # virtual seconds: it is in the middle
            await world.stop_agent(id)
            assert machine.pool.snapshots == {}
            await world.start_agent(id)
            await world.until(lambda: world.is_ready(KIND, "data", "acme"), 120.0)
            (fact,) = machine.pool.snapshots.values()
            assert fact.taken_at >= asked + 10.0

    async def said_copying(world: Cloud) -> bool:
        return bool((await world.get(KIND, "data", "acme"))["conditions"][0]["reason"] == "Copying")

    run(main)
