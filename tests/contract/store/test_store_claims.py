"""Claims and budgets: one owner each, never more than there is, on both engines and with two servers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

import pytest
from tests.contract.store.store_bench import Bench, make, thing

from pileus.kernel.errors import Conflict
from pileus.kernel.reader import Reader
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction

CLIENTS = 32


@contextlib.asynccontextmanager
async def servers(bench: Bench) -> AsyncIterator[list[Store]]:
    """Give two servers where the database takes two, else one."""
    async with contextlib.AsyncExitStack() as stack:
        names = ("one", "two") if bench.shared else ("one",)
        yield [await stack.enter_async_context(bench.store(name)) for name in names]


async def number_for(tx: Transaction, owner: str) -> int:
    """Claim a number from 3 to 6."""
    return await tx.claim_number("s", 3, 6, owner)


async def give_back(tx: Transaction, owner: str) -> None:
    """Release all that the owner holds."""
    await tx.release(owner)


async def use(tx: Transaction, amount: int) -> None:
    """Charge ``a``."""
    await tx.charge("q", "a", amount)


def test_a_value_has_one_owner_and_its_owner_may_claim_it_again(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await store.write(lambda tx: tx.claim("s", "v", "a"))
            await store.write(lambda tx: tx.claim("s", "v", "a"))
            with pytest.raises(AlreadyClaimed) as refused:
                await store.write(lambda tx: tx.claim("s", "v", "b"))
            assert refused.value.holder == "a"
            await store.write(lambda tx: tx.release("a", "s", "v"))
            await store.write(lambda tx: tx.claim("s", "v", "b"))

    bench.run(main)


def test_numbers_are_given_out_once_until_none_is_left_and_the_lowest_gap_is_filled(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            given = [await store.write(functools.partial(number_for, owner=f"o{each}")) for each in range(4)]
            assert given == [3, 4, 5, 6]
            with pytest.raises(Exhausted):
                await store.write(lambda tx: tx.claim_number("s", 3, 6, "late"))
            for owner, number in (("o1", 4), ("o2", 5)):
                await store.write(functools.partial(give_back, owner=owner))
                assert await store.write(lambda tx: tx.claim_number("s", 3, 6, "x")) in (number, 4)
            with pytest.raises(Exhausted):
                await store.write(lambda tx: tx.claim_number("s", 3, 6, "late"))
            await store.write(lambda tx: tx.release("o0"))
            assert await store.write(lambda tx: tx.claim_number("s", 3, 6, "low")) == 3

    bench.run(main)


def test_numbers_below_the_range_do_not_confuse_it(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await store.write(lambda tx: tx.claim("s", "1", "gateway", 1))
            assert await store.write(lambda tx: tx.claim_number("s", 5, 7, "a")) == 5
            await store.write(lambda tx: tx.claim("s", "7", "fixed", 7))
            assert await store.write(lambda tx: tx.claim_number("s", 5, 7, "b")) == 6

    bench.run(main)


def test_of_32_clients_that_want_the_last_value_one_gets_it(bench: Bench) -> None:
    async def main() -> None:
        async with servers(bench) as stores:

            async def client(number: int) -> bool:
                try:
                    await stores[number % len(stores)].write(lambda tx: tx.claim("s", "last", f"c{number}"))
                except AlreadyClaimed:
                    return False
                return True

            assert sum(await asyncio.gather(*(client(number) for number in range(CLIENTS)))) == 1

    bench.run(main)


def test_of_32_clients_only_as_many_get_a_number_as_there_are(bench: Bench) -> None:
    async def main() -> None:
        async with servers(bench) as stores:

            async def client(number: int) -> int | None:
                try:
                    store = stores[number % len(stores)]
                    return await store.write(lambda tx: tx.claim_number("s", 10, 19, f"c{number}"))
                except Exhausted:
                    return None

            given = [n for n in await asyncio.gather(*(client(n) for n in range(CLIENTS))) if n is not None]
            assert sorted(given) == list(range(10, 20))

    bench.run(main)


def test_of_32_clients_at_one_below_the_limit_one_gets_in(bench: Bench) -> None:
    async def main() -> None:
        async with servers(bench) as stores:
            await stores[0].write(lambda tx: tx.set_capacity("q", 50))
            await stores[0].write(lambda tx: tx.charge("q", "before", 49))

            async def client(number: int) -> bool:
                try:
                    await stores[number % len(stores)].write(lambda tx: tx.charge("q", f"c{number}", 1))
                except Exhausted:
                    return False
                return True

            assert sum(await asyncio.gather(*(client(number) for number in range(CLIENTS)))) == 1
            assert (await stores[0].fetch(sql.BUDGET, space="q"))[0] == (50, 50)

    bench.run(main)


def test_a_charge_replaces_the_one_before_and_is_given_back_whole(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await store.write(lambda tx: tx.set_capacity("q", 10))
            for amount in (4, 9, 2, 2):
                await store.write(functools.partial(use, amount=amount))
                assert (await store.fetch(sql.BUDGET, space="q"))[0] == (10, amount)
            with pytest.raises(Exhausted) as full:
                await store.write(lambda tx: tx.charge("q", "a", 11))
            assert (full.value.asked, full.value.used) == (9, 2)
            await store.write(lambda tx: tx.set_capacity("q", 1))
            await store.write(lambda tx: tx.charge("q", "a", 1))
            await store.write(lambda tx: tx.uncharge("a"))
            assert (await store.fetch(sql.BUDGET, space="q"))[0] == (1, 0)

    bench.run(main)


def test_a_charge_is_given_back_even_when_its_budget_is_gone(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await store.write(lambda tx: tx.set_capacity("q", 10))
            await store.write(lambda tx: tx.charge("q", "a", 4))
            await store.write(lambda tx: tx.remove_capacity("q"))
            await store.write(lambda tx: tx.uncharge("a"))
            assert await store.fetch(sql.CHARGES_OF, owner="a") == []

    bench.run(main)


def test_a_purge_gives_back_all_that_was_owned(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")

            async def own(tx: Transaction) -> None:
                await tx.set_capacity("q", 10)
                await tx.charge("q", made.id, 4)
                await tx.claim("s", "v", made.id)
                await tx.link(made.id, {"field": "somewhere"})

            await store.write(own)
            await store.write(lambda tx: tx.purge(made))
            assert (await store.fetch(sql.BUDGET, space="q"))[0] == (10, 0)
            assert await store.fetch(sql.CHARGES_OF, owner=made.id) == []
            assert await store.fetch(sql.CLAIM_OWNER, space="s", value="v") == []
            assert await store.links(made.id) == {}
            await make(store, "a")

    bench.run(main)


def test_a_refused_write_gives_back_what_it_claimed_before(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await make(store, "taken")

            async def work(tx: Transaction) -> None:
                await tx.claim("s", "v", "a")
                await tx.create(thing("taken"))

            with pytest.raises(Conflict):
                await store.write(work)
            assert await store.fetch(sql.CLAIM_OWNER, space="s", value="v") == []

    bench.run(main)


def test_a_store_reads_claims_and_rows_as_a_transaction_does(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = await make(store, "a")

            async def own(tx: Transaction) -> None:
                await tx.claim("line", "20", "second", 20)
                await tx.claim("line", "10", made.id, 10)

            await store.write(own)

            async def read(reader: Reader) -> list[object]:
                return [
                    await reader.holder("line", "20"),
                    await reader.holder("line", "30"),
                    list(await reader.queue("line", 5)),
                    list(await reader.queue("line", 1)),
                    await reader.find_id(made.id),
                    await reader.find_id("nowhere"),
                ]

            expected = ["second", None, [made.id, "second"], [made.id], await store.get(made.id), None]
            assert await read(store) == expected
            assert await store.write(read) == expected

    bench.run(main)
