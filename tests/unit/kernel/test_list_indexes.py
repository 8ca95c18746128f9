"""Which index serves each list on SQLite, which has no statistics to choose by: none may read a whole kind."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter, list_statement
from pileus.kernel.store.sqlite import SqliteEngine

LISTS: list[tuple[dict[str, Any], str]] = [
    ({}, "resource_kind (kind=? AND id>?)"),
    ({"account_id": "a"}, "resource_account (kind=? AND account_id=? AND id>?)"),
    ({"account_id": "a", "zone": "z"}, "resource_account (kind=? AND account_id=? AND id>?)"),
    ({"account_id": "a", "ready": "false"}, "resource_account (kind=? AND account_id=? AND id>?)"),
    ({"account_id": "", "ready": "false"}, "resource_ready (kind=? AND ready=? AND id>?)"),
    ({"ready": "false"}, "resource_ready (kind=? AND ready=? AND id>?)"),
    ({"host": "h"}, "resource_host (host=? AND kind=? AND id>?)"),
    ({"account_id": "a", "host": "h"}, "resource_host (host=? AND kind=? AND id>?)"),
    ({"vdc": "v"}, "resource_vdc (vdc=? AND kind=? AND id>?)"),
    ({"zone": "z"}, "resource_zone (zone=? AND kind=? AND id>?)"),
    ({"manager": "m"}, "resource_manager (manager=? AND kind=? AND id>?)"),
    ({"account_id": "a", "manager": "m"}, "resource_manager (manager=? AND kind=? AND id>?)"),
    ({"owner": "o"}, "resource_owner (owner=? AND id>?)"),
    ({"account_id": "a", "name": "n"}, "resource_name (kind=? AND account_id=? AND name=?)"),
    ({"labels": (("k", "v"),)}, "label_value (key=? AND value=? AND id>?)"),
    ({"ids": ("i", "j")}, "sqlite_autoindex_resource_1 (id=?)"),
]


async def plan(folder: Path, statement: sa.sql.ClauseElement) -> list[str]:
    """Return SQLite's plan for the statement, a line per step."""
    engine = SqliteEngine(folder / "db")
    await engine.open()
    prepared = engine.prepare(statement)
    await engine.close()
    with sqlite3.connect(folder / "db") as database:
        rows = database.execute(f"EXPLAIN QUERY PLAN {prepared.sql}", ["x"] * prepared.sql.count("?")).fetchall()
    database.close()
    return [row[3] for row in rows]


@pytest.mark.parametrize(("filter", "index"), LISTS, ids=str)
def test_a_list_is_served_by_its_narrowest_index(tmp_path: Path, filter: dict[str, Any], index: str) -> None:
    statement, _ = list_statement(Filter(kind="compute.vm", **filter), after="", limit=500)
    steps = asyncio.run(plan(tmp_path, statement))
    assert steps[0].endswith(index), steps
    # Only a name, of which there are few, is sorted afterwards.
    assert any("TEMP B-TREE" in step for step in steps) == ("name" in filter), steps


def test_an_account_with_and_without_an_id_are_different_statements() -> None:
    cluster, _ = list_statement(Filter(kind="infra.host", account_id="", ready="false"), after="", limit=5)
    tenant, _ = list_statement(Filter(kind="infra.host", account_id="a", ready="false"), after="", limit=5)
    assert cluster is not tenant


def test_statements_are_kept_for_a_bounded_number_of_shapes(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SqliteEngine(tmp_path / "db")
        await engine.open()
        try:
            made = []
            for number in range(600):
                words, ids = divmod(number, 150)
                shape = Filter(
                    kind="infra.host", ids=("i",) * (ids + 1), name="n" * (words % 2), host="h" * (words // 2)
                )
                statement, parameters = list_statement(shape, after="", limit=5)
                assert await engine.fetch(statement, **parameters) == []
                made.append(weakref.ref(statement))
                del statement
            gc.collect()
            assert sum(statement() is not None for statement in made) < 500
        finally:
            await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "name",
    [
        "CHILDREN", "CHANGED", "CHANGED_SEEN", "CHANGED_MANAGED", "CHANGES", "GONE", "GONE_MANAGED", "LINKED_BY", "WORK_DUE",
        "ON_HOST", "STANDING", "STANDING_GONE", "EVENTS_MANAGED_AFTER", "EVENTS_MANAGED_BEFORE",
    ],
)  # fmt: skip
def test_what_the_loop_and_the_watches_read_is_never_a_whole_table(tmp_path: Path, name: str) -> None:
    steps = asyncio.run(plan(tmp_path, getattr(sql, name)))
    assert not any(step.startswith("SCAN") for step in steps), steps
    assert not any("resource_kind" in step for step in steps), steps


def test_what_goes_on_is_found_without_what_ended(tmp_path: Path) -> None:
    steps = asyncio.run(plan(tmp_path, sql.USAGE_LEFT))
    assert steps[0].endswith("usage_open"), steps


@pytest.mark.parametrize(
    "name", ["USAGE", "USAGE_ACCOUNT", "USAGE_FAR", "USAGE_FAR_ACCOUNT", "TRAFFIC", "TRAFFIC_ACCOUNT"]
)
def test_bills_read_in_the_order_of_an_index(tmp_path: Path, name: str) -> None:
    steps = asyncio.run(plan(tmp_path, getattr(sql, name)))
    assert steps[0].startswith("SEARCH"), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps
