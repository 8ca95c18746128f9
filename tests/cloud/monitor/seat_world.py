"""A cloud whose VMs need seats: who runs, who is held, and what must be true of that at any moment."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from tests.cloud.world import Cloud

from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter

ACCOUNT = "acme"
NEED = {"product": "db"}
QUOTA = {"vms": 100, "vcpus": 400, "memory_mib": 400_000, "volumes": 100, "disk_gib": 1000}


async def furnish(world: Cloud) -> None:
    """Make the account."""
    await world.create("tenancy.account", ACCOUNT)
    await world.patch("tenancy.vdc", "main", ACCOUNT, quota=QUOTA)


async def make_vm(world: Cloud, name: str, labels: dict[str, str] | None = None, **desired: Any) -> None:
    """Make a VM that needs a seat; ``labels``: another one."""
    body = {"name": name, "labels": NEED if labels is None else labels, "desired": desired}
    surface = world.servers[0].surface
    await surface.create(world.call(ACCOUNT), "compute.vm", msgspec.json.encode(body))


async def label(world: Cloud, name: str, labels: Mapping[str, str | None]) -> None:
    """Change the labels of a VM."""
    body = msgspec.json.encode({"labels": labels})
    await world.servers[0].surface.patch(world.call(ACCOUNT), "compute.vm", name, body)


async def license(world: Cloud, name: str = "db", **entitlement: Any) -> None:
    """Register an entitlement that VMs need."""
    wish = {"product": "Database", "limit": 1, "needed_by": NEED, **entitlement}
    await world.create("monitor.entitlement", name, ACCOUNT, **wish)
    await world.until(functools.partial(is_checked, world, name))


async def is_checked(world: Cloud, name: str) -> bool:
    """Tell whether all VMs heard of the entitlement."""
    found = await world.resource("monitor.entitlement", name, ACCOUNT)
    return found.observed is not None and bool(found.observed.checked == found.generation)


async def vms(world: Cloud) -> list[Resource]:
    """Return all VMs."""
    return await world.store.list(Filter(kind="compute.vm"))


def live(world: Cloud) -> set[str]:
    """Return the ids of the machines that run, as they are on the hosts, whatever anybody was told."""
    return {
        id
        for host in world.hosts.values()
        for id, machine in host.machines.machines.items()
        if machine.state in ("running", "paused")
    }


async def running(world: Cloud) -> list[str]:
    """Return the names of the VMs whose machines run."""
    there = live(world)
    return sorted(vm.name for vm in await vms(world) if vm.id in there)


async def are_running(world: Cloud, names: Iterable[str]) -> bool:
    """Tell whether just these run."""
    return await running(world) == sorted(names)


async def reason(world: Cloud, name: str) -> tuple[str, str]:
    """Return why a VM is as it is."""
    vm = await world.resource("compute.vm", name, ACCOUNT)
    assert vm.ready is not None
    return vm.ready.reason, vm.ready.message


async def check_books(world: Cloud) -> None:
    """Assert: seats and what they take agree, and no VM has two of one entitlement."""
    seats = [seat for seat in await world.store.list(Filter(kind="monitor.seat"), limit=1000) if not seat.deleting]
    pairs = Counter((seat.assigned.entitlement, seat.assigned.vm) for seat in seats)
    assert all(count == 1 for count in pairs.values()), pairs
    for each in await world.store.list(Filter(kind="monitor.entitlement")):
        held = sum(seat.assigned.units for seat in seats if seat.assigned.entitlement == each.id)
        if each.desired.enforcement == "hard":
            assert held <= each.desired.limit, f"{held} units of {each}"
        assert each.observed.used == held, f"{each.observed.used} noted, {held} held"
