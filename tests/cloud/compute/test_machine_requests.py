"""Requests for many machines: all or none of them, within their window, and none past their end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from tests.cloud.test_vm_life import tenancy
from tests.cloud.world import OPERATOR, Cloud, leftovers
from tests.virtual_time import clock, run

from pileus.compute.functions import resources_of
from pileus.kernel.access import Principal
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter

KIND = "compute.request"
PLENTY = {"vms": 2000, "vcpus": 4000, "memory_mib": 4_000_000, "volumes": 2000, "disk_gib": 4000}
CHARGES = sa.text("SELECT space, owner, amount FROM charge ORDER BY space, owner")


@contextlib.asynccontextmanager
async def site(hosts: int = 2, **more: Any) -> AsyncIterator[Cloud]:
    """Give a cloud whose account has a large quota."""
    async with tenancy(hosts, **more) as world:
        await world.patch("tenancy.vdc", "main", "acme", quota=PLENTY)
        yield world


async def ask(world: Cloud, name: str = "job", **desired: Any) -> dict[str, Any]:
    return await world.create(KIND, name, "acme", **{"nics": [], **desired})


async def request(world: Cloud, name: str = "job") -> dict[str, Any]:
    return await world.get(KIND, name, "acme")


async def comes_to(world: Cloud, phase: str, name: str = "job", limit_s: float = 300.0) -> dict[str, Any]:
    async def so() -> bool:
        return bool((await request(world, name))["observed"]["phase"] == phase)

    await world.until(so, limit_s)
    return await request(world, name)


async def rows(world: Cloud, name: str = "job") -> list[Resource]:
    return await world.store.list(
        Filter(kind="compute.placement", owner=(await request(world, name))["id"]), limit=2000
    )


async def vms(world: Cloud) -> list[Resource]:
    return await world.store.list(Filter(kind="compute.vm"), limit=2000)


def running(world: Cloud) -> int:
    """Return how many machines run on all hosts."""
    machines = [one for host in world.hosts.values() for one in host.machines.machines.values()]
    return sum(one.state == "running" for one in machines)


def test_machines_are_held_started_confirmed_and_gone_after_their_time() -> None:
    async def main() -> None:
        async with site() as world:
            before = await world.store.fetch(CHARGES)
            await ask(world, count=3, duration_s=600, warn_s=60)
            found = await comes_to(world, "running")
            assert found["conditions"][0]["status"] == "true"
            assert [row.assigned.state for row in await rows(world)] == ["confirmed"] * 3
            assert [vm.name for vm in await vms(world)] == ["job-0001", "job-0002", "job-0003"]
            assert running(world) == 3
            await comes_to(world, "ended", limit_s=700)
            assert running(world) == 0
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before
            assert {row.assigned.state for row in await rows(world)} == {"released"}

    run(main)


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
            await world.until(lambda: _has_vms(world, 100))
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


async def _has_vms(world: Cloud, count: int) -> bool:
    return len(await vms(world)) == count


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
            assert (await request(world, "second"))["conditions"][0]["reason"] == "NoCapacity"
            await comes_to(world, "running", "second", limit_s=600)
            assert 200 < clock() - began < 330
            await ask(world, "third", count=1, vcpus=1, memory_mib=free * 3 // 5, start_within_s=120)
            await comes_to(world, "refused", "third", limit_s=130)

    run(main)


def test_nothing_runs_before_its_start_or_past_its_end() -> None:
    async def main() -> None:
        async with site() as world:
            start = clock() + 900
            await ask(world, count=4, start_at=iso(start), duration_s=300)
            await comes_to(world, "reserved")
            end = start + 300
            ran = 0.0
            while clock() < end + 60:
                if running(world):
                    assert start - 0.001 <= clock() <= end
                    ran = ran or clock()
                await asyncio.sleep(0.5)
            assert start <= ran < start + 10
            await comes_to(world, "ended")

    run(main)


def test_a_deaf_guest_is_ended_in_time_too() -> None:
    async def main() -> None:
        async with site() as world:
            await ask(world, count=2, duration_s=200, shutdown_timeout_s=20)
            found = await comes_to(world, "running")
            for vm in await vms(world):
                world.hosts[vm.host].machines.machines[vm.id].deaf = True
            end = str(found["observed"]["ends_at"])
            await comes_to(world, "ending")
            assert iso(clock()) < end

            async def none() -> bool:
                return running(world) == 0

            await world.until(none)
            assert iso(clock()) <= end
            await comes_to(world, "ended")

    run(main)


def test_a_task_is_done_when_its_guest_powers_itself_off() -> None:
    async def main() -> None:
        async with site() as world:
            await ask(world, count=3, until="exit")
            await comes_to(world, "running")
            first, *others = await vms(world)
            world.hosts[first.host].machines.crash(first.id, "guest-shutdown", "")
            await world.until(lambda: _has_vms(world, 2))
            states = (await request(world))["observed"]["states"]
            assert states == {"confirmed": 2, "released": 1}
            for vm in others:
                world.hosts[vm.host].machines.crash(vm.id)  # an end that is none of its own: it is started again
            await world.settle(20.0)
            assert running(world) == 2
            for vm in others:
                world.hosts[vm.host].machines.crash(vm.id, "guest-shutdown", "")
            await comes_to(world, "ended")
            assert await leftovers(world) == {}

    run(main)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"start_at": "2001-01-01T00:00:00Z"}, "desired.start_at"),
    ({"start_at": "soon"}, "desired.start_at"),
    ({"start_at": "2031-01-01T00:00:00Z", "start_within_s": 5}, "desired.start_at"),
    ({"offering": "tiny", "vcpus": 1, "memory_mib": 64}, "desired.offering"),
    ({"vcpus": 1}, "desired.vcpus"),
    ({"count": 0}, "desired.count"),
    ({"count": 1001}, "desired.count"),
    ({"ssh_keys": ["x"]}, "desired.ssh_keys[0]"),
    ({"load": 5}, "desired.load"),
    ({"function": "tea-maker"}, "desired.function"),
    ({"function": "web-server", "offering": "tiny"}, "desired.function"),
    ({"function": "desktop", "load": 100}, "desired.load"),
]


def test_a_contradictory_request_changes_nothing() -> None:
    async def main() -> None:
        async with site() as world:
            before = await world.store.fetch(CHARGES)
            for wish, field in CONTRADICTIONS:
                with pytest.raises(Invalid) as refused:
                    await ask(world, **wish)
                assert refused.value.field == field
            assert not await world.exists(KIND, "job", "acme")
            assert await world.store.fetch(CHARGES) == before

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


def test_a_server_killed_in_the_middle_leaves_its_work_to_another() -> None:
    async def main() -> None:
        async with site(hosts=4) as world:
            await ask(world, count=80, duration_s=900, vcpus=1, memory_mib=64)
            for number, count in enumerate((1, 40, 80)):

                async def some(count: int = count) -> bool:
                    return len(await vms(world)) >= count

                await world.until(some)
                await world.stop_server()
                await world.start_server(f"server{number}")
            await comes_to(world, "running")
            assert running(world) == 80
            await comes_to(world, "ending", limit_s=1000)
            await world.stop_server()
            await world.start_server("last")
            await comes_to(world, "ended")
            assert await leftovers(world) == {}

    run(main)


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


def test_its_end_can_be_put_off_and_is_announced() -> None:
    async def main() -> None:
        async with site() as world:
            await ask(world, count=1, duration_s=1200, warn_s=600)
            await comes_to(world, "running")

            async def soon() -> bool:
                return bool((await request(world))["conditions"][0]["reason"] == "EndsSoon")

            began = clock()
            await world.until(soon, 700)
            assert 590 < clock() - began < 610
            await world.patch(KIND, "job", "acme", duration_s=7200)

            async def later() -> bool:
                return not await soon()

            await world.until(later)
            (row,) = await rows(world)
            assert iso(row.assigned.end) == (await request(world))["observed"]["ends_at"]
            await asyncio.sleep(1300)
            assert running(world) == 1
            with pytest.raises(Invalid):
                await world.patch(KIND, "job", "acme", duration_s=10)
            await world.patch(KIND, "job", "acme", duration_s=0)
            await world.delete(KIND, "job", "acme")

            async def gone() -> bool:
                return not await world.exists(KIND, "job", "acme")

            await world.until(gone)

    run(main)


def test_what_is_over_changes_no_more() -> None:
    async def main() -> None:
        async with site() as world:
            await ask(world, count=1, duration_s=60)
            await comes_to(world, "ended")
            with pytest.raises(Conflict):
                await world.patch(KIND, "job", "acme", duration_s=600)

    run(main)


def test_machines_are_asked_for_by_what_they_shall_do() -> None:
    async def main() -> None:
        async with site() as world:
            await ask(world, count=2, function="web-server", load=500)
            found = await comes_to(world, "running")
            needed = resources_of("web-server", 500)
            for vm in await vms(world):
                machine = world.hosts[vm.host].machines.machines[vm.id].spec
                assert (machine.vcpus, machine.memory_mib) == (needed.vcpus, needed.memory_mib)
            assert found["assigned"]["disk_gib"] == needed.disk_gib

    run(main)


def test_a_dry_run_says_what_would_be_chosen_and_why_the_rest_is_not_and_changes_nothing() -> None:
    async def main() -> None:
        async with site(hosts=2) as world:
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            before = await world.store.fetch(CHARGES)
            wish = {"nics": [], "count": 3, "mode": "best-effort", "vcpus": 1, "memory_mib": free * 3 // 5}
            body = msgspec.json.encode({"name": "job", "desired": wish})
            answer = await world.servers[0].surface.create(world.call("acme", dry_run=True), KIND, body)
            decisions = msgspec.json.decode(answer.body)["decisions"]
            chosen = [each for each in decisions if each["verdict"] == "chosen"]
            assert {each["reason"] for each in chosen} == {"host host0", "host host1"}
            (refused,) = [each for each in decisions if each["verdict"] == "refused"]
            assert (refused["subject"], refused["reason"]) == ("machine 3", "NoMemory")
            assert "2 hosts" in refused["message"]
            tenant = Principal(user_id="u", user="ann", account_id="", account="", role="owner", rules=OPERATOR.rules)
            account = await world.get("tenancy.account", "acme")
            tenant = msgspec.structs.replace(tenant, account_id=account["id"], account="acme")
            answer = await world.servers[0].surface.create(world.call("acme", tenant, dry_run=True), KIND, body)
            assert "host0" not in str(answer.body)
            assert await world.store.fetch(CHARGES) == before
            assert not await world.exists(KIND, "job", "acme")

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
