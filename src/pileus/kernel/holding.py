"""Charges over time: what is to be given back at a known moment, and what is promised from a later one on.

A budget says how much of a space is used at its fullest moment from now on. What is charged until a known moment makes
room for what is promised from then on. Of a promise that no such charge makes room for, the rest is held from now on:
charged to whose space it is, until ``COVER``. So what has no end needs to look at the budget alone, and the sums of
what is charged and promised are never above the capacity at any moment. What is not given back at its moment stays
charged, and what was promised is then not there: whoever was promised it finds that out when charging it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Session

COVER = -1.0
"""``until`` of the charge that is held for promises."""


class Promise(NamedTuple):
    """So much from ``start`` on; ``until`` 0: without end."""

    amount: int
    start: float
    until: float


class _Cover(NamedTuple):
    """What is held for promises, and how much more that is than before."""

    amount: int
    change: int

    def of(self, freed: int) -> _Cover:
        """Return it with what was given back at most: who gives back asks for nothing, though the clock went back."""
        missing = max(self.change - freed, 0)
        return _Cover(self.amount - missing, self.change - missing)


def cover(timed: Iterable[tuple[int, float]], promises: Iterable[Promise], now: float) -> int:
    """Return how much must be held from now on, given charges (amount, until) and promises.

    A charge whose moment has passed is about to be given back: what is promised is not taken from elsewhere for it.
    """
    steps = [(max(until, now), -amount) for amount, until in timed]
    for promise in promises:
        steps.append((max(promise.start, now), promise.amount))
        if promise.until:
            steps.append((max(promise.until, now), -promise.amount))
    steps.sort()  # at the same moment what is given back comes first
    return max(accumulate((amount for _, amount in steps), initial=0))


async def charge(session: Session, now: float, space: str, owner: str, amount: int, until: float | None) -> int:
    """Charge ``owner`` exactly ``amount``; ``until`` None: as long as before. Return 0, or what there is no room for."""
    before, known, promised = (await session.all(sql.CHARGE, space=space, owner=owner))[0]
    until = known if until is None else until
    if (amount, until) == (before, known):
        return 0
    held = _Cover(0, 0)
    is_timed = promised and (known or until)
    if is_timed:
        held = await _cover(session, now, space, charged=(owner, amount, until))
    if not amount:
        held = held.of(before)
    asked = amount - int(before) + held.change
    if not await _add(session, space, asked):
        return asked
    await _put(session, space, owner, amount, until)
    if is_timed:
        await _put(session, space, _whose(space), held.amount, COVER)
    return 0


async def promise(session: Session, now: float, space: str, owner: str, wished: Promise) -> int:
    """Promise ``owner`` exactly this; amount 0: nothing. Return 0, or what there is no room for."""
    held = await _cover(session, now, space, promised=(owner, wished))
    if not wished.amount:
        held = held.of(0)
    if not await _add(session, space, held.change):
        return held.change
    if wished.amount:
        await session.run(session.statements.promise, space=space, owner=owner, **wished._asdict())
    else:
        await session.run(sql.PROMISE_DELETE, space=space, owner=owner)
    await _put(session, space, _whose(space), held.amount, COVER)
    return 0


async def _cover(
    session: Session,
    now: float,
    space: str,
    *,
    charged: tuple[str, int, float] = ("", 0, 0.0),
    promised: tuple[str, Promise] = ("", Promise(0, 0.0, 0.0)),
) -> _Cover:
    """Return what must be held for promises once one charge or one promise is as given, and how much more that is."""
    timed = {owner: (int(amount), until) for owner, amount, until in await session.all(sql.CHARGES_TIMED, space=space)}
    before, _ = timed.pop(_whose(space), (0, COVER))
    owner, amount, until = charged
    timed.pop(owner, None)
    if amount and until:
        timed[owner] = (amount, until)
    rows = await session.all(sql.PROMISES, space=space)
    promises = {owner: Promise(int(amount), start, until) for owner, amount, start, until in rows}
    promises[promised[0]] = promised[1]
    after = cover(timed.values(), promises.values(), now)
    return _Cover(after, after - before)


async def _add(session: Session, space: str, amount: int) -> bool:
    """Tell whether so much more of the space could be used; giving back succeeds, also to a budget that went first."""
    return amount == 0 or await session.run(sql.BUDGET_ADD, b_space=space, delta=amount) == 1 or amount < 0


async def _put(session: Session, space: str, owner: str, amount: int, until: float) -> None:
    if amount:
        await session.run(session.statements.charge, space=space, owner=owner, amount=amount, until=until)
    else:
        await session.run(sql.CHARGE_DELETE, space=space, owner=owner)


def _whose(space: str) -> str:
    """Return the id of the resource whose budget a space is."""
    return space.partition("/")[0]
