"""NICs and disks come and go while a VM runs; every other one stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pileus.kernel.errors import Conflict, Invalid
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

A, B, C = {"network": "default"}, {"network": "back", "address": "10.2.0.9"}, {"network": "default"}


@contextlib.asynccontextmanager
async def tenancy(*nics: dict[str, str]) -> AsyncIterator[Cloud]:
    """Give a cloud with a second network and a VM with these NICs."""
    async with cloud() as world:
        await world.create("tenancy.account", "acme")
        await world.create("network.network", "back", "acme", range="10.2.0.0/24", first="10.2.0.5", last="10.2.0.20")
        await world.create("compute.vm", "v1", "acme", nics=list(nics))
        await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)


async def ports(world: Cloud) -> list[tuple[str, str]]:
    """Return id and address of the VM's ports, in the order of its NICs, once the machine has exactly those."""
    await world.settle()
    vm = await world.get("compute.vm", "v1", "acme")
    (machine,) = next(iter(world.hosts.values())).machines.machines.values()
    assert sorted(nic.id for nic in machine.spec.nics) == sorted(vm["assigned"]["ports"])
    assert sorted(next(iter(world.hosts.values())).switch.ports) == sorted(vm["assigned"]["ports"])
    found = [await world.store.get(id) for id in vm["assigned"]["ports"]]
    return [(port.id, port.assigned.address) for port in found]


async def wish(world: Cloud, *nics: dict[str, Any]) -> None:
    """Let the VM have these NICs."""
    await world.patch("compute.vm", "v1", "acme", nics=list(nics))


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_any_nic_can_go_and_come_back_and_the_others_stay(gone: int) -> None:
    async def main() -> None:
        async with tenancy(A, B, C) as world:
            before = await ports(world)
            nics = [A, B, C]
            left = [nic for position, nic in enumerate(nics) if position != gone]
            await wish(world, *left)
            after = await ports(world)
            assert set(after) < set(before), "those that stay keep port and address"
            assert [address for _, address in after if address.startswith("10.2")] == ["10.2.0.9"][: gone != 1]
            await wish(world, *nics)
            again = await ports(world)
            assert set(after) < set(again)
            assert len({id for id, _ in again}) == 3
            machine = next(iter(next(iter(world.hosts.values())).machines.machines.values()))
            assert machine.boots == 1

    run(main)


def test_nics_in_another_order_are_the_same_nics() -> None:
    async def main() -> None:
        async with tenancy(A, B) as world:
            before = await ports(world)
            await wish(world, B, A)
            assert await ports(world) == before[::-1]

    run(main)


def test_a_nic_that_is_called_back_before_the_guest_let_go_keeps_its_port() -> None:
    async def main() -> None:
        async with tenancy(A, B) as world:
            before = await ports(world)
            (machine,) = next(iter(world.hosts.values())).machines.machines.values()
            machine.deaf = True
            await wish(world, A)
            await wish(world, A, B)
            assert await ports(world) == before

    run(main)


def test_an_address_cannot_move_to_another_nic_before_the_first_let_go_of_it() -> None:
    async def main() -> None:
        async with tenancy(A, B) as world:
            moved = {"network": "back", "extra_addresses": ["10.2.0.9"]}
            with pytest.raises(
                Conflict, match=r"vm v1 still has 10.2.0.9 of network back, on another NIC; detach that"
            ):
                await wish(world, A, moved)
            await wish(world, A)
            await ports(world)
            await wish(world, A, moved)
            assert len(await ports(world)) == 2

    run(main)


def test_what_a_nic_cannot_have_is_refused_with_what_it_can() -> None:
    async def main() -> None:
        async with tenancy(A, B) as world:
            with pytest.raises(
                Invalid, match=r"10.2.0.4 is outside of 10.2.0.5 to 10.2.0.20, which network back gives out"
            ):
                await wish(world, A, B, {"network": "back", "address": "10.2.0.4"})
            with pytest.raises(Invalid, match=r"10.2.0.12 is given twice"):
                await wish(world, A, B, *[{"network": "back", "address": "10.2.0.12"}] * 2)
            with pytest.raises(Invalid, match="there is no network 'nowhere'"):
                await wish(world, A, B, {"network": "nowhere"})
            assert len(await ports(world)) == 2

    run(main)


def test_nics_of_a_vm_without_a_host_give_back_what_they_asked_for() -> None:
    async def main() -> None:
        async with tenancy(A) as world:
            await world.patch("infra.host", "host0", scheduling="cordoned")
            await world.settle()
            await world.create("compute.vm", "v2", "acme", nics=[B, A])
            await world.settle()
            await world.patch("compute.vm", "v2", "acme", nics=[A])
            await wish(world, A, B)
            assert [address for _, address in await ports(world)][1] == "10.2.0.9"

    run(main)


def test_a_vm_is_not_ready_while_a_nic_waits_for_its_network_and_runs_on() -> None:
    async def main() -> None:
        async with cloud(1, public_range="203.0.113.0/29", router_image="missing") as world:
            await world.create("tenancy.account", "acme")
            await world.create("network.network", "far", "acme", range="10.2.0.0/24", router="single")
            await world.create("compute.vm", "v1", "acme", nics=[A])
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            (machine,) = next(iter(world.hosts.values())).machines.machines.values()
            await wish(world, A, {"network": "far"})
            await world.settle()
            said = (await world.get("compute.vm", "v1", "acme"))["conditions"][0]
            assert (said["status"], said["reason"]) == ("false", "NetworkNotServed")
            assert "network far is not served yet" in said["message"]
            assert (machine.state, machine.boots, len(machine.spec.nics)) == ("running", 1, 1)
            await wish(world, A)
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))

    run(main)
