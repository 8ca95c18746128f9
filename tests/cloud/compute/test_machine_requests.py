"""Requests for many machines: within their window, none past their end, and what is said of them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
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
from tests.cloud.world import OPERATOR, Cloud, leftovers
from tests.virtual_time import clock, run

from pileus.compute.functions import resources_of
from pileus.kernel.access import Principal
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid


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
            await world.until(lambda: has_vms(world, 2))
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
    ({"offering": "tiny", "iops_limit": 100}, "desired.iops_limit"),
    ({"offering": "tiny", "rate_limit_kbps": 100}, "desired.rate_limit_kbps"),
    ({"start_at": "2031-01-01T00:00:00"}, "desired.start_at"),
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


def test_a_server_killed_in_the_middle_leaves_its_work_to_another() -> None:
    async def main() -> None:
        async with site(hosts=4) as world:
            await ask(world, count=50, duration_s=900, vcpus=1, memory_mib=64)
            for number, count in enumerate((1, 25, 50)):

                async def some(count: int = count) -> bool:
                    return len(await vms(world)) >= count

                await world.until(some)
                await world.stop_server()
                await world.start_server(f"server{number}")
            await comes_to(world, "running")
            assert running(world) == 50
            await comes_to(world, "ending", limit_s=1000)
            await world.stop_server()
            await world.start_server("last")
            await comes_to(world, "ended")
            assert await leftovers(world) == {}

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


def test_time_passes_while_it_is_looked_for_room() -> None:
    async def main() -> None:
        async with site() as world:
            ticks = itertools.count()
            for server in world.servers:
                server.store.clock = lambda: clock() + next(ticks) / 1_000_000
            free = (await world.get("infra.host", "host0"))["observed"]["memory_mib"] - 1024
            size: dict[str, Any] = {"vcpus": 1, "memory_mib": free * 3 // 5}
            await ask(world, "cheap", count=2, service="best-effort", **size)
            await comes_to(world, "running", "cheap")
            await ask(world, "dear", **size)
            await comes_to(world, "running", "dear")

    run(main)


def test_machines_are_limited_as_asked_and_as_their_account_is() -> None:
    async def main() -> None:
        async with site() as world:
            limits: dict[str, Any] = {"iops_limit": 300, "throughput_limit_kib_s": 2048, "rate_limit_kbps": 9000}
            nics = [{"network": "default"}]
            await ask(world, count=2, vcpus=1, memory_mib=64, nics=nics, **limits)
            await comes_to(world, "running", limit_s=600)
            held = [each.quantity for row in await rows(world) for each in row.assigned.contributions]
            assert [(one["iops"], one["rate_kbps"]) for one in ({**held[0], **held[1]},)] == [(300, 9000)]
            assert await _in_force(world) == {(300, 2048 * 1024, 9000)}
            await world.patch("tenancy.account", "acme", limits={"rate_limit_kbps": 4000, "iops_limit": 500})

            async def lower() -> bool:
                return await _in_force(world) == {(300, 2048 * 1024, 4000)}

            await world.until(lower)

    run(main)


async def _in_force(world: Cloud) -> set[tuple[int, int, int]]:
    """Return (operations, bytes, kbit/s) of the machines' disks and ports."""
    found = set()
    for vm in await vms(world):
        host = world.hosts[vm.host]
        (disk,) = host.machines.machines[vm.id].spec.disks
        rates = {host.switch.ports[id].rate_limit_kbps for id in vm.assigned.ports}
        found |= {(disk.throttle.iops, disk.throttle.bytes_per_s, rate) for rate in rates}
    return found


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
