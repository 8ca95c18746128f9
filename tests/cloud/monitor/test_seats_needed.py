"""VMs that need a seat run with one only: the others are held, and start by themselves in their order."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from tests.cloud.monitor.seat_world import (
    ACCOUNT,
    NEED,
    are_running,
    check_books,
    furnish,
    label,
    license,
    live,
    make_vm,
    reason,
    running,
)
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid, QuotaExceeded
from pileus.kernel.store.lists import Filter
from pileus.monitor.entitlement.types import NEEDED_MAX


async def watch(world: Cloud, limit: int, until: asyncio.Event) -> int:
    """Return the most machines that ran at the same time. Raises: AssertionError for more than ``limit``."""
    most = 0
    while not until.is_set():
        most = max(most, len(live(world)))
        assert most <= limit
        await asyncio.sleep(0.01)
    return most


async def have_reason(world: Cloud, name: str, wanted: str) -> bool:
    return (await reason(world, name))[0] == wanted


def test_of_32_vms_started_at_once_five_run_and_one_more_for_each_that_stops() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            await furnish(world)
            await license(world, limit=5, lease_s=0)
            done = asyncio.Event()
            watching = asyncio.create_task(watch(world, 5, done))
            await asyncio.gather(*(make_vm(world, f"vm{number:02}") for number in range(32)))
            await world.until(lambda: _count(world, 5))
            await world.settle()
            await check_books(world)
            waiting = [vm for vm in await world.store.list(Filter(kind="compute.vm")) if vm.assigned.bar]
            assert len(waiting) == 27
            assert all(vm.ready is not None and vm.ready.reason == "NoSeat" for vm in waiting)
            entitlement = await world.resource("monitor.entitlement", "db", ACCOUNT)
            assert (entitlement.observed.used, entitlement.observed.waiting) == (5, 27)
            for number in range(27):
                before = await running(world)
                stopped = before[number % 5]
                if number % 2:
                    await world.patch("compute.vm", stopped, ACCOUNT, power="stopped")
                else:
                    await world.delete("compute.vm", stopped, ACCOUNT)
                await world.until(functools.partial(_is_another, world, before, stopped))
                await check_books(world)
            done.set()
            assert await watching == 5

    run(main)


async def _count(world: Cloud, number: int) -> bool:
    return len(live(world)) == number


async def _is_another(world: Cloud, before: list[str], stopped: str) -> bool:
    now = await running(world)
    entitlement = await world.resource("monitor.entitlement", "db", ACCOUNT)
    return len(now) == 5 and stopped not in now and len(set(now) - set(before)) == 1 and entitlement.observed.used == 5


def test_who_waits_longest_is_first_and_says_why_it_waits() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, lease_s=10)
            for name in ("first", "second", "third"):
                await make_vm(world, name)
                await world.settle()
            assert await running(world) == ["first"]
            assert await reason(world, "third") == (
                "NoSeat",
                "held: no seat of entitlement db (1 of 1 instances in use); return one or register more",
            )
            await world.patch("compute.vm", "third", ACCOUNT, boot_serial=7)  # asking again is no way to the front
            await world.patch("compute.vm", "first", ACCOUNT, power="stopped")
            began = clock()
            await world.until(lambda: are_running(world, ["second"]))
            assert 10.0 <= clock() - began < 25.0
            await world.patch("compute.vm", "first", ACCOUNT, power="running")
            await world.settle()
            await world.delete("compute.vm", "second", ACCOUNT)
            await world.until(lambda: are_running(world, ["third"]))
            await license(world, "more", limit=1)
            await world.until(lambda: are_running(world, ["first", "third"]))
            seat = (await world.list("monitor.seat"))[0]
            with pytest.raises(Conflict, match="belongs to entitlement"):
                await world.delete("monitor.seat", seat["name"], ACCOUNT)

    run(main)


def test_what_ran_before_goes_on_and_needs_a_seat_for_its_next_start() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            for name in ("one", "two"):
                await make_vm(world, name)
                await world.until(functools.partial(world.is_ready, "compute.vm", name, ACCOUNT))
            await license(world)
            await world.settle()
            assert await running(world) == ["one", "two"]
            entitlement = await world.resource("monitor.entitlement", "db", ACCOUNT)
            assert (entitlement.observed.used, entitlement.observed.unseated, entitlement.observed.waiting) == (1, 1, 0)
            assert entitlement.ready is not None
            assert entitlement.ready.reason == "OverUse"
            over = next(vm for vm in await world.store.list(Filter(kind="compute.vm")) if vm.assigned.bar)
            assert await world.is_ready("compute.vm", over.name, ACCOUNT)
            host = next(iter(world.hosts.values()))
            host.machines.crash(over.id)
            await world.until(lambda: have_reason(world, over.name, "NoSeat"))
            await asyncio.sleep(400)
            assert over.name not in await running(world)
            await world.delete("monitor.entitlement", "db", ACCOUNT)
            await world.until(lambda: are_running(world, ["one", "two"]))
            await world.until(lambda: _is_gone(world, "monitor.entitlement", "db"))
            assert await world.list("monitor.seat") == []

    run(main)


async def _is_gone(world: Cloud, kind: str, name: str) -> bool:
    return not await world.exists(kind, name, ACCOUNT)


def test_labels_needs_and_power_all_let_a_held_vm_go() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, limit=0)
            for name in ("labelled", "needed", "stopped"):
                await make_vm(world, name)
            await make_vm(world, "other", {"product": "mail"})
            await world.until(lambda: are_running(world, ["other"]))
            await world.patch("compute.vm", "stopped", ACCOUNT, power="stopped")
            await world.until(functools.partial(world.is_ready, "compute.vm", "stopped", ACCOUNT))
            await label(world, "labelled", {"product": None})
            await world.until(lambda: are_running(world, ["labelled", "other"]))
            await label(world, "other", NEED)  # it runs already
            await world.settle()
            assert await running(world) == ["labelled", "other"]
            await world.patch("monitor.entitlement", "db", ACCOUNT, needed_by={"product": "mail"})
            await world.until(lambda: are_running(world, ["labelled", "needed", "other"]))
            await world.patch("compute.vm", "stopped", ACCOUNT, power="running")
            await world.until(lambda: are_running(world, ["labelled", "needed", "other", "stopped"]))

    run(main)


def test_a_label_and_a_start_in_one_wish_are_no_way_around() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, limit=0)
            for number in range(20):
                await make_vm(world, f"vm{number}", {}, power="stopped")
            await world.settle()
            for number in range(20):
                await label(world, f"vm{number}", {"product": "db"})
                await world.patch("compute.vm", f"vm{number}", ACCOUNT, power="running")
            end = clock() + 30
            while clock() < end:
                assert live(world) == set()
                await asyncio.sleep(0.01)

    run(main)


def test_soft_ones_let_it_start_and_say_so() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, enforcement="soft", metric="vcpus", limit=2)
            await make_vm(world, "one", vcpus=2, memory_mib=256)
            await make_vm(world, "two", vcpus=4, memory_mib=256)
            await world.until(lambda: are_running(world, ["one", "two"]))
            await world.settle()
            found = await world.resource("monitor.entitlement", "db", ACCOUNT)
            assert (found.observed.used, found.observed.over) == (6, 4)
            await check_books(world)

    run(main)


def test_units_follow_the_size_and_what_never_fits_lets_others_pass() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, metric="vcpus", limit=4)
            await make_vm(world, "large", vcpus=8, memory_mib=256)
            await world.settle()
            assert (await reason(world, "large"))[1] == (
                "held: entitlement db has 4 vcpus in all, and 8 are needed; register more"
            )
            await make_vm(world, "small", vcpus=3, memory_mib=256)
            await world.until(lambda: are_running(world, ["small"]))
            await world.patch("compute.vm", "small", ACCOUNT, power="stopped")
            await world.until(functools.partial(world.is_ready, "compute.vm", "small", ACCOUNT))
            await world.patch("compute.vm", "small", ACCOUNT, vcpus=4, power="running")
            await world.until(lambda: are_running(world, ["small"]))
            await world.settle()
            assert [seat["assigned"]["units"] for seat in await world.list("monitor.seat")] == [4]
            await check_books(world)

    run(main)


def test_a_vm_takes_the_seats_of_all_products_or_none() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, "db", lease_s=0)
            await license(world, "os", product="System", needed_by={"os": "x"}, lease_s=0)
            await make_vm(world, "db-alone")
            await world.settle()
            await make_vm(world, "both", {**NEED, "os": "x"})
            await world.settle()
            await make_vm(world, "os-alone", {"os": "x"})
            await world.until(lambda: are_running(world, ["db-alone", "os-alone"]))  # nobody waits for that one
            await world.delete("compute.vm", "db-alone", ACCOUNT)
            await world.settle()
            assert await running(world) == ["os-alone"]
            await make_vm(world, "late")
            await world.until(lambda: are_running(world, ["late", "os-alone"]))
            for name in ("late", "os-alone"):
                await world.patch("compute.vm", name, ACCOUNT, power="stopped")
            await world.until(lambda: are_running(world, ["both"]))
            await check_books(world)

    run(main)


@pytest.mark.parametrize("at_end", ["return", "report", "stop"])
def test_the_end_of_a_term_holds_stops_or_reports(at_end: str) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            now = clock()
            times: dict[str, Any] = {"starts": iso(now + 100), "ends": iso(now + 400), "grace_s": 100}
            await license(world, limit=5, at_end=at_end, **times)
            await make_vm(world, "one")
            await world.settle()
            assert await reason(world, "one") == ("NoSeat", f"held: entitlement db begins {times['starts']}")
            await world.until(lambda: are_running(world, ["one"]), limit_s=200.0)
            assert 100 <= clock() - now < 110
            await asyncio.sleep(420 - (clock() - now))
            await make_vm(world, "late")
            await world.settle()
            assert await reason(world, "late") == (
                "NoSeat",
                f"held: entitlement db ended {times['ends']}; register another",
            )
            assert await running(world) == ["one"]
            await asyncio.sleep(499 - (clock() - now))
            assert await running(world) == ["one"]
            await asyncio.sleep(100)
            assert await running(world) == ([] if at_end == "stop" else ["one"])
            await world.patch("compute.vm", "one", ACCOUNT, boot_serial=9)
            await asyncio.sleep(100)
            assert await running(world) == ([] if at_end == "stop" else ["one"])
            await license(world, "next", limit=5)
            await world.until(lambda: are_running(world, ["late", "one"]))
            await world.settle()
            assert await world.is_ready("compute.vm", "one", ACCOUNT)

    run(main)


def test_a_seat_made_by_hand_ends_with_its_vm_stopped_until_it_is_returned() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await license(world, needed_by={}, at_end="stop", ends=iso(clock() + 100))
            await make_vm(world, "one")
            await world.until(lambda: are_running(world, ["one"]))
            await world.create("monitor.seat", "mine", ACCOUNT, entitlement="db", vm="one", lease_s=10)
            await world.until(lambda: are_running(world, []))
            await world.until(lambda: have_reason(world, "one", "NoSeat"))
            await asyncio.sleep(400)
            assert await running(world) == []
            await world.delete("monitor.seat", "mine", ACCOUNT)
            await world.until(lambda: are_running(world, ["one"]))

    run(main)


def test_users_are_not_counted_by_vms() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            with pytest.raises(Invalid, match="by hand"):
                await license(world, metric="users")

    run(main)


def test_an_account_has_so_many_that_vms_need_and_no_more() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)

            async def register(name: str, **wish: Any) -> None:
                await world.create("monitor.entitlement", name, ACCOUNT, product=name, limit=1, **wish)

            for number in range(NEEDED_MAX):
                await register(f"e{number}", needed_by={"none": "has-it"})
            with pytest.raises(QuotaExceeded, match="which is the most"):
                await register("more", needed_by=NEED)
            await register("more")
            with pytest.raises(QuotaExceeded, match="which is the most"):
                await world.patch("monitor.entitlement", "more", ACCOUNT, needed_by=NEED)
            await world.patch("monitor.entitlement", "e7", ACCOUNT, needed_by={"none": None})
            await world.patch("monitor.entitlement", "more", ACCOUNT, needed_by=NEED)
            await world.patch("monitor.entitlement", "e8", ACCOUNT, needed_by={"none": "other"})

    run(main)
