"""The server half of a history: what waits is delivered in order, or pulled, and forgotten once the receiver keeps it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Transient
from pileus.kernel.failpoint import failpoint
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.kernel.turns import Turns
from pileus.monitor.history.types import HistoryDesired, HistoryObserved
from pileus.monitor.notes import note_state
from pileus.monitor.receiver import Entry, Receiver

BATCH = 500
"""Entries of one turn; after each failure in a row half as many, so that a slow database takes some."""
BATCH_CHARS = 1_000_000
"""Of their bodies, as soon as there is more than one."""
TURNS_MAX, TURNS_OF_ACCOUNT_MAX = 16, 2
"""Databases that this server writes to at the same time, and those of one account: slow ones hold up no others."""
TURNS_UNPROVEN_MAX = 8
"""Of them, those whose last try failed, or that took nothing yet: whoever answers always finds room."""
NO_TURN_S, NO_TURN_UNPROVEN_S = 0.5, 5.0
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0
AGAIN_S = 0.01
GATHER_S = 1.0
"""Between two connections to a database that has everything: what comes meanwhile goes together."""
PAGE = 200
"""Rows of the state table that are noted at once."""
LOOK_S = 30.0
"""Between two looks at how much waits to be pulled."""
ALL = "all"
LOOK_AGAIN_S = 300.0


class HistoryController(Controller):
    """Delivers, a bounded number at once."""

    def __init__(self, receiver: Receiver, clock: Clock) -> None:
        self._receiver, self._clock = receiver, clock
        self._random = random.Random()
        self._not_before: dict[str, tuple[HistoryDesired, float]] = {}
        """What was tried, and when to connect again."""
        self._turns = Turns(TURNS_MAX, TURNS_OF_ACCOUNT_MAX)
        self._unproven = Turns(TURNS_UNPROVEN_MAX, TURNS_UNPROVEN_MAX)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Deliver the oldest entries; after a failure wait, longer each time."""
        if resource.deleting:
            self._not_before.pop(resource.id, None)
            return Done()
        tried, not_before = self._not_before.get(resource.id, (None, 0.0))
        left_s = not_before - self._clock()
        if tried == resource.desired and 0 < left_s <= RETRY_MAX_S:
            return Done(after_s=left_s)
        if resource.assigned.begun != ALL:
            return await _begin(resource, store)
        if resource.desired.form == "sqlite":
            self._not_before[resource.id] = (resource.desired, self._clock() + LOOK_S)
            return Done(lambda tx: _count(tx, resource.id), after_s=LOOK_S)
        known: HistoryObserved = resource.observed or HistoryObserved()
        is_unproven = resource.observed is None or known.failures > 0
        with self._turn(resource.account_id, is_unproven) as has_turn:
            if not has_turn:
                return Done(after_s=(NO_TURN_UNPROVEN_S if is_unproven else NO_TURN_S) * self._random.uniform(0.5, 1.0))
            return await self._deliver(resource, store, known)

    @contextlib.contextmanager
    def _turn(self, account_id: str, is_unproven: bool) -> Iterator[bool]:
        """Give whether there is room to write to one more database, and hold it for the block."""
        with self._turns.turn(account_id) as has_turn, contextlib.ExitStack() as also:
            yield has_turn and (not is_unproven or also.enter_context(self._unproven.turn("")))

    async def _deliver(self, history: Resource, store: Store, known: HistoryObserved) -> Outcome:
        most = max(BATCH >> known.failures, 1)
        rows = await store.fetch(sql.JOURNAL_NEXT, stream=history.id, n=most)
        entries = [Entry(*row) for row in fitting(rows)]
        try:
            if entries or history.observed is None or known.failures:
                await self._receiver.take(history.desired, history.assigned, history.id, entries)
        except Transient as failed:
            return await self._failed(history, store, known, failed.message)
        failpoint("history.delivered")
        is_all = len(rows) < most and len(entries) == len(rows)
        self._not_before[history.id] = (history.desired, self._clock() + (GATHER_S if is_all and entries else 0.0))

        async def forget(tx: Transaction) -> None:
            if entries:
                await tx.change(sql.JOURNAL_DELETE, stream=history.id, until=entries[-1].seq)
            await tx.update(await tx.get(history.id), observed=await _observed(tx, history))

        return Done(forget, after_s=LOOK_AGAIN_S if is_all else AGAIN_S)

    async def _failed(self, history: Resource, store: Store, known: HistoryObserved, message: str) -> Outcome:
        failures = known.failures + 1
        wait_s = min(RETRY_FIRST_S * 2 ** min(failures, 10), RETRY_MAX_S) * self._random.uniform(0.5, 1.0)
        self._not_before[history.id] = (history.desired, self._clock() + wait_s)
        return Done(lambda tx: _count(tx, history.id, failures=failures, message=message), after_s=wait_s)


async def _begin(history: Resource, store: Store) -> Outcome:
    """Note the rows that were there before the history, some at once, as they are now."""
    monitor = (await store.links(history.id))["monitor"]
    rows = await store.list(Filter(kind="monitor.state", owner=monitor), after=history.assigned.begun, limit=PAGE)

    async def note(tx: Transaction) -> None:
        for seen in rows:
            row = await tx.find_id(seen.id)
            if row is not None:
                await note_state(tx, row, None)
        current = await tx.get(history.id)
        begun = rows[-1].id if len(rows) == PAGE else ALL
        await tx.update(current, assigned=replace(current.assigned, begun=begun))

    return Done(note, after_s=AGAIN_S)


def fitting(rows: Sequence[Any]) -> Sequence[Any]:
    """Return as many of the first rows of a journal as one turn, or one answer, may carry, and at least one."""
    left = BATCH_CHARS
    for index, (*_, body) in enumerate(rows):
        left -= len(body)
        if left < 0 and index:
            return rows[:index]
    return rows


async def taken(tx: Transaction, history: Resource, until: int) -> None:
    """Forget the entries up to that one: whoever pulls says that they are kept. What is forgotten already is no mistake."""
    last = (await tx.statement(sql.JOURNAL_LAST, stream=history.id, until=until))[0][0]
    if last is None:
        return
    await tx.change(sql.JOURNAL_DELETE, stream=history.id, until=last)
    current = await tx.get(history.id)
    assigned = replace(current.assigned, taken=max(current.assigned.taken, last))
    await tx.update(current, assigned=assigned, observed=await _observed(tx, current))


async def _count(tx: Transaction, id: str, **said: Any) -> None:
    """Write how much waits, with what is said besides, and drop the oldest of too many."""
    current = await tx.get(id)
    assigned = replace(current.assigned, dropped=current.assigned.dropped + await _bounded(tx, current))
    await tx.update(current, assigned=assigned, observed=replace(await _observed(tx, current), **said))


async def _observed(tx: Transaction, history: Resource) -> HistoryObserved:
    waiting, since = (await tx.statement(sql.JOURNAL_WAITING, stream=history.id))[0]
    return HistoryObserved(waiting=int(waiting), since=since or "")


async def _bounded(tx: Transaction, history: Resource) -> int:
    """Drop the oldest of too many, and return how many."""
    waiting = int((await tx.statement(sql.JOURNAL_WAITING, stream=history.id))[0][0])
    over = waiting - history.desired.waiting_max
    if over <= 0:
        return 0
    last = (await tx.statement(sql.JOURNAL_NEXT, stream=history.id, n=over))[-1]
    return await tx.change(sql.JOURNAL_DELETE, stream=history.id, until=last[0])
