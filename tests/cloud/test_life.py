"""A VM's life in a simulated cloud, from wish to nothing left."""

from __future__ import annotations

from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import run


def test_a_vm_starts_with_its_disk_and_port_and_leaves_nothing_when_deleted() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme", nics=[{"network": "default", "address": "10.1.1.10"}])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            vm = await world.get("compute.vm", "web", "acme")
            assert vm["observed"]["power"] == "running"
            assert vm["observed"]["addresses"] == ["10.1.1.10"]
            host = world.hosts[vm["host"]]
            assert [machine.state for machine in host.machines.machines.values()] == ["running"]
            await world.delete("compute.vm", "web", "acme")
            await world.until(lambda: _gone(world, "web"))
            assert await leftovers(world) == {}

    run(main)


async def _gone(world: Cloud, name: str) -> bool:
    return not await world.exists("compute.vm", name, "acme")
