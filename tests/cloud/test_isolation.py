"""Isolation of VMs: their NICs pass nothing, whatever runs, comes or restarts, and everybody is told who did it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Denied
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

SOON_S = 2.0
ALL = (Rule(kinds=("*",), verbs=("get", "create", "update", "delete")),)


@contextlib.asynccontextmanager
async def tenancy() -> AsyncIterator[Cloud]:
    """Give a cloud with a VM of two NICs."""
    async with cloud() as world:
        await world.create("tenancy.account", "acme")
        nics = [{"network": "default"}, {"network": "default"}]
        await world.create("compute.vm", "v1", "acme", nics=nics)
        await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
        await world.settle()
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)


async def tenant(world: Cloud, user: str) -> Principal:
    account = await world.resource("tenancy.account", "acme")
    return Principal(user_id=f"id-of-{user}", user=user, account_id=account.id, account="acme", role="r", rules=ALL)


async def wish(world: Cloud, principal: Principal | None, **desired: Any) -> None:
    """Patch the VM as this caller; None: an operator."""
    call = world.call("acme") if principal is None else world.call("acme", principal)
    await world.servers[0].surface.patch(call, "compute.vm", "v1", msgspec.json.encode({"desired": desired}))


async def vm(world: Cloud) -> Resource:
    return await world.resource("compute.vm", "v1", "acme")


def isolated(world: Cloud, resource: Resource) -> set[bool]:
    """Return what the switch has of the ports of the VM."""
    (host,) = world.hosts.values()
    return {host.switch.ports[port].isolated for port in resource.assigned.ports}


async def ready(world: Cloud) -> tuple[str, str, str]:
    """Return the VM's condition Ready, once it is as wished."""
    await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"), SOON_S)
    condition = (await vm(world)).ready
    assert condition is not None
    return condition.status, condition.reason, condition.message


def test_a_vm_is_isolated_and_let_go_within_two_seconds_and_goes_on_running() -> None:
    async def main() -> None:
        async with tenancy() as world:
            boots = (await vm(world)).observed.boots
            await wish(world, await tenant(world, "ann"), isolated="yes")
            assert await ready(world) == ("true", "Isolated", "nothing passes its NICs; isolated by user ann")
            assert isolated(world, await vm(world)) == {True}
            await wish(world, await tenant(world, "bob"), isolated="no")
            assert (await ready(world))[1:] == ("AsDesired", "")
            found = await vm(world)
            assert (isolated(world, found), found.assigned.isolated_by) == ({False}, "")
            assert (found.observed.boots, found.observed.power) == (boots, "running")

    run(main)


def test_what_an_operator_isolated_only_an_operator_lifts() -> None:
    async def main() -> None:
        async with tenancy() as world:
            ann = await tenant(world, "ann")
            await wish(world, None, isolated="yes")
            assert "isolated by operator" in (await ready(world))[2]
            with pytest.raises(Denied, match="operator isolated"):
                await wish(world, ann, isolated="no")
            await wish(world, ann, shutdown_timeout_s=5)  # all else is the tenant's still
            await wish(world, ann, isolated="yes")
            assert (await vm(world)).assigned.isolated_by.startswith("operator ")
            assert isolated(world, await vm(world)) == {True}
            await wish(world, None, isolated="no")
            assert (await ready(world))[1] == "AsDesired"

    run(main)


def test_nics_that_come_are_isolated_from_the_first_frame_and_a_vm_can_begin_so() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await wish(world, None, isolated="yes", nics=[{"network": "default"}] * 3)
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            found = await vm(world)
            assert (len(found.assigned.ports), isolated(world, found)) == (3, {True})
            await world.create("compute.vm", "v2", "acme", isolated="yes")
            await world.until(lambda: world.is_ready("compute.vm", "v2", "acme"))
            second = await world.resource("compute.vm", "v2", "acme")
            assert second.ready is not None
            assert (isolated(world, second), second.ready.reason) == ({True}, "Isolated")
            await world.create("compute.vm", "v3", "acme", isolated="yes", nics=[])
            await world.until(lambda: world.is_ready("compute.vm", "v3", "acme"))

    run(main)


def test_isolation_outlives_the_agent_the_switch_and_the_vms_power() -> None:
    async def main() -> None:
        async with tenancy() as world:
            ((id, host),) = world.hosts.items()
            await wish(world, None, isolated="yes")
            await ready(world)
            await world.stop_agent(id)
            host.switch.crash()
            await world.start_agent(id)
            await world.settle()
            assert isolated(world, await vm(world)) == {True}
            await wish(world, None, power="stopped")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            await wish(world, None, power="running")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            assert isolated(world, await vm(world)) == {True}

    run(main)


def test_an_appliance_of_the_cloud_is_isolated_by_an_operator_only_and_stays_so() -> None:
    async def main() -> None:
        async with cloud(1, router="single", router_idle_s=60, public_range="203.0.113.0/29") as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "v1", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            (router,) = [
                each for each in await world.store.list(Filter(kind="compute.vm")) if each.owner != each.account_id
            ]
            surface, body = world.servers[0].surface, b'{"desired":{"isolated":"yes"}}'
            with pytest.raises(Denied, match="appliance of the cloud"):
                await surface.patch(world.call("acme", await tenant(world, "ann")), "compute.vm", router.id, body)
            await surface.patch(world.call("acme"), "compute.vm", router.id, body)
            await world.settle()
            node = await world.store.get(router.owner)
            await world.store.write(lambda tx: tx.enqueue(node.id))
            await world.create("compute.vm", "v2", "acme")  # its router gets another document
            await world.settle()
            found = await world.store.get(router.id)
            assert isolated(world, found) == {True}
            assert (found.desired.isolated, found.assigned.isolated_by) == ("yes", "operator admin")

    run(main)
