"""The server half of a manager: what it is told is sent to its callback, signed, until the callback took it.

Notices about one node go in the order of their commits, those about several nodes at once. One that was taken is removed
after that: a server that ends in between sends it again, under the same id.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from pileus.fleet.admission import consent_of
from pileus.fleet.manager.plan import RETRY_FIRST_S, Delivery, report, retry_s
from pileus.fleet.manager.types import BUILTIN, ManagerAssigned, ManagerDesired, ManagerObserved
from pileus.kernel.clock import iso
from pileus.kernel.errors import Transient
from pileus.kernel.failpoint import failpoint
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outbound import Outbound, Poster
from pileus.kernel.outcome import Apply, Done, Outcome
from pileus.kernel.signing import Signer, load_signer
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Row
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.kernel.turns import Turns

WAITING_MAX = 100_000
"""Notices that wait for a manager of the cluster; of more the oldest about nodes' states go first."""
WAITING_OF_ACCOUNT_MAX = 10_000
"""The same for an account's own manager."""
TURN_S = 5.0
"""After this a turn begins nothing new: the work is leased again, and so goes round among servers."""
AT_ONCE = 8
"""Nodes whose notices are sent to one callback at the same time."""
TURNS_MAX, TURNS_OF_ACCOUNT_MAX = 16, 2
"""Callbacks that this server sends to at the same time, and those of one account: slow ones hold up no others."""
NO_TURN_S = 0.5
SUBJECTS_MAX = 256
"""Nodes of one turn."""
AGAIN_S = 0.05
"""Between two turns of a callback that more waits for."""
REPORT_EVERY_S = 300.0
"""How often a number that people are shown is renewed; each time all keys are looked up again."""
GOOD = range(200, 300)


@dataclass
class _Series:
    """Failures, one after another."""

    failures: int = 0
    since: float = 0.0
    not_before: float = 0.0

    def fail(self, now: float, share: float) -> None:
        self.failures += 1
        self.since = self.since or now
        self.not_before = now + retry_s(self.failures, share)


@dataclass
class _Callback:
    """What this server knows of a callback; another one that takes over begins anew."""

    target: tuple[str, str]
    series: _Series = field(default_factory=_Series)
    delayed: dict[str, _Series] = field(default_factory=dict)
    """By node: one whose notices are refused keeps no others waiting."""
    message: str = ""
    reported_at: float = 0.0


@dataclass
class _Turn:
    """One go at what waits."""

    manager: Resource
    store: Store
    callback: _Callback
    subjects: list[str]
    until: float
    taken: int = 0
    failed: bool = False
    poster: Poster = field(init=False)


