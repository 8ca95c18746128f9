"""PostgreSQL goes away in the middle: callers are told, nothing is half-written, and it works again by itself."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
from tests.contract.store.store_bench import THING, Bench, make, thing

from pileus.kernel.errors import Transient
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1"


async def cut(url: str) -> None:
    """End every other connection to the database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(CUT, connection.get_server_pid())
    finally:
        await connection.close()


def test_a_write_whose_connection_is_cut_is_whole_or_not_there(postgres_url: str) -> None:
    bench = Bench(url=postgres_url)

    async def main() -> None:
        async with bench.store() as store:
            answered: set[str] = set()

            async def write(number: int) -> None:
                async def both(tx: Transaction) -> None:
                    await tx.create(thing(f"a{number}"))
                    await tx.create(thing(f"b{number}"))

                with contextlib.suppress(Transient):
                    await store.write(both)
                    answered.add(str(number))

            for round_ in range(15):
                tasks = [asyncio.create_task(write(round_ * 20 + each)) for each in range(20)]
                await asyncio.sleep(0)
                await cut(postgres_url)
                await asyncio.gather(*tasks)
            names: set[str] = set()
            while not names:
                with contextlib.suppress(Transient):
                    names = {row.name for row in await store.list(Filter(kind=THING.name)) or [thing("none")]}
            first = {name[1:] for name in names if name.startswith("a")}
            second = {name[1:] for name in names if name.startswith("b")}
            assert first == second
            assert answered <= first, "what was answered is there"

    bench.run(main)


def test_after_a_cut_the_store_connects_again_by_itself(postgres_url: str) -> None:
    bench = Bench(url=postgres_url)

    async def main() -> None:
        async with bench.store() as store:
            await make(store, "before")
            await cut(postgres_url)
            failures = 0
            while True:
                try:
                    made = await make(store, "after")
                except Transient:
                    failures += 1
                    assert failures < 20
                    continue
                break
            assert (await store.get(made.id)).name == "after"

    bench.run(main)


def test_a_database_that_is_not_there_is_said_to_be_so() -> None:
    async def main() -> None:
        bench = Bench(url="postgresql://nobody:x@127.0.0.1:1/none")
        with pytest.raises(Transient, match="PostgreSQL does not answer"):
            async with bench.store():
                pass

    asyncio.run(main())
