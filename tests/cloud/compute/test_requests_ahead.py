"""Requests that begin later: room is promised that others will leave, held by nobody twice, and refused when they stay."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from tests.cloud.compute.machine_world import CHARGES, KIND, PLENTY, ask, comes_to, request, rows, running, site, vms
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.test_concurrency import Engines, crowded, engines
from tests.cloud.world import Cloud, leftovers
from tests.postgres import postgres, postgres_url
from tests.virtual_time import clock, run

from pileus.compute.request.plan import LATE_S
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict

__all__ = ["engines", "postgres", "postgres_url"]

HELD = sa.text("SELECT space, start, until, amount FROM promise")
BOUND = sa.text("SELECT space, until, amount FROM charge WHERE until >= 0")
CAPACITY = sa.text("SELECT space, capacity FROM budget")


async def three_fifths(world: Cloud) -> int:
    """Return a memory size of which a host holds one."""
    free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
    return int(free * 3 // 5)


async def check_ahead(world: Cloud) -> None:
    """At no moment from now on more is charged and promised than there is; what is late is about to be given back."""
    now = clock()
    capacity: dict[str, int] = dict(await world.store.fetch(CAPACITY))
    holds = [(where, now, until or float("inf"), amount) for where, until, amount in await world.store.fetch(BOUND)]
    for where, start, until, amount in await world.store.fetch(HELD):
        holds.append((where, max(start, now), until or float("inf"), amount))
    for where, moment in {(where, start) for where, start, _, _ in holds}:
        level = sum(amount for space, start, until, amount in holds if space == where and start <= moment < until)
        assert level <= capacity[where], where


@contextlib.asynccontextmanager
async def watched(hosts: int) -> AsyncIterator[Cloud]:
    """Give a cloud in which it is looked, all the time, that nothing is given twice."""
    async with site(hosts=hosts) as world:
        ledger = Ledger()

        async def watch() -> None:
            while True:
                await check(world, ledger, full=False)
                await check_ahead(world)
                await asyncio.sleep(5.0)

        watcher = asyncio.create_task(watch())
        yield world
        assert not watcher.done(), watcher.exception()
        watcher.cancel()


def test_room_that_others_leave_is_promised_and_nobody_else_gets_it() -> None:
    async def main() -> None:
        async with watched(1) as world:
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            await ask(world, "first", duration_s=100, **size)
            ends_at = (await comes_to(world, "running", "first"))["observed"]["ends_at"]
            await ask(world, "second", start_within_s=3600, duration_s=100, **size)
            found = await comes_to(world, "reserved", "second")
            assert (found["observed"]["starts_at"], found["conditions"][0]["reason"]) == (ends_at, "Reserved")
            await ask(world, "third", start_within_s=3600, **size)
            assert (await comes_to(world, "reserved", "third"))["observed"]["starts_at"] > found["observed"]["ends_at"][
                :19
            ]
            await ask(world, "fourth", start_within_s=300, **size)  # the third has no end
            await world.create("compute.vm", "greedy", "acme", nics=[], **size)
            begun: dict[str, str] = {}
            while len(begun) < 2:
                for name in {"second", "third"} - begun.keys():
                    if (await request(world, name))["observed"]["phase"] == "running":
                        begun[name] = iso(clock())
                await asyncio.sleep(2.0)
            assert ends_at <= begun["second"] < found["observed"]["ends_at"] <= begun["third"]
            assert not await world.is_ready("compute.vm", "greedy", "acme")
            await world.delete("compute.vm", "greedy", "acme")
            assert (await request(world, "fourth"))["conditions"][0]["reason"] == "NoCapacity"
            await comes_to(world, "refused", "fourth")

    run(main)


def test_until_it_starts_its_room_is_for_whoever_ends_before() -> None:
    async def main() -> None:
        async with watched(1) as world:
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            start = clock() + 300
            await ask(world, "later", start_at=iso(start), **size)
            await comes_to(world, "reserved", "later")
            await ask(world, "long", duration_s=2000, **size)
            await comes_to(world, "refused", "long")
            await ask(world, "short", duration_s=100, **size)
            await comes_to(world, "running", "short")
            with pytest.raises(Conflict) as refused:
                await world.patch(KIND, "short", "acme", duration_s=2000)
            assert refused.value.code == "promised"
            await world.patch(KIND, "short", "acme", duration_s=250)
            assert running(world) == 1
            await comes_to(world, "ended", "short")
            assert clock() > start - 100
            await comes_to(world, "running", "later")
            assert start <= clock() < start + 10

    run(main)


def test_one_after_another_without_a_gap() -> None:
    async def main() -> None:
        async with watched(2) as world:
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            begin = clock() + 40
            for slot in range(3):
                await ask(world, f"slot{slot}", count=2, start_at=iso(begin + 90 * slot), duration_s=90, **size)
            for slot in range(3):
                await comes_to(world, "running", f"slot{slot}")
                assert 0 <= clock() - begin - 90 * slot < 20
            await comes_to(world, "ended", "slot2")
            assert await leftovers(world) == {}

    run(main)


def test_what_should_have_ended_and_has_not_is_waited_for_and_then_told() -> None:
    async def main() -> None:
        async with site(hosts=1) as world:
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            await ask(world, "first", duration_s=100, **size)
            await comes_to(world, "running", "first")
            await ask(world, "second", start_within_s=150, **size)
            await comes_to(world, "reserved", "second")
            await world.cut_link(next(iter(world.hosts)))
            end = (await request(world, "first"))["assigned"]["end"]
            await world.until(functools.partial(_says, world, "second", "NotFree"), 400.0)
            assert clock() - end < 10
            await comes_to(world, "refused", "second", limit_s=200)
            assert clock() - end >= LATE_S
            assert "should have ended" in (await request(world, "second"))["conditions"][0]["message"]
            world.heal_link(next(iter(world.hosts)))
            await world.until(functools.partial(_is_over, world, "first"), 300.0)
            assert await leftovers(world) == {}

    run(main)


async def _says(world: Cloud, name: str, reason: str) -> bool:
    return bool((await request(world, name))["conditions"][0]["reason"] == reason)


async def _is_over(world: Cloud, name: str) -> bool:
    return (await request(world, name))["observed"]["phase"] in ("ended", "refused")


def test_of_as_many_as_can_be_those_that_find_their_room_taken_go_elsewhere() -> None:
    async def main() -> None:
        async with site(hosts=2) as world:
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            await ask(world, "first", count=2, duration_s=100, **size)
            await comes_to(world, "running", "first")
            await ask(world, "second", count=2, start_within_s=3000, mode="best-effort", **size)
            await comes_to(world, "reserved", "second")
            stuck = sorted(world.hosts)[0]
            await world.cut_link(stuck)
            await comes_to(world, "running", "second", limit_s=400)
            await world.until(functools.partial(_is_missing, world, "second", "NotFree"))
            assert running_on(world, stuck) == 1
            await world.add_host("more", cpus=32, memory_mib=262_144)
            await world.until(lambda: world.is_ready(KIND, "second", "acme"), 300.0)
            assert stuck not in {vm.host for vm in await vms(world) if vm.labels["set"] == "second"}
            world.heal_link(stuck)

    run(main)


def running_on(world: Cloud, host: str) -> int:
    return sum(one.state == "running" for one in world.hosts[host].machines.machines.values())


async def _is_missing(world: Cloud, name: str, reason: str) -> bool:
    return reason in {each["reason"] for each in (await request(world, name))["observed"]["missing"]}


def test_a_promise_goes_with_its_request_and_with_a_server_nothing_goes() -> None:
    async def main() -> None:
        async with site() as world:
            before = await world.store.fetch(CHARGES)
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            start = clock() + 100
            await ask(world, "dropped", count=2, start_at=iso(start), **size)
            await comes_to(world, "reserved", "dropped")
            assert len(await world.store.fetch(HELD)) == 6
            await world.delete(KIND, "dropped", "acme")

            async def are_gone() -> bool:
                return not await world.store.fetch(HELD) and await world.store.fetch(CHARGES) == before

            await world.until(are_gone)
            await ask(world, count=2, start_at=iso(start), duration_s=100, **size)
            await comes_to(world, "reserved")
            await world.stop_server()
            await asyncio.sleep(20)
            await world.start_server("two")
            assert {row.assigned.promised for row in await rows(world)} == {"yes"}
            await comes_to(world, "running", limit_s=400)
            assert {row.assigned.promised for row in await rows(world)} == {"no"}
            assert start <= clock() < start + 20
            await comes_to(world, "ended")

    run(main)


@pytest.mark.long
@pytest.mark.parametrize("seed", [3, 8])
def test_at_every_moment_of_many_requests_there_is_room_for_all_that_is_held_and_promised(
    engines: Engines, seed: int
) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        async with crowded(engines, hosts=3) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota=PLENTY)
            size = await three_fifths(world)
            ledger = Ledger()
            for number in range(25):
                await world.servers[number % len(world.servers)].surface.create(
                    world.call("acme"), KIND, _wish(chance, number, size)
                )
                await asyncio.sleep(chance.choice([0, 0, 5, 40]))
                await check(world, ledger, full=False)
                await check_ahead(world)
            phases = [each["observed"]["phase"] for each in await world.list(KIND)]
            assert phases.count("reserved") + phases.count("running") > 3
            assert "refused" in phases
            for _ in range(30):
                await asyncio.sleep(40)
                await check(world, ledger, full=False)
                await check_ahead(world)
            for each in await world.list(KIND):
                await world.delete(KIND, each["name"], "acme")
            await world.settle()
            await check(world, ledger, full=True)
            await check_truth(world)
            await clear(world)

    run(main)


def _wish(chance: random.Random, number: int, size: int) -> bytes:
    wish: dict[str, Any] = {
        "nics": [],
        "count": chance.choice([1, 2, 3]),
        "mode": chance.choice(["all-or-nothing", "best-effort"]),
        "service": chance.choice(["guaranteed", "guaranteed", "best-effort"]),
        "vcpus": 1,
        "memory_mib": chance.choice([size, size // 2]),
        "duration_s": chance.choice([0, 60, 200, 500, 500]),
    }
    match chance.choice(["now", "within", "at"]):
        case "within":
            wish["start_within_s"] = chance.choice([100, 800])
        case "at":
            wish["start_at"] = iso(clock() + chance.choice([50, 300]))
    return msgspec.json.encode({"name": f"r{number}", "desired": wish})
