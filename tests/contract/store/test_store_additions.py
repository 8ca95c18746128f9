"""A database that an older version made gets the columns that it lacks, and what is in it keeps its meaning."""

from __future__ import annotations

import sqlite3

import asyncpg
import pytest
from tests.contract.store.store_bench import Bench, make

from pileus.kernel.store.lists import Filter

OLDER = ("resource_manager", "event_manager", "gone_manager")
"""Indexes that the older version did not have; nor had it their columns."""


async def make_older(bench: Bench) -> None:
    """Take out of the database what the older version did not know."""
    statements = [f"DROP INDEX {name}" for name in OLDER]
    statements += [f"ALTER TABLE {table} DROP COLUMN manager" for table in ("resource", "gone", "event")]
    if bench.shared:
        connection = await asyncpg.connect(bench.url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()
        return
    assert bench.path is not None
    with sqlite3.connect(bench.path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


@pytest.mark.parametrize("times", [1, 2])
def test_columns_that_an_older_database_lacks_are_added_with_their_default(bench: Bench, times: int) -> None:
    async def main() -> None:
        async with bench.store() as store:
            before = await make(store, "before", host="h")
        await make_older(bench)
        for _ in range(times):
            async with bench.store() as store:
                assert await store.get(before.id) == before
        async with bench.store() as store:
            assert (await store.get(before.id)).manager == ""
            after = await make(store, "after", manager="m")
            changed = await store.write(lambda tx: tx.update(after, labels={"a": "b"}))
            assert changed.manager == "m"
            assert await store.list(Filter(kind=after.kind, manager="m")) == [changed]
            assert {each.name for each in await store.list(Filter(kind=after.kind))} == {"before", "after"}

    bench.run(main)
