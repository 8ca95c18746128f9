"""What tenants do with VMs, and what VMs do by themselves: the world afterwards is as wished, and says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pileus.drivers.host.qemu.fake import FakeMachine
from pileus.kernel.errors import Conflict, Invalid, QuotaExceeded
from tests.cloud.invariants import Ledger, check
from tests.cloud.settling import check_truth, clear
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run


@contextlib.asynccontextmanager
async def tenancy(hosts: int = 1, **more: Any) -> AsyncIterator[Cloud]:
    """Give a cloud with the account acme; at the end everything holds, is true, and can be deleted without rest."""
    async with cloud(hosts, **more) as world:
        await world.create("tenancy.account", "acme")
        yield world
        await world.settle()
        await check(world, Ledger(), full=True)
        await check_truth(world)
        await clear(world)


async def vm(world: Cloud, name: str = "web") -> dict[str, Any]:
    return await world.get("compute.vm", name, "acme")


async def machine(world: Cloud, name: str = "web") -> FakeMachine:
    found = await vm(world, name)
    return world.hosts[found["host"]].machines.machines[found["id"]]


async def start(world: Cloud, name: str = "web", **desired: Any) -> dict[str, Any]:
    await world.create("compute.vm", name, "acme", **desired)
    await world.until(lambda: world.is_ready("compute.vm", name, "acme"))
    return await vm(world, name)


async def becomes(world: Cloud, power: str, name: str = "web") -> None:
    async def so() -> bool:
        found = await vm(world, name)
        return bool(found["observed"]["power"] == power and found["conditions"][0]["status"] == "true")

    await world.until(so)


def test_a_vm_is_stopped_started_paused_resumed_and_rebooted() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await start(world)
            for power in ("paused", "running", "stopped", "paused", "stopped", "running"):
                await world.patch("compute.vm", "web", "acme", power=power)
                await becomes(world, power)
                assert (await machine(world)).state == power
            boots, pid = (await machine(world)).boots, (await machine(world)).pid
            await world.patch("compute.vm", "web", "acme", boot_serial=1)
            await world.settle()
            assert ((await machine(world)).boots, (await machine(world)).pid) == (boots + 1, pid)

    run(main)


def test_a_guest_that_ignores_the_power_button_is_ended_after_its_time() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await start(world, shutdown_timeout_s=20)
            (await machine(world)).deaf = True
            began = clock()
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await becomes(world, "stopped")
            assert 20 <= clock() - began < 25

    run(main)


def test_a_guest_that_powers_itself_off_stays_off_until_it_is_booted_again() -> None:
    async def main() -> None:
        async with tenancy() as world:
            found = await start(world)
            world.hosts[found["host"]].machines.crash(found["id"], "guest-shutdown", "")
            await world.settle()
            condition = (await vm(world))["conditions"][0]
            assert (condition["status"], condition["reason"]) == ("false", "GuestShutdown")
            assert (await machine(world)).state == "stopped"
            await world.patch("compute.vm", "web", "acme", boot_serial=1)
            await becomes(world, "running")

    run(main)


@pytest.mark.parametrize(("restart", "state"), [("always", "running"), ("on-failure", "running"), ("never", "stopped")])
def test_a_vm_whose_process_is_killed_runs_again_as_its_policy_says(restart: str, state: str) -> None:
    async def main() -> None:
        async with tenancy() as world:
            found = await start(world, restart=restart)
            world.hosts[found["host"]].machines.crash(found["id"])
            await world.settle(5.0)
            assert (await machine(world)).state == state

    run(main)


def test_a_vm_that_keeps_crashing_is_restarted_ever_more_slowly_and_at_once_after_it_was_stable() -> None:
    async def main() -> None:
        async with tenancy() as world:
            found = await start(world)
            host = world.hosts[found["host"]].machines
            pauses = []
            for _ in range(4):
                host.crash(found["id"])
                began = clock()
                await world.until(lambda: _runs(world), limit_s=400)
                pauses.append(clock() - began)
            assert [round(pause, -1) for pause in pauses] == [0, 10, 20, 40]
            assert (await vm(world))["observed"]["failures"] == 4
            await _sleep(90)
            host.crash(found["id"])
            began = clock()
            await world.until(lambda: _runs(world))
            assert clock() - began < 5

    run(main)


async def _runs(world: Cloud) -> bool:
    return (await machine(world)).state == "running"


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_stopped_vm_gets_a_new_size_and_a_running_one_is_refused() -> None:
    async def main() -> None:
        async with tenancy(memory_mib=2048) as world:
            await start(world, vcpus=1, memory_mib=256)
            with pytest.raises(Conflict, match="web must be stopped to change its size"):
                await world.patch("compute.vm", "web", "acme", vcpus=2)
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await becomes(world, "stopped")
            with pytest.raises(Conflict, match="has too little memory_mib left") as refused:
                await world.patch("compute.vm", "web", "acme", memory_mib=2048)
            assert refused.value.code == "no-capacity"
            await world.patch("compute.vm", "web", "acme", vcpus=2, memory_mib=1024)
            await world.patch("compute.vm", "web", "acme", power="running")
            await becomes(world, "running")
            spec = (await machine(world)).spec
            assert (spec.vcpus, spec.memory_mib) == (2, 1024)

    run(main)


def test_a_vm_asked_for_by_what_it_does_grows_with_its_load() -> None:
    async def main() -> None:
        async with tenancy(memory_mib=4096) as world:
            with pytest.raises(Invalid, match="there is no function 'webserver'; there are batch, cache"):
                await world.create("compute.vm", "web", "acme", function="webserver")
            await start(world, function="web-server")
            spec = (await machine(world)).spec
            assert (spec.vcpus, spec.memory_mib) == (2, 768)
            with pytest.raises(Conflict, match="web must be stopped to change its size"):
                await world.patch("compute.vm", "web", "acme", load=300)
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await becomes(world, "stopped")
            await world.patch("compute.vm", "web", "acme", load=300, power="running")
            await becomes(world, "running")
            spec = (await machine(world)).spec
            assert (spec.vcpus, spec.memory_mib) == (3, 1024)

    run(main)


def test_a_volume_goes_from_one_vm_to_another_and_never_has_two() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("storage.volume", "data", "acme", size_gib=3)
            data = (await world.get("storage.volume", "data", "acme"))["id"]
            await start(world, "one", volumes=[{"volume": "data"}])
            await start(world, "two")
            assert data in [disk.id for disk in (await machine(world, "one")).spec.disks]
            with pytest.raises(Conflict, match="volume data is attached to vm one; detach it there first"):
                await world.patch("compute.vm", "two", "acme", volumes=[{"volume": "data"}])
            with pytest.raises(Conflict, match="data is used by vm one; delete or change that first"):
                await world.delete("storage.volume", "data", "acme")
            with pytest.raises(Invalid, match="volume data is given twice"):
                await world.patch("compute.vm", "one", "acme", volumes=[{"volume": "data"}, {"volume": "data"}])
            await world.patch("compute.vm", "one", "acme", volumes=[])
            await world.settle()
            assert data not in [disk.id for disk in (await machine(world, "one")).spec.disks]
            await world.patch("compute.vm", "two", "acme", volumes=[{"volume": "data"}])
            await world.settle()
            assert data in [disk.id for disk in (await machine(world, "two")).spec.disks]

    run(main)


def test_a_volume_grows_when_no_vm_has_it_open() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("storage.volume", "data", "acme", size_gib=1)
            found = await start(world, volumes=[{"volume": "data"}])
            data = (await world.get("storage.volume", "data", "acme"))["id"]
            await world.patch("storage.volume", "data", "acme", size_gib=2)
            await _sleep(60)
            assert world.hosts[found["host"]].pool.volumes[data].size_bytes == 2**30
            with pytest.raises(Invalid, match="may only grow"):
                await world.patch("storage.volume", "data", "acme", size_gib=1)
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await becomes(world, "stopped")
            await _sleep(60)
            assert world.hosts[found["host"]].pool.volumes[data].size_bytes == 2 * 2**30

    run(main)


def test_nics_come_and_go_while_the_vm_runs_also_at_the_same_place() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.create("network.network", "back", "acme", range="10.2.0.0/28")
            await start(world)
            default, back = {"network": "default"}, {"network": "back", "address": "10.2.0.9"}
            for nics in ([default, back], [default], [default, {"network": "back"}], [default, back], [], [back]):
                await _patch_nics(world, nics)
                await _sleep(20)
                await world.settle()
                found = await vm(world)
                assert len((await machine(world)).spec.nics) == len(nics)
                assert len(found["observed"]["addresses"]) == len(nics)
            assert (await vm(world))["observed"]["addresses"] == ["10.2.0.9"]

    run(main)


async def _patch_nics(world: Cloud, nics: list[dict[str, str]]) -> None:
    kept = 0
    for old, new in zip((await vm(world))["desired"]["nics"], nics, strict=False):
        if (old["network"], old["address"]) != (new["network"], new.get("address", "")):
            break
        kept += 1
    if kept < min(len((await vm(world))["desired"]["nics"]), len(nics)):
        await world.patch("compute.vm", "web", "acme", nics=nics[:kept])
        await _sleep(5)
    await world.patch("compute.vm", "web", "acme", nics=nics)


def test_a_nic_that_is_taken_out_before_its_vm_has_a_host_gives_its_address_back() -> None:
    async def main() -> None:
        async with tenancy(memory_mib=1124) as world:
            nics = [{"network": "default", "address": "10.1.1.50"}]
            await world.create("compute.vm", "waits", "acme", vcpus=1, memory_mib=1000, nics=nics)
            await world.settle(10.0)
            assert (await vm(world, "waits"))["conditions"][0]["reason"] == "NoCapacity"
            await world.patch("compute.vm", "waits", "acme", nics=[])
            await start(world, "web", vcpus=1, memory_mib=64, nics=nics)

    run(main)


def test_the_quota_says_what_is_used_and_what_was_asked() -> None:
    async def main() -> None:
        async with tenancy() as world:
            await world.patch("tenancy.vdc", "main", "acme", quota={"memory_mib": 300})
            await start(world)
            with pytest.raises(QuotaExceeded) as refused:
                await world.create("compute.vm", "two", "acme", vcpus=1, memory_mib=200)
            assert refused.value.message == (
                "account acme uses 128 of 300 memory_mib in vdc main, 200 more were asked; delete something or ask the "
                "operator to raise the quota"
            )

    run(main)


def test_an_account_goes_with_all_it_has_and_leaves_no_row() -> None:
    async def main() -> None:
        async with tenancy(hosts=2) as world:
            await world.create("storage.volume", "data", "acme", size_gib=1)
            await world.create("storage.image", "own", "acme")
            await world.create("tenancy.user", "ann", "acme", role="owner")
            await world.create("tenancy.key", "laptop", "acme", user="ann")
            for number in range(6):
                await world.create("compute.vm", f"v{number}", "acme")
            await start(world, volumes=[{"volume": "data"}])
            with pytest.raises(Conflict, match="vdc main "):
                await world.delete("tenancy.vdc", "main", "acme")
            await clear(world)
            await world.create("tenancy.account", "acme")

    run(main)
