"""The due queue and its leases: nothing is lost, nothing is done by two."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog
from tests.contract.store.store_bench import THING, Bench, ThingAssigned, make

from pileus.kernel import loop as loops
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import LeaseLost
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import LEASE_S, Controller, Leased, Loop, scan
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction


async def lease(store: Store) -> list[Leased]:
    """Lease what is due, as a server's loop does."""
    return await Loop(store, Hub(store), {})._lease()


def test_a_new_thing_is_due_and_leased_by_one_server_only(bench: Bench) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            names = ("one", "two") if bench.shared else ("one",)
            stores = [await stack.enter_async_context(bench.store(name)) for name in names]
            made = [await make(stores[0], f"t{n}") for n in range(20)]
            batches = await asyncio.gather(*(lease(store) for store in stores * 4))
            leased = [each.id for batch in batches for each in batch]
            assert sorted(leased) == sorted(each.id for each in made)

    bench.run(main)


def test_a_lease_that_expired_goes_to_another_and_the_first_may_write_no_more(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            (first,) = await lease(store)
            assert await lease(store) == []
            bench.clock.now += LEASE_S + 1
            (second,) = await lease(store)
            with pytest.raises(LeaseLost):
                await store.write(lambda tx: tx.check_lease(made.id, first.token))
            await store.write(lambda tx: tx.check_lease(made.id, second.token))

    bench.run(main)


def test_an_old_lease_is_worth_nothing_even_after_the_work_was_done_and_became_due_again(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            (old,) = await lease(store)
            bench.clock.now += LEASE_S + 1
            await lease(store)
            await store.write(lambda tx: tx.change(sql.WORK_DELETE, id=made.id))
            await store.write(lambda tx: tx.enqueue(made.id))
            await lease(store)
            with pytest.raises(LeaseLost):
                await store.write(lambda tx: tx.check_lease(made.id, old.token))

    bench.run(main)


def test_work_asked_for_while_it_is_done_is_done_once_more(bench: Bench) -> None:
    seen: list[int] = []

    class Counting(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            seen.append(len(seen))
            if len(seen) == 1:
                await store.write(lambda tx: tx.enqueue(resource.id))
            return Done()

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Counting()):
            made = await make(store, "a")
            await until(lambda: settled(store, made.id))
            assert len(seen) == 2

    bench.run(main)


def test_work_asked_for_while_it_is_done_does_not_wait_for_a_pause_to_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "PAUSE_MAX_S", 60.0)
    begun, go_on = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    class Slow(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            seen.append(resource.revision)
            begun.set()
            await go_on.wait()
            return Done()

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Slow()):
            made = await make(store, "a")
            async with asyncio.timeout(LEASE_S / 2):
                await begun.wait()
                await store.write(lambda tx: tx.enqueue(made.id))
                begun.clear()
                await asyncio.sleep(0.1)  # the loop sees that nothing is free now
                go_on.set()
                await begun.wait()
            assert len(seen) == 2

    bench.run(main)


def test_work_asked_for_while_a_failing_try_of_it_runs_is_due_at_once(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            (leased,) = await lease(store)
            await store.write(lambda tx: tx.enqueue(made.id))
            await Loop(store, Hub(store), {})._again(leased, 60.0, 1)
            assert [each.id for each in await lease(store)] == [made.id]

    bench.run(main)


def test_a_renewal_that_comes_after_the_lease_was_given_back_does_not_take_it_again(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await make(store, "a")
            (leased,) = await lease(store)
            loop = Loop(store, Hub(store), {})
            await loop._again(leased, 0.0, 0)
            renewal = {"b_id": leased.id, "b_token": leased.token, "until": bench.clock.now + LEASE_S}
            await store.write(lambda tx: tx.change(sql.WORK_RENEW, **renewal))
            assert [each.id for each in await lease(store)] == [leased.id]

    bench.run(main)


def test_waiting_often_does_not_make_the_first_failure_after_it_a_late_one(bench: Bench) -> None:
    seen: list[int] = []

    class Waits(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            seen.append(len(seen))
            if len(seen) == 12:
                raise ZeroDivisionError
            return Wait("NotYet", "it is not time", 0.01) if len(seen) < 12 else Done()

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Waits()), asyncio.timeout(15.0):
            made = await make(store, "a")
            await until(lambda: settled(store, made.id))
            assert len(seen) == 13

    bench.run(main)


def test_a_write_between_a_decision_and_its_waiting_is_no_defect(bench: Bench) -> None:
    others: list[asyncio.Task[Resource]] = []

    class Waits(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            async def label(tx: Transaction) -> Resource:
                return await tx.update(resource, labels={"a": "b"})

            async def apply(tx: Transaction) -> None:
                if not others:
                    others.append(asyncio.create_task(store.write(label)))
                    raise Waiting("NotYet", "it is not time", 0.01)

            return Done(apply)

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Waits()):
            with structlog.testing.capture_logs() as logs:
                made = await make(store, "a")
                await until(lambda: settled(store, made.id))
            assert (await others[0]).labels == {"a": "b"}
            assert [each for each in logs if each["log_level"] == "error"] == []

    bench.run(main)


def test_a_controller_that_waits_is_asked_again_and_says_why(bench: Bench) -> None:
    seen: list[int] = []

    class Waits(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            seen.append(len(seen))
            return Wait("NotYet", "it is not time", 0.01) if len(seen) < 3 else Done()

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Waits()):
            made = await make(store, "a")
            await until(lambda: settled(store, made.id))
            assert len(seen) == 3
            events = [
                (row[7], row[8])
                for row in await store.fetch(sql.EVENTS_NEWEST["id"], id=made.id, kinds=",test.thing,", after=0, n=10)
            ]
            assert ("NotYet", "it is not time") in events
            assert (await store.get(made.id)).ready is not None

    bench.run(main)


def test_a_defect_of_one_controller_does_not_stop_the_others(bench: Bench) -> None:
    class Breaks(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            if resource.name == "bad":
                raise ZeroDivisionError
            return Done(lambda tx: place(tx, resource))

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Breaks()):
            await make(store, "bad")
            good = [await make(store, f"t{number}") for number in range(5)]
            for each in good:
                await until(functools.partial(placed, store, each.id))

    bench.run(main)


def test_two_servers_decide_about_each_thing_once(shared_bench: Bench) -> None:
    decided: list[str] = []

    class Places(Controller):
        async def reconcile(self, resource: Resource, store: Store) -> Outcome:
            if resource.host:
                return Done()
            decided.append(resource.name)
            await asyncio.sleep(0)
            return Done(lambda tx: place(tx, resource))

    async def main() -> None:
        async with (
            shared_bench.store("one", system_clock) as one,
            shared_bench.store("two", system_clock) as two,
            running(one, Places()),
            running(two, Places()),
        ):
            made = [await make(one, f"t{number}") for number in range(40)]
            for each in made:
                await until(functools.partial(placed, one, each.id))
            assert len(decided) == len(set(decided)) == 40

    shared_bench.run(main)


def test_what_is_not_ready_and_not_due_is_found_by_the_scan(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            lost = await make(store, "lost", size=200)
            fine = await make(store, "fine")
            for each in (lost, fine):
                await store.write(functools.partial(forget_work, id=each.id))
            assert await scan(store) == 1
            assert [each.id for each in await lease(store)] == [lost.id]

    bench.run(main)


def test_a_clock_that_was_set_back_by_an_hour_stops_neither_work_nor_leases(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            leased = await make(store, "leased")
            await lease(store)
            waiting = await make(store, "waiting")
            bench.clock.now -= 3600.0
            await scan(store)
            assert {each.id for each in await lease(store)} == {leased.id, waiting.id}
            await scan(store)
            assert await lease(store) == [], "a lease that is no older than it may be holds"

    bench.run(main)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition; the bench's patience limits it."""
    while True:
        if await true():
            return
        await asyncio.sleep(0.01)


async def forget_work(tx: Transaction, id: str) -> None:
    """Lose what made a thing due."""
    await tx.change(sql.WORK_DELETE, id=id)


async def settled(store: Store, id: str) -> bool:
    """Tell whether no work is left for a thing."""
    return not await store.fetch(sql.WORK_TOKEN, id=id)


async def placed(store: Store, id: str) -> bool:
    """Tell whether a thing has a host."""
    return (await store.get(id)).host != ""


async def place(tx: Transaction, resource: Resource) -> None:
    """Assign a host."""
    await tx.update(resource, assigned=ThingAssigned(host="h"))


@contextlib.asynccontextmanager
async def running(store: Store, controller: Controller) -> AsyncIterator[Loop]:
    """Run a server's loop for the block."""
    hub = Hub(store)
    await hub.open()
    loop = Loop(store, hub, {THING.name: controller})
    await loop.open()
    try:
        yield loop
    finally:
        await loop.close()
        await hub.close()
