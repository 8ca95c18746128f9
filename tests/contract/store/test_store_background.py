"""Whatever error the database gives for a while: servers go on with what is due once it works again."""

from __future__ import annotations

import asyncio
import functools
import itertools
from pathlib import Path

import asyncpg
import pytest
from tests import virtual_time
from tests.contract.store.store_bench import Bench, make
from tests.contract.store.test_store_work import place, placed, running, until
from tests.postgres import Postgres

from pileus.kernel.background import for_ever
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Transient
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store import statements as sql
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store

OUTAGE_S = 1.5
"""How long the database refuses: every task of a server looks at it once a second."""


class Places(Controller):
    """Gives everything a host."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        return Done(lambda tx: place(tx, resource))


async def refused(store: Store) -> bool:
    """Tell whether the database refuses a read in the way that callers know."""
    try:
        await store.fetch(sql.NEWEST)
    except Transient:
        return True
    return False


async def answers(store: Store) -> bool:
    """Tell whether the database answers a read."""
    return not await refused(store)


def test_servers_go_on_after_sqlite_refused_every_read(tmp_path: Path) -> None:
    bench = Bench(path=tmp_path / "db")

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Places()):
            engine = store.engine
            assert isinstance(engine, SqliteEngine)
            engine._read.set_progress_handler(lambda: 1, 1)  # every statement is interrupted
            made = await make(store, "meanwhile")
            await until(functools.partial(refused, store))
            await asyncio.sleep(OUTAGE_S)
            engine._read.set_progress_handler(None, 0)
            await until(functools.partial(placed, store, made.id))

    bench.run(main)


def test_servers_go_on_after_postgresql_refused_every_connection(postgres: Postgres, postgres_url: str) -> None:
    bench = Bench(url=postgres_url)
    name = postgres_url.rpartition("/")[2]

    async def main() -> None:
        async with bench.store(clock=system_clock) as store, running(store, Places()):
            await make(store, "before")
            await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            await until(functools.partial(refused, store))
            await asyncio.sleep(OUTAGE_S)
            await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await until(functools.partial(answers, store))
            made = await make(store, "after")
            await until(functools.partial(placed, store, made.id))

    bench.run(main)


@pytest.mark.parametrize("error", [ZeroDivisionError(), Transient("gone"), asyncpg.PostgresError("odd")])
def test_a_task_in_the_background_outlives_what_its_work_raises(error: Exception) -> None:
    async def main() -> None:
        rounds: list[float] = []
        third = asyncio.Event()

        async def work() -> None:
            rounds.append(virtual_time.clock())
            if len(rounds) < 3:
                raise error
            third.set()
            await asyncio.Event().wait()

        task = for_ever(work, "test")
        await third.wait()
        assert [later - earlier for earlier, later in itertools.pairwise(rounds)] == [1.0, 1.0]
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    virtual_time.run(main)