class ManagerController(Controller):
    """Sends notices, a bounded time at once."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._random = random.Random()
        self._signer: Signer | None = None
        self._callbacks: dict[str, _Callback] = {}
        self._turns = Turns(TURNS_MAX, TURNS_OF_ACCOUNT_MAX)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Send what waits; what nobody shall be told is dropped."""
        desired: ManagerDesired = resource.desired
        if resource.deleting:
            return Done()
        if not desired.callback_url:
            self._callbacks.pop(resource.id, None)
            return Done(_said_no_more(resource))
        if desired.state == "disabled":
            return Done()
        self._signer = self._signer or await load_signer(store)
        known: ManagerObserved = resource.observed or ManagerObserved()
        if known.webhook_key != self._signer.public:  # first, so that receivers can verify what comes
            return Done(_write(resource, replace(known, webhook_key=self._signer.public)), after_s=AGAIN_S)
        callback = self._callback(resource.id, (desired.callback_url, desired.callback_ca))
        waiting = await _bounded(store, resource)
        taken, after_s = 0, NO_TURN_S
        with self._turns.turn(resource.account_id) as has_turn:
            if has_turn:
                if waiting and callback.series.not_before <= store.clock():
                    taken = await self._send(resource, store, callback)
                    waiting = await _waiting(store, resource.id)
                after_s = _next_s(callback, waiting, taken, store.clock())
        now = store.clock()
        delivery = Delivery(
            failures=callback.series.failures,
            failing_since=iso(callback.series.since),
            waiting=waiting,
            message=callback.message,
            taken=taken > 0,
            is_due=now - callback.reported_at >= REPORT_EVERY_S,
        )
        told = report(known, delivery)
        if told == known:
            return Done(after_s=after_s)
        callback.reported_at = now
        return Done(_write(resource, told), after_s=after_s)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Drop what a manager that goes was not told."""
        self._callbacks.pop(resource.id, None)
        await tx.change(sql.NOTICES_DELETE, manager=resource.id)

    def _callback(self, manager: str, target: tuple[str, str]) -> _Callback:
        """Return what is known of the callback; of another address than before: nothing."""
        known = self._callbacks.get(manager)
        if known is None or known.target != target:
            known = self._callbacks[manager] = _Callback(target)
        return known

    async def _send(self, manager: Resource, store: Store, callback: _Callback) -> int:
        """Return how many were taken; a callback that fails is tried with one notice only."""
        assigned: ManagerAssigned = manager.assigned or ManagerAssigned()
        turn = _Turn(manager, store, callback, await _due(manager, store, callback), store.clock() + TURN_S)
        try:
            async with self._outbound.open(assigned.reach, manager.desired.callback_ca) as turn.poster:
                await asyncio.gather(*(self._work(turn) for _ in range(AT_ONCE)))
        except Transient as error:
            turn.failed, callback.message = True, error.message
        if turn.taken:
            callback.series = _Series()
        elif turn.failed:
            callback.series.fail(store.clock(), self._random.random())
        return turn.taken

    async def _work(self, turn: _Turn) -> None:
        """Send one node's notices after another's, as long as the turn lasts."""
        while turn.subjects and turn.store.clock() < turn.until:
            subject = turn.subjects.pop()
            try:
                await self._send_all(turn, subject)
            except Transient as error:
                turn.failed, turn.callback.message = True, error.message[:200]
                series = turn.callback.delayed.setdefault(subject, _Series())
                series.fail(turn.store.clock(), self._random.random())
            else:
                turn.callback.delayed.pop(subject, None)

    async def _send_all(self, turn: _Turn, subject: str) -> None:
        """Send the notices of one node in their order. Raises: Transient when one was not taken."""
        while turn.store.clock() < turn.until:
            rows = await turn.store.fetch(sql.NOTICE_NEXT, manager=turn.manager.id, subject=subject)
            if not rows:
                return
            seq, _, account_id, _ = rows[0]
            if not await _may_know(turn.store, turn.manager, account_id):
                await _drop(turn.store, sql.NOTICES_DELETE_OF, manager=turn.manager.id, account_id=account_id)
                return
            await self._post(turn, rows[0])
            failpoint("notice.taken")
            await _drop(turn.store, sql.NOTICE_DELETE, seq=seq)
            turn.taken += 1

    async def _post(self, turn: _Turn, row: Row) -> None:
        assert self._signer is not None  # loaded before anything is sent
        body = row[3].encode()
        headers = self._signer.headers(row[1], turn.store.clock(), body)
        status = await turn.poster.post(turn.manager.desired.callback_url, body, headers)
        if status in GOOD:
            return
        raise Transient(f"it answered with status {status}, and only 200 to 299 takes a notice")


async def _due(manager: Resource, store: Store, callback: _Callback) -> list[str]:
    """Return the nodes of which something is to be told now, the longest waiting last."""
    delayed, now = callback.delayed, store.clock()
    rows = await store.fetch(sql.NOTICE_SUBJECTS, manager=manager.id, n=SUBJECTS_MAX + len(delayed))
    subjects = [one for (one,) in rows]
    for gone in delayed.keys() - set(subjects):
        del delayed[gone]
    if callback.series.failures and subjects:
        return [min(subjects, key=lambda one: delayed[one].not_before if one in delayed else 0.0)]
    return [one for one in reversed(subjects) if one not in delayed or delayed[one].not_before <= now]


def _next_s(callback: _Callback, waiting: int, taken: int, now: float) -> float:
    """Return when to look again; 0: when something is to be told."""
    if not waiting:
        return 0.0
    if callback.series.failures:
        return max(callback.series.not_before - now, AGAIN_S)
    if taken or not callback.delayed:
        return AGAIN_S
    return max(min(each.not_before for each in callback.delayed.values()) - now, RETRY_FIRST_S)


async def _may_know(store: Store, manager: Resource, account_id: str) -> bool:
    """Tell whether the account consents to the manager now; to the cloud's own all do."""
    is_of_cloud = not manager.account_id and manager.name in BUILTIN
    return is_of_cloud or await consent_of(store, account_id, manager) is not None


async def _drop(store: Store, statement: Any, **which: Any) -> None:
    await store.write(lambda tx: tx.change(statement, **which))


async def _waiting(store: Store, manager: str) -> int:
    return int((await store.fetch(sql.NOTICES, manager=manager))[0][0])


async def _bounded(store: Store, manager: Resource) -> int:
    """Return how many wait, once those that are too many are dropped."""
    most = WAITING_OF_ACCOUNT_MAX if manager.account_id else WAITING_MAX
    waiting = await _waiting(store, manager.id)
    if waiting <= most:
        return waiting
    await _drop(store, sql.NOTICES_TRIM, manager=manager.id, n=waiting - most)
    return most


def _said_no_more(manager: Resource) -> Apply | None:
    """Return what takes back the report of a callback that was there before."""
    known: ManagerObserved | None = manager.observed
    told = ManagerObserved(webhook_key=known.webhook_key) if known is not None else None
    return None if told == known else _write(manager, told)


def _write(manager: Resource, told: ManagerObserved | None) -> Apply:
    async def apply(tx: Transaction) -> None:
        await tx.update(manager, observed=told)

    return apply
