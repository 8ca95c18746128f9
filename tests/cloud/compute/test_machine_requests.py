"""Requests for many machines: all or none of them, within their window, and none past their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from tests.cloud.test_vm_life import tenancy
from tests.cloud.world import Cloud, leftovers
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter

KIND = "compute.request"
PLENTY = {"vms": 2000, "vcpus": 4000, "memory_mib": 4_000_000, "volumes": 2000, "disk_gib": 4000}
CHARGES = sa.text("SELECT space, owner, amount FROM charge ORDER BY space, owner")


@contextlib.asynccontextmanager
async def site(hosts: int = 2, **more: Any) -> AsyncIterator[Cloud]:
    """Give a cloud whose account has a large quota."""
    async with tenancy(hosts, **more) as world:
        await world.patch("tenancy.vdc", "main", "acme", quota=PLENTY)
        yield world


async def ask(world: Cloud, name: str = "job", **desired: Any) -> dict[str, Any]:
    return await world.create(KIND, name, "acme", **{"nics": [], **desired})


async def request(world: Cloud, name: str = "job") -> dict[str, Any]:
    return await world.get(KIND, name, "acme")


async def comes_to(world: Cloud, phase: str, name: str = "job", limit_s: float = 300.0) -> dict[str, Any]:
    async def so() -> bool:
        return bool((await request(world, name))["observed"]["phase"] == phase)

    await world.until(so, limit_s)
    return await request(world, name)


async def rows(world: Cloud, name: str = "job") -> list[Resource]:
    return await world.store.list(
        Filter(kind="compute.placement", owner=(await request(world, name))["id"]), limit=2000
    )


async def vms(world: Cloud) -> list[Resource]:
    return await world.store.list(Filter(kind="compute.vm"), limit=2000)


def running(world: Cloud) -> int:
    """Return how many machines run on all hosts."""
    machines = [one for host in world.hosts.values() for one in host.machines.machines.values()]
    return sum(one.state == "running" for one in machines)


def test_machines_are_held_started_confirmed_and_gone_after_their_time() -> None:
    async def main() -> None:
        async with site() as world:
            before = await world.store.fetch(CHARGES)
            await ask(world, count=3, duration_s=600, warn_s=60)
            found = await comes_to(world, "running")
            assert found["conditions"][0]["status"] == "true"
            assert [row.assigned.state for row in await rows(world)] == ["confirmed"] * 3
            assert [vm.name for vm in await vms(world)] == ["job-0001", "job-0002", "job-0003"]
            assert running(world) == 3
            await comes_to(world, "ended", limit_s=700)
            assert running(world) == 0
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before
            assert {row.assigned.state for row in await rows(world)} == {"released"}

    run(main)
