"""Requests that are refused, in whole or in part: nothing is left, others take over, and it is said why."""

from __future__ import annotations

import asyncio
import functools

import pytest
from tests.cloud.compute.machine_world import (
    CHARGES,
    KIND,
    ask,
    comes_to,
    has_vms,
    request,
    rows,
    running,
    site,
    vms,
)
from tests.cloud.world import Cloud, leftovers
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso
from pileus.kernel.store.lists import Filter


def make_refuse(world: Cloud, percent: int) -> list[str]:
    """Let some hosts fail at every start: they have less memory than they say. Return their ids."""
    bad = sorted(world.hosts)[: len(world.hosts) * percent // 100]
    for id in bad:
        world.hosts[id].machines.memory_mib = 0
    return bad


def test_two_hundred_machines_of_which_some_are_refused_leave_nothing_at_all() -> None:
    async def main() -> None:
        async with site(hosts=20) as world:
            bad = make_refuse(world, 10)
            before = await world.store.fetch(CHARGES)
            await ask(world, count=200)
            found = await comes_to(world, "refused")
            condition = found["conditions"][0]
            assert (condition["status"], condition["reason"]) == ("false", "Refused")
            assert "cannot allocate memory" in condition["message"]
            assert any(id in condition["message"] for id in bad)
            refused = [row for row in await rows(world) if row.assigned.state == "refused"]
            assert refused
            assert {row.assigned.server for row in refused} <= set(bad)
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before
            assert await world.store.list(Filter(kind="compute.set")) == []

    run(main)


def test_refused_machines_are_put_elsewhere_and_keep_their_ids() -> None:
    async def main() -> None:
        async with site(hosts=10) as world:
            bad = make_refuse(world, 10)
            await ask(world, count=100, mode="best-effort")
            await world.until(lambda: has_vms(world, 100))
            first = {vm.labels["number"]: vm.id for vm in await vms(world)}
            await world.until(lambda: world.is_ready(KIND, "job", "acme"))
            assert {vm.labels["number"]: vm.id for vm in await vms(world)} == first
            moved = [row for row in await rows(world) if row.assigned.refused_by]
            assert len(moved) == 10
            assert not {vm.host for vm in await vms(world)} & set(bad)

            async def are_empty() -> bool:
                return not any(world.hosts[id].machines.machines or world.hosts[id].pool.volumes for id in bad)

            await world.until(are_empty, 300.0)

    run(main)


def test_machines_without_a_place_are_named_and_come_as_soon_as_there_is_one() -> None:
    async def main() -> None:
        async with site(hosts=1) as world:
            await world.patch("tenancy.vdc", "main", "acme", quota={"memory_mib": 4_000_000})
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            half = free * 2 // 5
            await ask(world, count=3, mode="best-effort", vcpus=1, memory_mib=half)
            found = await comes_to(world, "running")
            assert (found["observed"]["states"], found["observed"]["missing_count"]) == ({"confirmed": 2}, 1)
            (missing,) = found["observed"]["missing"]
            assert (missing["number"], missing["reason"]) == (3, "NoCapacity")
            assert "NoMemory" in missing["message"]
            with pytest.raises(AssertionError):
                await comes_to(world, "refused", limit_s=90)
            await world.add_host("more", cpus=32, memory_mib=262_144)
            await world.until(lambda: world.is_ready(KIND, "job", "acme"))
            assert running(world) == 3

    run(main)


def test_no_room_for_all_is_a_refusal_with_reasons_and_within_a_window_is_waited_for() -> None:
    async def main() -> None:
        async with site(hosts=1) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            await ask(world, "large", count=2, vcpus=1, memory_mib=free * 3 // 5)
            found = await comes_to(world, "refused", "large")
            assert "NoMemory" in found["conditions"][0]["message"]
            await ask(world, "first", count=1, vcpus=1, memory_mib=free * 3 // 5, duration_s=300)
            await comes_to(world, "running", "first")
            began = clock()
            await ask(world, "second", count=1, vcpus=1, memory_mib=free * 3 // 5, start_within_s=3600)
            await asyncio.sleep(60)
            assert (await request(world, "second"))["conditions"][0]["reason"] == "Reserved"
            await comes_to(world, "running", "second", limit_s=600)
            assert 200 < clock() - began < 330
            await ask(world, "third", count=1, vcpus=1, memory_mib=free * 3 // 5, start_within_s=120)
            await comes_to(world, "refused", "third", limit_s=130)

    run(main)


def test_requests_at_once_never_hold_more_than_there_is() -> None:
    async def main() -> None:
        async with site(hosts=4) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            names = [f"r{number}" for number in range(6)]
            for name in names:
                await ask(world, name, count=2, vcpus=1, memory_mib=free * 2 // 5)
            phases = []
            for name in names:
                await world.until(functools.partial(_is_settled, world, name))
                phases.append((await request(world, name))["observed"]["phase"])
            assert sorted(phases) == ["refused"] * 2 + ["running"] * 4

    run(main)


async def _is_settled(world: Cloud, name: str) -> bool:
    return (await request(world, name))["observed"]["phase"] in ("running", "refused")


def test_a_silent_host_is_a_refusal_and_a_machine_that_may_run_there_is_put_nowhere_else() -> None:
    async def main() -> None:
        async with site(hosts=3) as world:
            await world.settle()
            silent = sorted(world.hosts)[0]
            await world.cut_link(silent)
            await ask(world, count=6, mode="best-effort")

            async def told() -> bool:
                return bool((await request(world))["observed"]["missing_count"])

            await world.until(told, 200.0)
            found = await request(world)
            missing = {each["server"] for each in found["observed"]["missing"]}
            assert missing == {silent}
            assert {each["reason"] for each in found["observed"]["missing"]} <= {"HostSilent", "NotReported"}
            ids = {vm.id for vm in await vms(world)}
            world.heal_link(silent)
            await world.until(lambda: world.is_ready(KIND, "job", "acme"), 300.0)
            assert {vm.id for vm in await vms(world)} == ids

    run(main)


def test_best_effort_machines_make_room_for_guaranteed_ones_and_come_back() -> None:
    async def main() -> None:
        async with site(hosts=2) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            size = {"vcpus": 1, "memory_mib": free // 4}
            await ask(world, "cheap", count=8, service="best-effort", **size)
            await comes_to(world, "running", "cheap")
            await ask(world, "other", count=1, service="best-effort", **size)
            await comes_to(world, "refused", "other")  # what is left is nothing, and best effort moves nobody
            await ask(world, "dear", count=3, duration_s=600, **size)
            await comes_to(world, "running", "dear")
            assert running(world) == 8
            found = await request(world, "cheap")
            assert {each["reason"] for each in found["observed"]["missing"]} == {"Preempted"}
            assert found["observed"]["missing_count"] == 3
            assert found["conditions"][0]["status"] == "false"
            gone = [row for row in await rows(world, "cheap") if row.assigned.state == "preempted"]
            assert all("made room for request dear" in row.assigned.message for row in gone)
            await comes_to(world, "ended", "dear", limit_s=700)
            await world.until(lambda: world.is_ready(KIND, "cheap", "acme"))
            assert running(world) == 8

    run(main)


def test_nobody_makes_room_in_vain() -> None:
    async def main() -> None:
        async with site(hosts=1) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            await ask(world, "cheap", count=2, service="best-effort", vcpus=1, memory_mib=free // 4)
            await comes_to(world, "running", "cheap")
            await ask(world, "dear", count=2, vcpus=1, memory_mib=free * 3 // 5)
            await comes_to(world, "refused", "dear")
            assert (await request(world, "cheap"))["observed"]["states"] == {"confirmed": 2}

    run(main)


def test_a_host_that_goes_before_the_start_is_no_host_at_the_start() -> None:
    async def main() -> None:
        async with site(hosts=2) as world:
            await ask(world, count=4, start_at=iso(clock() + 300), mode="best-effort")
            await comes_to(world, "reserved")
            going = (await world.get("infra.host", "host1"))["id"]
            assert {row.assigned.server for row in await rows(world)} == set(world.hosts)
            await world.delete("infra.host", "host1")
            await asyncio.sleep(60)
            assert (await world.get("infra.host", "host1"))["conditions"][0]["reason"] == "InUse"
            await world.until(lambda: world.is_ready(KIND, "job", "acme"), 400.0)
            assert going not in {vm.host for vm in await vms(world)}

            async def gone() -> bool:
                return not await world.exists("infra.host", "host1")

            await world.until(gone)
            await world.stop_agent(going)
            del world.hosts[going]

    run(main)


def test_a_silent_host_releases_all_or_nothing_and_the_last_of_it_when_it_is_back() -> None:
    async def main() -> None:
        async with site(hosts=3) as world:
            before = await world.store.fetch(CHARGES)
            silent = sorted(world.hosts)[0]
            await world.cut_link(silent)
            await ask(world, count=6)
            found = await comes_to(world, "releasing")
            assert f"host {silent} refused machine" in found["conditions"][0]["message"]

            async def only_there() -> bool:
                return {vm.host for vm in await vms(world)} == {silent}

            await world.until(only_there)
            world.heal_link(silent)
            await comes_to(world, "refused")
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before

    run(main)


def test_a_machine_without_an_address_is_refused_and_says_so() -> None:
    async def main() -> None:
        async with site() as world:
            await world.create("network.network", "tiny", "acme", range="10.9.9.0/29")
            await world.until(lambda: world.is_ready("network.network", "tiny", "acme"))
            await ask(world, count=20, nics=[{"network": "tiny"}])
            found = await comes_to(world, "refused")
            assert "address" in found["conditions"][0]["message"].lower()
            assert await leftovers(world) == {}

    run(main)
