"""What is held over time: never more than there is at any moment, charged and promised, on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from math import inf
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from tests.contract.store.store_bench import Bench

from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Exhausted, Transaction

SPACE = "h/memory_mib"
CAPACITY = 10
STEPS = 150
SUM = sa.text("SELECT COALESCE(SUM(amount), 0) FROM charge")
PROMISED = sa.text("SELECT COUNT(*) FROM promise")


class Hold(NamedTuple):
    """So much from ``start`` to before ``until``."""

    amount: int
    start: float
    until: float


def fits(holds: list[Hold], now: float) -> bool:
    """Tell whether at no moment from now on more is held than there is, looking at each."""
    moments = {now, *(hold.start for hold in holds if hold.start > now)}
    return all(sum(h.amount for h in holds if h.start <= moment < h.until) <= CAPACITY for moment in moments)


class Model:
    """Draws what is asked next, and knows by looking at every moment what must come of it."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.now = store.clock()
        self.holds: dict[str, Hold] = {}
        self.refused = 0

    async def step(self, number: int) -> None:
        """Give back something, or ask for something."""
        if self.holds and self.chance.random() < 0.4:
            owner = self.chance.choice(sorted(self.holds))
            await self.store.write(lambda tx: tx.uncharge(owner))
            del self.holds[owner]
            return
        start = self.now + self.chance.choice([0, 0, 100, 200, 300])
        until = self.chance.choice([inf, start + 100, start + 200])
        hold = Hold(self.chance.randint(1, CAPACITY), start, until)
        again = [owner for owner, known in self.holds.items() if (known.start > self.now) == (start > self.now)]
        owner = self.chance.choice(sorted(again)) if again and self.chance.random() < 0.2 else f"o{number}"
        should = {**self.holds, owner: hold}
        if not fits(list(should.values()), self.now):
            with pytest.raises(Exhausted):
                await self.store.write(lambda tx: self._ask(tx, owner, hold))
            self.refused += 1
            return
        await self.store.write(lambda tx: self._ask(tx, owner, hold))
        self.holds = should

    async def _ask(self, tx: Transaction, owner: str, hold: Hold) -> None:
        until = hold.until if hold.until < inf else 0.0
        if hold.start > self.now:
            await tx.promise(SPACE, owner, hold.amount, hold.start, until)
        else:
            await tx.charge(SPACE, owner, hold.amount, until)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exactly_what_fits_at_every_moment_is_taken(bench: Bench, seed: int) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await store.write(lambda tx: tx.set_capacity(SPACE, CAPACITY))
            model = Model(store, random.Random(seed))
            for number in range(STEPS):
                await model.step(number)
                used = (await store.fetch(sql.BUDGET, space=SPACE))[0][1]
                assert used == int((await store.fetch(SUM))[0][0]) <= CAPACITY
            assert 20 < model.refused < STEPS - 20
            for owner in model.holds:
                await store.write(functools.partial(Transaction.uncharge, owner=owner))
            assert (await store.fetch(sql.BUDGET, space=SPACE))[0][1] == 0
            assert (await store.fetch(PROMISED))[0][0] == 0

    bench.run(main)


def test_what_is_not_given_back_in_time_keeps_its_room_and_then_leaves_it_to_whom_it_was_promised(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            now = store.clock()
            await store.write(lambda tx: tx.set_capacity(SPACE, CAPACITY))
            await store.write(lambda tx: tx.charge(SPACE, "late", CAPACITY, now - 1))
            await store.write(lambda tx: tx.promise(SPACE, "next", CAPACITY, now - 1))
            for until in (0.0, now + 50):
                with pytest.raises(Exhausted):
                    await store.write(
                        functools.partial(Transaction.charge, space=SPACE, owner="x", amount=1, until=until)
                    )
            await store.write(lambda tx: tx.uncharge("late"))
            with pytest.raises(Exhausted):
                await store.write(lambda tx: tx.charge(SPACE, "x", 1))

            async def begin(tx: Transaction) -> None:
                await tx.uncharge("next")
                await tx.charge(SPACE, "next", CAPACITY)

            await store.write(begin)
            assert (await store.fetch(sql.BUDGET, space=SPACE))[0][1] == CAPACITY

    bench.run(main)


def test_a_charge_that_is_to_last_longer_is_refused_where_its_room_is_promised(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            now = store.clock()
            await store.write(lambda tx: tx.set_capacity(SPACE, CAPACITY))
            await store.write(lambda tx: tx.charge(SPACE, "first", 6, now + 100))
            await store.write(lambda tx: tx.promise(SPACE, "next", 6, now + 100))
            for until in (now + 101, 0.0):
                with pytest.raises(Exhausted):
                    await store.write(
                        functools.partial(Transaction.charge, space=SPACE, owner="first", amount=6, until=until)
                    )
            await store.write(lambda tx: tx.charge(SPACE, "first", 4, 0.0))

    bench.run(main)


def test_many_at_once_for_the_last_room_are_as_many_as_it_holds(shared_bench: Bench) -> None:
    async def main() -> None:
        async with shared_bench.store("one") as one, shared_bench.store("two") as two:
            await one.write(lambda tx: tx.set_capacity(SPACE, CAPACITY))
            now = one.clock()

            async def ask(number: int) -> bool:
                start = now + 100 * (number % 3)

                async def work(tx: Transaction) -> None:
                    if number % 3:
                        await tx.promise(SPACE, f"o{number}", 3, start, start + 100)
                    else:
                        await tx.charge(SPACE, f"o{number}", 3, start + 100)

                with contextlib.suppress(Exhausted):
                    await (one, two)[number % 2].write(work)
                    return True
                return False

            had = await asyncio.gather(*(ask(number) for number in range(48)))
            assert [sum(had[first::3]) for first in range(3)] == [3, 3, 3]

    shared_bench.run(main)
