"""The server half of a history: what waits is delivered in order, and forgotten once the receiver keeps it."""

from __future__ import annotations

import random

from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Transient
from pileus.kernel.failpoint import failpoint
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.history.types import HistoryObserved
from pileus.monitor.receiver import Entry, Receiver

BATCH = 500
"""Entries of one turn: each is at most 64 KiB."""
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0
AGAIN_S = 0.01
LOOK_AGAIN_S = 300.0


class HistoryController(Controller):
    """Delivers, a bounded number at once."""

    def __init__(self, receiver: Receiver, clock: Clock) -> None:
        self._receiver, self._clock = receiver, clock
        self._random = random.Random()
        self._not_before: dict[str, float] = {}

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Deliver the oldest entries; after a failure wait, longer each time."""
        if resource.deleting:
            self._not_before.pop(resource.id, None)
            return Done()
        left_s = self._not_before.get(resource.id, 0.0) - self._clock()
        if 0 < left_s <= RETRY_MAX_S:
            return Done(after_s=left_s)
        rows = await store.fetch(sql.JOURNAL_NEXT, stream=resource.id, n=BATCH)
        entries = [Entry(*row) for row in rows]
        known: HistoryObserved = resource.observed or HistoryObserved()
        try:
            if entries or resource.observed is None or known.failures:
                await self._receiver.take(resource.desired, resource.assigned, resource.id, entries)
        except Transient as failed:
            return await self._failed(resource, store, known, failed.message)
        failpoint("history.delivered")
        self._not_before.pop(resource.id, None)

        async def forget(tx: Transaction) -> None:
            if entries:
                await tx.change(sql.JOURNAL_DELETE, stream=resource.id, until=entries[-1].seq)
            await tx.update(await tx.get(resource.id), observed=await _observed(tx, resource))

        return Done(forget, after_s=AGAIN_S if len(entries) == BATCH else LOOK_AGAIN_S)

    async def _failed(self, history: Resource, store: Store, known: HistoryObserved, message: str) -> Outcome:
        failures = known.failures + 1
        wait_s = min(RETRY_FIRST_S * 2 ** min(failures, 10), RETRY_MAX_S) * self._random.uniform(0.5, 1.0)
        self._not_before[history.id] = self._clock() + wait_s

        async def note(tx: Transaction) -> None:
            current = await tx.get(history.id)
            dropped = await _bounded(tx, current)
            assigned = replace(current.assigned, dropped=current.assigned.dropped + dropped)
            said = replace(await _observed(tx, current), failures=failures, message=message)
            await tx.update(current, assigned=assigned, observed=said)

        return Done(note, after_s=wait_s)


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
