"""A stopped VM gets another size; its root volume stays, or grows when asked."""

from __future__ import annotations

import pytest

from pileus.kernel.errors import Conflict, Invalid
from tests.cloud.world import GIB, Cloud, cloud
from tests.virtual_time import run


async def _is(world: Cloud, power: str) -> bool:
    return bool((await world.get("compute.vm", "web", "acme"))["observed"]["power"] == power)


def test_a_stopped_vm_takes_another_offering_and_keeps_its_disk() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme", offering="tiny")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            with pytest.raises(Conflict, match="must be stopped"):
                await world.patch("compute.vm", "web", "acme", offering="medium")
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await world.until(lambda: _is(world, "stopped"))
            await world.patch("compute.vm", "web", "acme", offering="medium", power="running")
            await world.until(lambda: _is(world, "running"))
            vm = await world.get("compute.vm", "web", "acme")
            assert (vm["observed"]["vcpus"], vm["observed"]["memory_mib"]) == (2, 2048)
            assert vm["assigned"]["disk_gib"] == 1

    run(main)


def test_a_root_volume_grows_while_its_vm_is_stopped_and_never_shrinks() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme", offering="tiny")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.patch("compute.vm", "web", "acme", disk_gib=3)
            await world.settle()
            host = next(iter(world.hosts.values()))
            assert [volume.size_bytes for volume in host.pool.volumes.values()] == [GIB]
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await world.until(lambda: _is(world, "stopped"))
            await world.patch("compute.vm", "web", "acme", power="running")
            await world.until(lambda: _is(world, "running"))
            assert [volume.size_bytes for volume in host.pool.volumes.values()] == [3 * GIB]
            with pytest.raises(Invalid, match="may only grow"):
                await world.patch("compute.vm", "web", "acme", disk_gib=2)

    run(main)


def test_what_is_in_use_names_the_vm_and_not_a_part_of_it() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            with pytest.raises(Conflict, match="used by vm web"):
                await world.delete("network.network", "default", "acme")

    run(main)
