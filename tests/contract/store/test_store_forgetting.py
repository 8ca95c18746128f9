"""What is too old to matter is forgotten, and who would need it is told so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.contract.store.store_bench import REGISTRY, THING, Bench, make

from pileus.kernel.access import Principal, Rule
from pileus.kernel.hub import Hub
from pileus.kernel.reading import Call, ListQuery, Reading
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Row
from pileus.kernel.store.store import Store
from pileus.server import chores

DAY_S = 86_400.0
OPERATOR = Principal(
    user_id="o", user="o", account_id="", account="", role="o", rules=(Rule(kinds=("*",), verbs=("get",)),)
)


async def events(store: Store) -> Sequence[Row]:
    """Return all events."""
    return await store.fetch(sql.EVENTS_NEWEST[""], kinds=f",{THING.name},", after=0, n=1000)


async def first(store: Store, since: int) -> str:
    """Return the first that a watch since this revision hears."""
    hub = Hub(store)
    await hub.open()
    watch = Reading(store, hub, REGISTRY).watch(
        Call(principal=OPERATOR, all_accounts=True), THING.name, ListQuery(), since
    )
    try:
        return (await anext(watch))[0]
    finally:
        await hub.close()


def test_events_are_kept_for_thirty_days(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "EVENTS_AT_ONCE", 3, raising=False)

    async def main() -> None:
        async with bench.store() as store:
            for number in range(8):
                await make(store, f"old{number}")
            bench.clock.now += 20 * DAY_S
            await make(store, "young")
            await chores.prune(store)
            assert len(await events(store)) == 9
            bench.clock.now += 11 * DAY_S
            await chores.prune(store)
            assert {row[5] for row in await events(store)} == {"young"}

    bench.run(main)


def test_a_watch_from_before_what_was_forgotten_starts_anew(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            await store.write(lambda tx: tx.purge(made))
            bench.clock.now += 2 * DAY_S
            assert await first(store, made.revision) == "gone"
            await chores.prune(store)
            assert await first(store, made.revision) == "reset"
            later = await make(store, "b")
            assert await first(store, later.revision - 1) == "put"

    bench.run(main)


def test_a_watch_from_a_revision_that_a_restored_database_has_not_reached_starts_anew(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")
            assert await first(store, made.revision + 1000) == "reset"

    bench.run(main)
