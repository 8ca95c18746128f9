"""Requests decided by two servers on PostgreSQL at the same time: the last room is given once, and what fails is repeated."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.cloud.compute.machine_world import CHARGES, KIND, PLENTY, ask, comes_to, request, rows, running, vms
from tests.cloud.compute.test_machine_refusals import make_refuse
from tests.cloud.compute.test_requests_ahead import check_ahead, three_fifths
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.test_concurrency import crowded
from tests.cloud.virtual_postgres import VirtualPostgres
from tests.cloud.world import Cloud, leftovers
from tests.postgres import postgres, postgres_url
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso

__all__ = ["postgres", "postgres_url"]

pytestmark = pytest.mark.long

ASKED = 12


@contextlib.asynccontextmanager
async def site(url: str, hosts: int) -> AsyncIterator[Cloud]:
    """Give a cloud of two servers; at the end everything holds, is true, and can be deleted without rest."""
    async with crowded(lambda: VirtualPostgres(url), hosts=hosts) as world:
        await world.create("tenancy.account", "acme")
        await world.patch("tenancy.vdc", "main", "acme", quota=PLENTY)
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)


async def ask_at_once(world: Cloud, count: int, **desired: Any) -> list[str]:
    """Ask each of the servers by turns, all at the same moment; return the requests' names."""
    names = [f"r{number}" for number in range(count)]

    async def one(number: int, name: str) -> None:
        body = msgspec.json.encode({"name": name, "desired": {"nics": [], **desired}})
        await world.servers[number % len(world.servers)].surface.create(world.call("acme"), KIND, body)

    await asyncio.gather(*(one(number, name) for number, name in enumerate(names)))
    return names


async def _is_in(world: Cloud, name: str, *phases: str) -> bool:
    return (await request(world, name))["observed"]["phase"] in phases


async def phases_of(world: Cloud, names: list[str], *phases: str) -> list[str]:
    """Wait until each is in one of these phases, and return in which."""
    found = []
    for name in names:
        await world.until(functools.partial(_is_in, world, name, *phases), 300.0)
        found.append(str((await request(world, name))["observed"]["phase"]))
    return found


def test_of_many_at_once_as_many_run_as_there_is_room_for(postgres_url: str) -> None:
    async def main() -> None:
        async with site(postgres_url, 4) as world:
            size = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            names = await ask_at_once(world, ASKED, **size)
            phases = await phases_of(world, names, "running", "refused")
            assert sorted(phases) == ["refused"] * (ASKED - 4) + ["running"] * 4
            await check_ahead(world)

    run(main)


def test_of_many_at_once_each_moment_ahead_is_promised_once(postgres_url: str) -> None:
    async def main() -> None:
        async with site(postgres_url, 2) as world:
            size = {"vcpus": 1, "memory_mib": await three_fifths(world)}
            names = await ask_at_once(world, ASKED, start_within_s=350, duration_s=100, **size)
            await asyncio.sleep(30)
            await check_ahead(world)
            starts = sorted([(await request(world, name))["observed"]["starts_at"] for name in names])
            phases = await phases_of(world, names, "running", "reserved", "choosing")
            assert (phases.count("running"), phases.count("reserved")) == (2, 6), starts
            ended = await phases_of(world, names, "ended", "refused")
            assert sorted(ended) == ["ended"] * 8 + ["refused"] * 4
            await check_ahead(world)

    run(main)


def test_two_hundred_of_which_some_are_refused_leave_nothing(postgres_url: str) -> None:
    async def main() -> None:
        async with site(postgres_url, 20) as world:
            make_refuse(world, 10)
            before = await world.store.fetch(CHARGES)
            await ask(world, count=200)
            await comes_to(world, "refused")
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before

    run(main)


def test_guaranteed_machines_displace_others_whichever_server_decides(postgres_url: str) -> None:
    async def main() -> None:
        async with site(postgres_url, 2) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            size = {"vcpus": 1, "memory_mib": free // 4}
            await ask(world, "cheap", count=8, service="best-effort", **size)
            await comes_to(world, "running", "cheap")
            names = await ask_at_once(world, 3, duration_s=200, **size)
            await phases_of(world, names, "running")
            assert running(world) == 8
            assert sum(row.assigned.state == "preempted" for row in await rows(world, "cheap")) == 3
            await phases_of(world, names, "ended")
            await world.until(lambda: world.is_ready(KIND, "cheap", "acme"))
            assert running(world) == 8

    run(main)


def test_a_server_that_dies_leaves_what_it_promised_to_the_other(postgres_url: str) -> None:
    async def main() -> None:
        async with site(postgres_url, 2) as world:
            start = clock() + 60
            await ask(world, count=20, start_at=iso(start), duration_s=200)
            await comes_to(world, "reserved")
            await world.stop_server()
            await comes_to(world, "running")
            assert start <= clock() < start + 60
            assert len(await vms(world)) == 20
            await comes_to(world, "ended")
            assert await leftovers(world) == {}

    run(main)
