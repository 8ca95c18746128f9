"""What is metered is what the hosts' own times say, whatever a VM goes through, and however long a host is silent."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import pytest
import sqlalchemy as sa

from pileus.infra.host.types import SILENT_AFTER_S
from pileus.kernel.stream import HEARTBEAT_S
from pileus.server.agents import PRESENCE_EVERY_S
from pileus.server.chores import meter_all
from tests.cloud.metering_world import HOUR_S, ROUNDING_S, Book, metered, usage, used
from tests.cloud.monitor.monitor_world import ACCOUNT, Apps
from tests.cloud.monitor.test_monitor_appliances import Appliances, are_two
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

MIB_PER_GIB = 1024
FILES = ("size_bytes", "kernel_size_bytes", "initrd_size_bytes")
HEARD_S = HEARTBEAT_S + 2 * PRESENCE_EVERY_S
"""So long ago a host that is well was heard last, at most, as the database has it."""


async def start(world: Cloud, name: str = "web", **desired: Any) -> str:
    """Make a VM and wait until it is as wished; return its id."""
    found = await world.create("compute.vm", name, "acme", **desired)
    await world.until(lambda: world.is_ready("compute.vm", name, "acme"))
    return str(found["id"])


async def turn(world: Cloud, power: str, name: str = "web") -> None:
    """Have a VM be so."""
    await world.patch("compute.vm", name, "acme", power=power)
    await world.until(lambda: is_so(world, power, name))


async def is_so(world: Cloud, power: str, name: str = "web") -> bool:
    found = await world.get("compute.vm", name, "acme")
    return bool(found["observed"]["power"] == power and found["conditions"][0]["status"] == "true")


async def remove(world: Cloud, kind: str, name: str) -> float:
    """Delete something, wait until it is gone, and return when that was."""
    await world.delete(kind, name, "acme")
    await world.until(lambda: is_gone(world, kind, name))
    rows = await world.store.fetch(sa.text("SELECT MAX(at) FROM gone WHERE name = :name"), name=name)
    return float(rows[0][0])


async def is_gone(world: Cloud, kind: str, name: str) -> bool:
    return not await world.exists(kind, name, "acme")


async def check_vm(world: Cloud, book: Book, id: str, name: str = "web", ends: int = 2) -> None:
    """Assert that CPUs and memory are what the machine had while it was on; ``ends``: times that its host told.

    The machine is off: while it is on, it is known to be until its host was heard last.
    """
    assert not book.is_on(id)
    found = await used(world, name)
    size = max((vcpus for _, _, vcpus, _ in book.all(id)), default=1)
    memory_mib = max((memory for _, _, _, memory in book.all(id)), default=1)
    rounding_s = ROUNDING_S * ends
    assert found["vcpu_hours"] * HOUR_S == pytest.approx(book.vcpu_s(id), abs=rounding_s * size + 0.002)
    expected = book.memory_mib_s(id)
    assert found["memory_gib_hours"] * HOUR_S * MIB_PER_GIB == pytest.approx(expected, abs=rounding_s * memory_mib + 2)


async def disk_s(world: Cloud, name: str) -> float:
    """Return the GiB-seconds of disk that were metered."""
    return (await used(world, name))["disk_gib_hours"] * HOUR_S


def test_a_vm_that_runs_is_stopped_runs_and_is_deleted_is_metered_by_the_times_of_its_host() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            made_at = clock()
            id = await start(world, vcpus=2, memory_mib=512, disk_gib=3)
            await asyncio.sleep(1200.0)
            await turn(world, "stopped")
            stopped = await used(world, "web")
            await asyncio.sleep(600.0)
            assert (await used(world, "web"))["vcpu_hours"] == stopped["vcpu_hours"]
            await turn(world, "running")
            await asyncio.sleep(1800.0)
            so_far = (await used(world, "web"))["vcpu_hours"] * HOUR_S
            assert book.vcpu_s(id) - 2 * HEARD_S <= so_far <= book.vcpu_s(id) + 3 * ROUNDING_S * 2
            gone_at = await remove(world, "compute.vm", "web")
            assert book.on_s(id) == pytest.approx(3000.0, abs=10.0)
            await check_vm(world, book, id, ends=4)
            ((first, _, _, _), *_, (_, last, _, _)) = book.all(id)
            assert 3 * (last - first) <= await disk_s(world, "web") <= 3 * (gone_at - made_at) + 0.002
            await asyncio.sleep(HOUR_S)
            await check_vm(world, book, id, ends=4)

    run(main)


def test_a_vm_that_crashes_is_metered_while_it_is_on_however_soon_it_is_restarted() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world, restart="always")
            for number in range(4):
                await asyncio.sleep(50.0)
                world.hosts[(await world.get("compute.vm", "web", "acme"))["host"]].machines.crash(id)
                await world.until(lambda number=number: _has_started(book, id, 2 + number))  # type: ignore[misc]
                await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await turn(world, "stopped")
            spans = list(book.all(id))
            gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
            assert len(gaps) == 4
            assert min(gaps) < 1.0
            assert max(gaps) > 30.0
            await check_vm(world, book, id, ends=10)

    run(main)


async def _has_started(book: Book, id: str, times: int) -> bool:
    return len(list(book.all(id))) >= times


def test_a_new_size_counts_from_the_next_start_and_a_larger_disk_from_when_it_was_asked_for() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world, vcpus=1, memory_mib=256, disk_gib=1)
            began = await _disk_began(world, id)
            await asyncio.sleep(300.0)
            await turn(world, "stopped")
            await asyncio.sleep(1000.0)
            grown_at = clock()
            await world.patch("compute.vm", "web", "acme", vcpus=3, memory_mib=512, disk_gib=4, offering="")
            await asyncio.sleep(200.0)
            expected = (grown_at - began) + 4 * (clock() - grown_at)
            assert await disk_s(world, "web") == pytest.approx(expected, abs=0.002 * 4)
            await turn(world, "running")
            await asyncio.sleep(300.0)
            await turn(world, "stopped")
            await check_vm(world, book, id, ends=4)
            assert {vcpus for _, _, vcpus, _ in book.all(id)} == {1, 3}

    run(main)


async def _disk_began(world: Cloud, id: str) -> float:
    rows = await world.store.fetch(sa.text("SELECT MIN(since) FROM usage WHERE id = :id"), id=id)
    return float(rows[0][0])


def test_a_paused_vm_counts_as_on() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world)
            for power in ("paused", "running", "paused", "stopped"):
                await asyncio.sleep(100.0)
                await turn(world, power)
            assert book.on_s(id) == pytest.approx(400.0, abs=10.0)
            await check_vm(world, book, id)

    run(main)


def test_a_volume_counts_from_when_a_host_has_it_as_large_as_it_is_until_it_is_deleted() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            await world.create("storage.volume", "data", "acme", size_gib=2)
            await asyncio.sleep(100.0)
            assert (await used(world, "data"))["disk_gib_hours"] == 0
            await start(world, volumes=[{"volume": "data"}])
            began = await _disk_began(world, (await world.get("storage.volume", "data", "acme"))["id"])
            await asyncio.sleep(100.0)
            await turn(world, "stopped")
            await world.patch("compute.vm", "web", "acme", volumes=[])
            await world.settle()
            grown_at = clock()
            await world.patch("storage.volume", "data", "acme", size_gib=5)
            await asyncio.sleep(100.0)
            gone_at = await remove(world, "storage.volume", "data")
            await asyncio.sleep(100.0)
            expected = 2 * (grown_at - began) + 5 * (gone_at - grown_at)
            assert await disk_s(world, "data") == pytest.approx(expected, abs=0.002 * 5)
            assert {item["name"] for item in (await usage(world))["items"]} == {"web", "data"}

    run(main)


def test_a_snapshot_counts_for_what_it_takes() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            await start(world)
            volume = (await world.get("compute.vm", "web", "acme"))["assigned"]["volumes"][0]
            await world.create("storage.snapshot", "then", "acme", volume=volume, reason="to see")
            await world.until(lambda: world.is_ready("storage.snapshot", "then", "acme"))
            await world.settle()
            found = await world.get("storage.snapshot", "then", "acme")
            began = await _disk_began(world, found["id"])
            await asyncio.sleep(1000.0)
            gone_at = await remove(world, "storage.snapshot", "then")
            expected = found["observed"]["used_mib"] / MIB_PER_GIB * (gone_at - began)
            assert expected > 0
            assert await disk_s(world, "then") == pytest.approx(expected, abs=0.002)

    run(main)


def test_an_image_of_an_account_counts_for_its_files_and_a_public_one_for_nobody() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            await world.add_image("own", account="acme")
            found = await world.get("storage.image", "own", "acme")
            began = await _disk_began(world, found["id"])
            await asyncio.sleep(3 * HOUR_S)
            gone_at = await remove(world, "storage.image", "own")
            size_bytes = sum(value for word, value in found["observed"].items() if word in FILES)
            expected = math.ceil(size_bytes / 2**20) / MIB_PER_GIB * (gone_at - began)
            assert await disk_s(world, "own") == pytest.approx(expected, abs=0.002)
            assert [item["account"] for item in (await usage(world, ""))["items"]] == ["acme"]

    run(main)


def test_an_address_counts_and_the_clouds_routers_cost_nobody_anything() -> None:
    async def main() -> None:
        public: dict[str, Any] = {"router": "single", "router_idle_s": 60, "public_range": "203.0.113.0/28"}
        async with metered(**public) as (world, book):
            id = await start(world)
            made_at = clock()
            await world.create("gateway.address", "front", "acme")
            await asyncio.sleep(500.0)
            gone_at = await remove(world, "gateway.address", "front")
            found = await used(world, "front")
            assert found["address_hours"] * HOUR_S == pytest.approx(gone_at - made_at, abs=0.1)
            machines = [each for host in world.hosts.values() for each in host.machines.machines]
            assert len(machines) == 2, "there is no router"
            await turn(world, "stopped")
            await check_vm(world, book, id)
            await asyncio.sleep(300.0)
            answer = await usage(world, "")
            assert {each["account"] for each in answer["items"]} == {"acme"}
            own = await usage(world)
            assert {each["name"] for each in own["items"]} == {"web", "front"}
            assert own["total"] == answer["total"]

    run(main)


def test_the_appliance_of_a_monitor_is_metered_as_any_vm() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(2)
            Appliances(world)
            await apps.watch(form="appliance", replicas=2)
            await world.until(lambda: are_two(world))
            book = Book(world)
            await asyncio.sleep(100.0)
            metered_ids = {each["id"] for each in (await usage(world, ACCOUNT))["items"] if each["vcpu_hours"] > 0}
            machines = {each for host in world.hosts.values() for each in host.machines.machines}
            assert len(machines) == 4
            assert metered_ids == machines
            for item in (await usage(world, ACCOUNT))["items"]:
                if item["id"] in machines:
                    found = item["vcpu_hours"] * HOUR_S
                    assert book.vcpu_s(item["id"]) - HEARD_S <= found <= book.vcpu_s(item["id"]) + ROUNDING_S

    run(main)


async def silent(world: Cloud, host: str) -> float:
    """Cut a host off, wait until it is silent, and return when it was heard last."""
    await world.cut_link(host)
    await asyncio.sleep(SILENT_AFTER_S + 15.0)
    condition = (await world.get("infra.host", "host0"))["conditions"][0]
    assert condition["reason"] == "HostSilent"
    rows = await world.store.fetch(sa.text("SELECT seen_at FROM presence WHERE host = :host"), host=host)
    return float(rows[0][0])


def test_of_a_silent_host_is_counted_until_it_was_heard_and_all_when_it_is_back() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world)
            (host,) = world.hosts
            await asyncio.sleep(500.0)
            heard_at = await silent(world, host)
            ((started_at, *_),) = book.all(id)
            for _ in range(3):
                found = (await used(world, "web"))["vcpu_hours"] * HOUR_S
                assert found == pytest.approx(heard_at - started_at, abs=ROUNDING_S + 0.002)
                await asyncio.sleep(1000.0)
            world.heal_link(host)
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            found = (await used(world, "web"))["vcpu_hours"] * HOUR_S
            assert book.vcpu_s(id) - HEARD_S <= found <= book.vcpu_s(id) + ROUNDING_S
            await turn(world, "stopped")
            await check_vm(world, book, id)

    run(main)


@pytest.mark.parametrize("restart", ["never", "always"])
def test_what_ended_on_a_silent_host_ended_when_the_host_says(restart: str) -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world, restart=restart)
            (host,) = world.hosts
            await asyncio.sleep(500.0)
            heard_at = await silent(world, host)
            await asyncio.sleep(200.0)
            world.hosts[host].machines.crash(id, "guest-shutdown", "") if restart == "never" else None
            ended_at = clock()
            await asyncio.sleep(700.0)
            ((started_at, *_),) = book.all(id)
            found = (await used(world, "web"))["vcpu_hours"] * HOUR_S
            assert found == pytest.approx(heard_at - started_at, abs=ROUNDING_S + 0.002)
            world.heal_link(host)
            await world.until(lambda: _is_told(world))
            assert restart == "always" or book.on_s(id) == ended_at - started_at
            await turn(world, "stopped")
            await check_vm(world, book, id)

    run(main)


def test_what_began_and_ended_on_a_host_that_nobody_heard_is_counted() -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world, restart="never")
            (host,) = world.hosts
            await turn(world, "stopped")
            before = await used(world, "web")
            await world.patch("compute.vm", "web", "acme", power="running")
            while not book.is_on(id):  # noqa: ASYNC110 - the moment is what counts
                await asyncio.sleep(0.001)
            await world.cut_link(host)
            await asyncio.sleep(500.0)
            world.hosts[host].machines.crash(id)
            await asyncio.sleep(500.0)
            assert (await used(world, "web"))["vcpu_hours"] == before["vcpu_hours"]
            world.heal_link(host)
            await world.until(lambda: _is_told(world))
            await world.settle()
            assert book.on_s(id) > 500.0
            await check_vm(world, book, id, ends=4)

    run(main)


async def _is_told(world: Cloud) -> bool:
    found = await world.get("compute.vm", "web", "acme")
    return bool(found["conditions"][0]["status"] != "unknown")


@pytest.mark.parametrize("dies", ["nobody", "server"])
def test_what_was_deleted_just_before_its_host_fell_silent_ended_when_the_host_removed_it(dies: str) -> None:
    async def main() -> None:
        async with metered() as (world, book):
            id = await start(world)
            (host,) = world.hosts
            await asyncio.sleep(100.0)
            await world.delete("compute.vm", "web", "acme")
            while id in world.hosts[host].machines.machines:  # noqa: ASYNC110 - the moment is what counts
                await asyncio.sleep(0.001)
            await world.cut_link(host)
            if dies == "server":
                await world.stop_server()
                await world.start_server()
            await asyncio.sleep(1000.0)
            assert await world.exists("compute.vm", "web", "acme")
            world.heal_link(host)
            await world.until(lambda: is_gone(world, "compute.vm", "web"))
            await check_vm(world, book, id)

    run(main)


def test_what_a_version_without_a_meter_left_is_metered_from_when_all_are_looked_at() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            await world.create("storage.volume", "data", "acme", size_gib=2)
            await start(world, vcpus=2, memory_mib=256, volumes=[{"volume": "data"}])
            await start(world, "off", power="stopped")
            await asyncio.sleep(1000.0)
            await world.store.write(lambda tx: tx.change(sa.text("DELETE FROM usage")))
            assert (await usage(world))["items"] == []
            await asyncio.sleep(1000.0)
            began = clock()
            await meter_all(world.store)
            await asyncio.sleep(1000.0)
            for name, word, amount in (("web", "vcpu_hours", 2), ("web", "disk_gib_hours", 1), ("off", "vcpu_hours", 0),
                                       ("data", "disk_gib_hours", 2)):  # fmt: skip
                found = (await used(world, name))[word] * HOUR_S
                assert amount * (clock() - began - HEARD_S) <= found <= amount * (clock() - began) + 0.002, name
            runs = await world.store.fetch(sa.text("SELECT id, since FROM usage ORDER BY id"))
            await meter_all(world.store)
            assert await world.store.fetch(sa.text("SELECT id, since FROM usage ORDER BY id")) == runs

    run(main)


def test_what_an_older_server_beside_deleted_is_not_metered_for_ever() -> None:
    async def main() -> None:
        async with metered() as (world, _):
            id = await start(world)
            gone_at = await remove(world, "compute.vm", "web")
            again = sa.text("UPDATE usage SET until = 0 WHERE id = :id AND since = (SELECT MAX(since) FROM usage)")
            await world.store.write(lambda tx: tx.change(again, id=id))
            await asyncio.sleep(1000.0)
            await meter_all(world.store)
            ends = await world.store.fetch(sa.text("SELECT until FROM usage WHERE id = :id ORDER BY since"), id=id)
            assert ends[-1][0] == gone_at
            assert all(end > 0 for (end,) in ends)

    run(main)
