"""Nodes of a simulated cloud that take requests, and what their roles did."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.cloud.invariants import Broken
from tests.cloud.world import Cloud
from tests.virtual_time import clock

from pileus.drivers.host.guest.base import GuestAnswer, GuestRequest
from pileus.drivers.host.guest.fake import FakeGuest
from pileus.drivers.host.guest.fake_node import FakeNode
from pileus.kernel.clock import iso
from pileus.kernel.kind import Resource

ACCOUNT, MANAGER, PACKAGE = "acme", "m", "p"


async def furnish(world: Cloud, nodes: int = 1) -> list[Resource]:
    """Make an account that consented to a manager, and nodes that are ready."""
    await world.create("tenancy.account", ACCOUNT)
    await world.create("fleet.manager", MANAGER)
    await world.create("fleet.consent", MANAGER, ACCOUNT, manager=MANAGER, nodes_max=1000)
    await world.create(
        "fleet.package", PACKAGE, manager=MANAGER, version="1", image="appliance", vcpus=1, memory_mib=64, nics=0
    )
    names = [f"node{number}" for number in range(nodes)]
    for name in names:
        await add_node(world, name)

    async def are_ready() -> bool:
        return all([await world.is_ready("fleet.node", name, ACCOUNT) for name in names])

    await world.until(are_ready, 600.0)
    return [await world.resource("fleet.node", name, ACCOUNT) for name in names]


async def add_node(world: Cloud, name: str) -> None:
    """Ask for a node."""
    await world.create("fleet.node", name, ACCOUNT, manager=MANAGER, package=PACKAGE)


async def ask(world: Cloud, node: str, payload: str = "", *, name: str = "", deadline_s: float = 0.0) -> dict[str, Any]:
    """Send a request."""
    wish: dict[str, Any] = {"node": node, "payload": payload}
    if deadline_s:
        wish["deadline"] = iso(clock() + deadline_s)
    return await world.create("fleet.request", name, ACCOUNT, **wish)


async def state_of(world: Cloud, name: str) -> str:
    """Return how far a request is."""
    return str((await world.get("fleet.request", name, ACCOUNT))["observed"]["state"])


async def settled(world: Cloud, name: str, limit_s: float = 120.0) -> str:
    """Wait until a request is settled, and return its state."""

    async def is_settled() -> bool:
        found = await world.get("fleet.request", name, ACCOUNT)
        return bool(found["assigned"]["settled_at"])

    await world.until(is_settled, limit_s)
    return await state_of(world, name)


@contextlib.contextmanager
def slow_nodes(most_s: Callable[[], float]) -> Iterator[None]:
    """Let nodes take time, before they begin a request and before their answer is heard; who is asked twice at once fails."""
    request = FakeGuest.request
    asked: Counter[tuple[int, str]] = Counter()

    async def slowly(guest: FakeGuest, machine: str, asking: GuestRequest) -> GuestAnswer:
        busy = id(guest), machine
        asked[busy] += 1
        try:
            if asked[busy] > 1:
                raise Broken(f"machine {machine} is asked {asking.id} while it does another request")
            await asyncio.sleep(most_s())
            answer = await request(guest, machine, asking)
            await asyncio.sleep(most_s())
            return answer
        finally:
            asked[busy] -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGuest, "request", slowly)
        yield


def disk_of(world: Cloud, node: Resource) -> FakeNode:
    """Return what a node has on its disk."""
    return world.hosts[node.host].guests.nodes.setdefault(node.assigned.vm, FakeNode())


def applied(world: Cloud, node: Resource) -> list[str]:
    """Return the ids of what a node's role did, in its order."""
    return [id for id, _ in disk_of(world, node).applied]
