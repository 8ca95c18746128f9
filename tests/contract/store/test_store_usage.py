"""Rows of use and of traffic, on both engines: written, added up, read in stretches, and ended once their object is gone."""

from __future__ import annotations

import functools
from typing import Any

from tests.contract.store.store_bench import Bench

from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

AT = 1_900_000_000.0
WHOSE = {"kind": "test.thing", "name": "n", "account": "acme"}


async def fill(store: Store) -> None:
    """Write three runs of each of ten objects of two accounts; the last goes on."""

    async def work(tx: Transaction) -> None:
        for number in range(10):
            for span in range(3):
                until = 0.0 if span == 2 else AT + span + 0.75
                times = {"since": AT + span + 0.123456, "until": until, "host": "h", "amounts": '{"vcpus":1}'}
                whose = {**WHOSE, "id": f"o{number}", "account_id": str(number % 2)}
                await tx.change(tx.insert.usage, **whose, **times)

    await store.write(work)


async def read(store: Store, most: int, since: float, **account: str) -> list[tuple[str, float]]:
    """Return ids and begins of what was used after ``since``, by stretches of so many runs."""
    one, far = (sql.USAGE_ACCOUNT, sql.USAGE_FAR_ACCOUNT) if account else (sql.USAGE, sql.USAGE_FAR)
    found: list[tuple[str, float]] = []
    last = ""
    while last != "z":
        rows = await store.fetch(far, after=last, n=most, **account)
        first, last = last, rows[0][0] if rows else "z"
        span: dict[str, Any] = {"since": since, "until": AT + 100, "after": first, "after_at": AT + 100, "last": last}
        found += [(row[0], row[1]) for row in await store.fetch(one, **span, n=1000, **account)]
    return found


def test_stretches_have_every_run_once(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await fill(store)
            for most in (0, 1, 3, 4, 1000):
                every = [(f"o{number}", AT + span + 0.123456) for number in range(10) for span in range(3)]
                assert await read(store, most, AT) == every
                late = [run for run in every if run[1] > AT + 1]
                assert await read(store, most, AT + 1) == late
                assert await read(store, most, AT, account_id="1") == [run for run in every if int(run[0][1]) % 2]

    bench.run(main)


async def add(tx: Transaction, received: int) -> None:
    """Add so many bytes, and one that was sent."""
    counts = {"hour": AT, "received_bytes": received, "sent_bytes": 1}
    await tx.change(tx.insert.traffic, **WHOSE, id="o", account_id="1", **counts)


def test_what_passed_is_added_to_its_hour(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            for received in (2**56, 2**56, 3):
                await store.write(functools.partial(add, received=received))
            rows = await store.fetch(sql.TRAFFIC, after="", after_at=AT, until=AT + 1, n=10)
            assert [tuple(row)[-2:] for row in rows] == [(2**57 + 3, 3)]

    bench.run(main)


def test_runs_of_what_is_gone_are_found(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await fill(store)
            left = await store.fetch(sql.USAGE_LEFT)
            assert sorted(tuple(row) for row in left) == [(f"o{n}", AT + 2.123456, None) for n in range(10)]

    bench.run(main)
