"""What is held over time while the clock moves: whoever comes late, early or twice, no moment has more than there is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.contract.store.store_bench import Bench

from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Exhausted, Transaction

SPACE = "h/memory_mib"
HISTORIES = 60
STEPS = 40
DONE = 20
"""What was asked for and given in a history at least, on average."""


@dataclass
class Books:
    """What was given, by owner: (amount, until), and (amount, start, until)."""

    capacity: int
    charges: dict[str, tuple[int, float]] = field(default_factory=dict)
    promises: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def fullest(self, now: float) -> int:
        """Return the most that is held at a moment from ``now`` on; what is late is thought to be given back at once."""
        moments = {now, *(max(start, now) for _, start, _ in self.promises.values())}
        return max(self._held(moment, now) for moment in moments)

    def _held(self, moment: float, now: float) -> int:
        charged = sum(amount for amount, until in self.charges.values() if not until or until > moment)
        promised = self.promises.values()
        return charged + sum(amount for amount, start, until in promised if start <= moment and not 0 < until <= moment)

    @property
    def used(self) -> int:
        """Return what is charged just now, late or not."""
        return sum(amount for amount, _ in self.charges.values())


class History:
    """One history inside one transaction."""

    def __init__(self, tx: Transaction, seed: int) -> None:
        self.tx = tx
        self.chance = random.Random(seed)
        self.books = Books(self.chance.randint(4, 20))
        self.given = 0
        self.latest = tx.now
        """What was over once is over, also when the clock went back."""

    async def run(self) -> None:
        await self.tx.set_capacity(SPACE, self.books.capacity)
        for _ in range(STEPS):
            await self.step()
            await self.check()
        for owner in (*self.books.charges, *self.books.promises):
            await self.give_back(owner)
        assert (await self.tx.budget(SPACE))[1] == 0

    async def step(self) -> None:
        chance, owner = self.chance, f"o{self.chance.randrange(8)}"
        self.tx.now += chance.choice([0, 0, 0, 1, 5, 30, -4])
        self.latest = max(self.latest, self.tx.now)
        what = chance.choice(["charge", "charge", "promise", "promise", "return", "begin", "resize"])
        now, amount = self.tx.now, chance.randint(1, 8)
        until = chance.choice([0.0, now + chance.randint(-2, 40)])
        try:
            if what == "charge":
                await self.tx.charge(SPACE, owner, amount, until)
                self.books.charges[owner] = (amount, until)
            elif what == "promise":
                start = now + chance.randint(-2, 40)
                end = chance.choice([0.0, start + chance.randint(1, 20)])
                await self.tx.promise(SPACE, owner, amount, start, end)
                self.books.promises[owner] = (amount, start, end)
            elif what == "resize" and owner in self.books.charges:
                await self.tx.charge(SPACE, owner, amount)
                self.books.charges[owner] = (amount, self.books.charges[owner][1])
            elif what == "begin" and owner in self.books.promises:
                amount, _, until = self.books.promises.pop(owner)
                self.books.charges.pop(owner, None)
                await self.give_back(owner)
                await self.tx.charge(SPACE, owner, amount, until)
                self.books.charges[owner] = (amount, until)
            elif what == "return":
                await self.give_back(owner)
                self.books.charges.pop(owner, None)
                self.books.promises.pop(owner, None)
        except Exhausted:
            return
        self.given += 1

    async def give_back(self, owner: str) -> None:
        """Assert: that is never refused."""
        try:
            await self.tx.uncharge(owner)
        except Exhausted as refused:
            raise AssertionError(f"{owner} cannot give back: {refused}") from None

    async def check(self) -> None:
        """Assert: never more than there is, at any moment; and the budget is the sum of what is charged, and held."""
        _, used = await self.tx.budget(SPACE)
        cover = (await self.tx.statement(sql.CHARGE, space=SPACE, owner="h"))[0][0]
        assert used == self.books.used + cover <= self.books.capacity
        assert self.books.fullest(self.latest) <= self.books.capacity


def test_giving_back_succeeds_after_the_clock_went_back_over_the_end_of_a_promise(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:

            async def work(tx: Transaction) -> int:
                now = tx.now
                await tx.set_capacity(SPACE, 10)
                await tx.promise(SPACE, "over", 6, now, now + 10)
                tx.now = now + 11
                await tx.promise(SPACE, "news", 1, now + 20)  # what is over is not held any more
                await tx.charge(SPACE, "timed", 2, now + 100)
                await tx.charge(SPACE, "rest", 7)
                tx.now = now + 9
                await tx.uncharge("timed")
                await tx.uncharge("news")
                await tx.uncharge("over")
                return (await tx.budget(SPACE))[1]

            assert await store.dry_run(work) == 7

    bench.run(main)


def test_no_moment_has_more_than_there_is_whatever_the_clock_does(bench: Bench) -> None:
    async def main() -> None:
        given = 0
        async with bench.store() as store:
            for seed in range(HISTORIES):

                async def work(tx: Transaction, seed: int = seed) -> int:
                    history = History(tx, seed)
                    try:
                        await history.run()
                    except AssertionError as wrong:
                        raise AssertionError(f"seed {seed}: {wrong}") from wrong
                    return history.given

                given += await store.dry_run(work)
        assert given >= HISTORIES * DONE

    bench.run(main)
