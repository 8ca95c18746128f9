"""What tests of requests for machines have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from tests.cloud.test_vm_life import tenancy
from tests.cloud.world import Cloud

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


async def has_vms(world: Cloud, count: int) -> bool:
    return len(await vms(world)) == count
