"""Writes of the store: all or nothing, in the order of their revisions, on both engines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.contract.store.store_bench import THING, Bench, ThingDesired, make, thing

from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction


def test_what_was_written_is_read_back_after_the_database_was_opened_again(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a", size=7, host="h1")
        async with bench.store() as store:
            assert await store.get(made.id) == made
            assert (made.generation, made.host, made.desired.size) == (1, "h1", 7)
            await make(store, "b")
            newest = (await store.fetch(sql.NEWEST))[0][0]
            assert newest > made.revision

    bench.run(main)


def test_a_write_that_raises_leaves_nothing_and_its_neighbours_stay(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:

            async def work(number: int) -> None:
                async def inside(tx: Transaction) -> None:
                    await tx.create(thing(f"t{number}"))
                    await tx.set_capacity(f"space{number}", 5)
                    if number % 3 == 0:
                        raise Invalid("refused")

                await store.write(inside)

            results = await asyncio.gather(*(work(number) for number in range(60)), return_exceptions=True)
            assert [isinstance(each, Invalid) for each in results] == [number % 3 == 0 for number in range(60)]
            kept = {row.name for row in await store.list(Filter(kind=THING.name))}
            assert kept == {f"t{number}" for number in range(60) if number % 3}
            capacities = await store.fetch(sql.BUDGET, space="space3")
            assert capacities == []

    bench.run(main)


def test_a_dry_run_answers_and_leaves_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:

            async def work(tx: Transaction) -> str:
                return (await tx.create(thing("ghost"))).name

            assert await store.dry_run(work) == "ghost"
            assert await store.list(Filter(kind=THING.name)) == []

    bench.run(main)


def test_a_name_is_taken_once_and_free_again_after_the_purge(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            with pytest.raises(Conflict, match="thing a exists already") as refused:
                await make(store, "a")
            assert refused.value.code == "already-exists"

            async def purge(tx: Transaction) -> None:
                await tx.purge(await tx.get(made.id))

            await store.write(purge)
            with pytest.raises(NotFound):
                await store.get(made.id)
            again = await make(store, "a")
            assert again.id != made.id

    bench.run(main)


def test_of_two_changes_of_the_same_state_the_second_is_refused(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            old = await make(store, "a")

            async def change(tx: Transaction) -> Any:
                return await tx.update(old, desired=ThingDesired(size=2))

            changed = await store.write(change)
            assert (changed.generation, changed.revision > old.revision) == (2, True)

            async def change_again(tx: Transaction) -> Any:
                return await tx.update(old, desired=ThingDesired(size=3))

            with pytest.raises(Conflict) as refused:
                await store.write(change_again)
            assert refused.value.code == "stale-revision"
            assert (await store.get(old.id)).desired.size == 2

    bench.run(main)


def test_a_change_that_changes_nothing_gives_no_revision(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            old = await make(store, "a")

            async def same(tx: Transaction) -> Any:
                return await tx.update(old, desired=ThingDesired(size=1), labels={})

            assert await store.write(same) == old

    bench.run(main)


def test_revisions_are_committed_in_their_order(bench: Bench) -> None:
    """A reader that saw revision n has seen all below it; with two writers where the database allows two."""

    async def main() -> None:
        async with bench.store("one") as one, bench.store("two") if bench.shared else bench.store("one") as two:
            writers = (one, two) if bench.shared else (one,)

            async def write(number: int) -> None:
                await make(writers[number % len(writers)], f"t{number}")

            seen: set[str] = set()
            complete = 0
            tasks = [asyncio.create_task(write(number)) for number in range(200)]
            while not all(task.done() for task in tasks):
                newest = (await one.fetch(sql.NEWEST))[0][0]
                rows = await one.fetch(sql.CHANGES, after=0, n=1000)
                late = {row[1] for row in rows if row[0] <= complete} - seen
                assert not late, "a lower revision appeared after a higher one"
                complete = newest
                seen = {row[1] for row in rows if row[0] <= newest}
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            revisions = [row[0] for row in await one.fetch(sql.CHANGES, after=0, n=1000)]
            assert len(revisions) == len(set(revisions)) == 200

    bench.run(main)


def test_a_watcher_is_woken_for_its_scope_and_for_no_other(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            hub = Hub(store)
            await hub.open()
            try:
                with hub.watch(("host", "h1")) as mine, hub.watch(("host", "h2")) as other:
                    made = await make(store, "a", host="h1")
                    assert await mine.wait(30.0)
                    assert hub.revision >= made.revision
                    assert not await other.wait(0.05)
            finally:
                await hub.close()

    bench.run(main)


def test_a_watcher_hears_of_what_another_server_wrote(shared_bench: Bench) -> None:
    async def main() -> None:
        async with shared_bench.store("one") as one, shared_bench.store("two") as two:
            hub = Hub(one)
            await hub.open()
            try:
                with hub.watch(("kind", THING.name)) as watcher:
                    made = await make(two, "a")
                    assert await watcher.wait(30.0)
                    assert hub.revision >= made.revision
            finally:
                await hub.close()

    shared_bench.run(main)


def test_leaving_a_host_is_announced_to_that_host(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a", host="h1")
            hub = Hub(store)
            await hub.open()
            try:
                with hub.watch(("host", "h1")) as watcher:
                    await store.write(lambda tx: tx.purge(made))
                    assert await watcher.wait(30.0)
                rows = await store.fetch(sql.GONE, after=0, n=10)
                assert [(row[1], row[4]) for row in rows] == [(made.id, "h1")]
            finally:
                await hub.close()

    bench.run(main)


def test_labels_and_filters_find_what_they_name(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            for number in range(6):
                made = await make(store, f"t{number}", size=1 if number % 2 else 200, host=f"h{number % 3}")

                async def tag(tx: Transaction, id: str = made.id, number: int = number) -> None:
                    await tx.update(await tx.get(id), labels={"tier": str(number // 3)})

                await store.write(tag)
            names = [row.name for row in await store.list(Filter(kind=THING.name, labels=(("tier", "1"),)))]
            assert names == ["t3", "t4", "t5"]
            assert [row.name for row in await store.list(Filter(kind=THING.name, ready="false"))] == ["t0", "t2", "t4"]
            assert [row.name for row in await store.list(Filter(kind=THING.name, host="h1"))] == ["t1", "t4"]
            first = await store.list(Filter(kind=THING.name), limit=4)
            rest = await store.list(Filter(kind=THING.name), after=first[-1].id, limit=4)
            assert [row.name for row in first + rest] == [f"t{number}" for number in range(6)]

    bench.run(main)


def test_a_commit_that_fails_in_an_unknown_way_is_told_and_the_next_one_works(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            healthy = store.engine.group

            def broken() -> Any:
                store.engine.group = healthy  # type: ignore[method-assign]
                raise ZeroDivisionError

            store.engine.group = broken  # type: ignore[method-assign]
            with pytest.raises(ZeroDivisionError):
                await make(store, "a")
            assert (await make(store, "b")).name == "b"

    bench.run(main)


async def purge(store: Store, made: Resource) -> None:
    """Remove a thing."""
    await store.write(lambda tx: tx.purge(made))


def test_a_server_may_start_while_another_writes(shared_bench: Bench) -> None:
    async def main() -> None:
        async with shared_bench.store("one") as one:
            going = True

            async def write() -> int:
                number = 0
                while going:
                    await purge(one, await make(one, f"t{number}", host="h"))
                    number += 1
                return number

            task = asyncio.create_task(write())
            for _ in range(15):
                async with shared_bench.store("two") as two:
                    await two.put_settings({"a": "b"})
            going = False
            assert await task > 0

    shared_bench.run(main)
