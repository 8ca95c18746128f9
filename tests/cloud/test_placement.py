"""Where VMs go with their volumes, and that a VM that cannot start is refused or says why."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from pileus.kernel.errors import Conflict, Invalid
from tests.cloud.test_vm_life import start, tenancy, vm
from tests.cloud.world import GIB, Cloud
from tests.virtual_time import run


async def gone(world: Cloud, *names: str) -> None:
    for name in names:
        await world.delete("compute.vm", name, "acme")

    async def so() -> bool:
        return not [name for name in names if await world.exists("compute.vm", name, "acme")]

    await world.until(so)


def test_volumes_that_lie_on_two_hosts_are_not_given_to_one_vm() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            for name in ("a", "b"):
                await world.create("storage.volume", name, "acme", size_gib=1)
                await start(world, f"v{name}", nics=[], volumes=[{"volume": name}])
            hosts = {(await world.get("storage.volume", name, "acme"))["host"] for name in ("a", "b")}
            assert len(hosts) == 2
            await gone(world, "va", "vb")
            both = [{"volume": "a"}, {"volume": "b"}]
            with pytest.raises(Conflict) as refused:
                await world.create("compute.vm", "vc", "acme", nics=[], volumes=both)
            assert (refused.value.code, refused.value.field) == ("elsewhere", "desired.volumes[1].volume")

    run(main)


def test_a_vm_goes_where_there_is_room_for_its_data_volume_too() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.patch("storage.pool", "host0", overcommit_percent=10)
            await world.patch("infra.host", "host1", memory_reserve_mib=100_000)
            await world.patch("tenancy.vdc", "main", "acme", quota={"disk_gib": 100_000})
            await world.settle()
            await world.create("storage.volume", "big", "acme", size_gib=5000)
            found = await start(world, "web", nics=[], volumes=[{"volume": "big"}])
            assert found["host"] == (await world.get("infra.host", "host1"))["id"]

    run(main)


def test_two_vms_placed_at_once_do_not_share_the_room_of_one_pool() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.patch("tenancy.vdc", "main", "acme", quota={"disk_gib": 100_000})
            await world.patch("infra.host", "host1", memory_reserve_mib=100_000)
            await world.patch("storage.pool", "host0", overcommit_percent=100)
            await world.settle()
            for name in ("a", "b"):
                await world.create("storage.volume", name, "acme", size_gib=6000)
            for name in ("a", "b"):
                await world.create("compute.vm", f"v{name}", "acme", nics=[], volumes=[{"volume": name}])
            await world.until(lambda: world.is_ready("compute.vm", "va", "acme"))
            await world.until(lambda: world.is_ready("compute.vm", "vb", "acme"))
            assert (await vm(world, "va"))["host"] != (await vm(world, "vb"))["host"]

    run(main)


def test_a_vm_says_what_its_data_volume_waits_for() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.patch("storage.pool", "host0", overcommit_percent=10)
            await world.patch("tenancy.vdc", "main", "acme", quota={"disk_gib": 100_000})
            await world.settle()
            await start(world, "web", nics=[])
            await world.create("storage.volume", "data", "acme", size_gib=5000)
            await world.patch("compute.vm", "web", "acme", volumes=[{"volume": "data"}])
            await asyncio.sleep(60)
            assert (await vm(world))["conditions"][0]["reason"] == "PoolFull"
            await world.patch("storage.pool", "host0", overcommit_percent=200)
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))

    run(main)


def test_nothing_is_made_of_an_image_that_is_not_available_or_larger() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("storage.image", "late", append="quiet")
            for kind, wish in (("compute.vm", {"nics": []}), ("storage.volume", {"size_gib": 1})):
                with pytest.raises(Conflict) as refused:
                    await world.create(kind, "new", "acme", image="late", **wish)
                assert (refused.value.code, refused.value.field) == ("image-not-ready", "desired.image")
            image, tiny = [await world.resource("storage.image", name) for name in ("late", "tiny")]
            facts = msgspec.structs.replace(tiny.observed, virtual_size_bytes=5 * GIB)
            await world.store.write(lambda tx: tx.update(image, observed=facts))
            with pytest.raises(Invalid, match="5 GiB"):
                await world.create("storage.volume", "new", "acme", image="late", size_gib=4)
            await world.create("storage.volume", "new", "acme", image="late", size_gib=5)
            found = await start(world, "web", nics=[], image="late")
            assert (found["assigned"]["disk_gib"], found["assigned"]["append"]) == (5, "quiet")

    run(main)
