"""The loop: leases what is due, lets its controller decide, and writes the decision if the lease still holds.

Any number of servers run one on the same database. The loop knows no kind; controllers know no loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable, Mapping

import structlog
from msgspec import Struct

from pileus.kernel.background import for_ever
from pileus.kernel.errors import Conflict, LeaseLost, NotFound, PileusError, Stuck, Transient
from pileus.kernel.failpoint import failpoint
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

log = structlog.get_logger()

LEASE_S = 10.0
"""A dead server's work goes to another after this."""
TOKEN_BITS = 62
"""A lease's token is random, never counted: work that is done loses its row, and a count would begin anew."""
RENEW_EVERY_S = 3.0
BATCH = 64
"""Resources leased at once: enough to fill a group commit, few enough to share between servers."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 60.0
STUCK_RECHECK_S = 300.0
PAUSE_MAX_S = 1.0
"""What other servers' clocks and lost words may cost."""
RETRYING = "Retrying"
"""The reason of a passing failure; an ordinary wait is none, and is not counted as a try."""
AHEAD_MAX_S = 600.0
"""Nothing is put off for longer: what is due later than that was written before the clock was set back."""
SHOW_AFTER_ATTEMPTS = 3
"""A passing failure is shown to users and warned of from this try on."""
SCAN_EVERY_S = 120.0
"""How often what is not ready and not due is made due: the net under a lost wake-up."""


class Controller:
    """The server half of a kind; kinds with nothing to decide need none of their own."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Look at the world as it is, and return the decision; everything it writes is in the outcome's ``apply``.

        A resource being deleted: ``Done`` once the facts say it is gone.
        """
        return Done()

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Give back, in the transaction that removes the row, what is not simply owned by the resource's id."""


class Leased(Struct, frozen=True):
    """One unit of work in this server's hands."""

    id: str
    token: int
    attempts: int
    seq: int


class Loop:
    """Runs controllers for due resources until closed."""

    def __init__(
        self, store: Store, hub: Hub, controllers: Mapping[str, Controller], *, seed: int | None = None
    ) -> None:
        self._store = store
        self._hub = hub
        self._controllers = controllers
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._held: dict[str, Leased] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._wake: Callable[[], None] = lambda: None
        """Ends the pause: work was given back that is due sooner."""

    async def open(self) -> None:
        """Start leasing."""
        self._tasks = [
            for_ever(self._lease_and_work, "loop"),
            for_ever(self._renew, "lease-renewal"),
            for_ever(self._scan, "loop-scan"),
        ]

    async def close(self) -> None:
        """Stop; leases in hand expire by themselves."""
        for task in [*self._tasks, *self._running]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._running, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether nothing is in this loop's hands."""
        return not self._held

    async def _lease_and_work(self) -> None:
        with self._hub.watch(("all", "")) as changes:
            self._wake = changes.wake
            while True:
                batch = await self._lease()
                if not batch:
                    await changes.wait(await self._pause())
                for leased in batch:
                    self._held[leased.id] = leased
                    task = asyncio.create_task(self._work(leased), name=f"reconcile {leased.id}")
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                while len(self._held) >= BATCH:
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _pause(self) -> float:
        """Return the seconds until something is due, not too many."""
        rows = await self._store.fetch(sql.WORK_NEXT)
        if rows[0][0] is None:
            return PAUSE_MAX_S
        return min(max(float(rows[0][0]) - self._store.clock(), 0.005), PAUSE_MAX_S)

    async def _lease(self) -> list[Leased]:
        now = self._store.clock()
        if not await self._store.fetch(sql.WORK_DUE, now=now, n=1):
            return []

        async def lease(tx: Transaction) -> list[Leased]:
            batch = []
            for id, _, attempts, seq in await tx.statement(sql.WORK_DUE, now=now, n=BATCH):
                token = secrets.randbits(TOKEN_BITS)
                await tx.change(sql.WORK_LEASE, b_id=id, until=now + LEASE_S, server=self._store.server, token=token)
                batch.append(Leased(id, token, attempts, seq))
            return batch

        return await self._store.write(lease)

    async def _renew(self) -> None:
        await asyncio.sleep(RENEW_EVERY_S)
        held = list(self._held.values())
        until = self._store.clock() + LEASE_S

        async def renew(tx: Transaction) -> None:
            for leased in held:
                await tx.change(sql.WORK_RENEW, b_id=leased.id, b_token=leased.token, until=until)

        if held:
            await self._store.write(renew)

    async def _scan(self) -> None:
        await scan(self._store)
        await asyncio.sleep(SCAN_EVERY_S * self._random.uniform(0.8, 1.2))

    async def _work(self, leased: Leased) -> None:
        try:
            await self._reconcile(leased)
        except (LeaseLost, Transient) as error:
            log.info("result dropped", id=leased.id, error=error.message)
        except NotFound as error:  # what it refers to went while it was decided about
            log.info("result dropped", id=leased.id, error=error.message)
            with contextlib.suppress(PileusError):
                await self._again(leased, self._backoff(leased.attempts), leased.attempts + 1)
        except Exception:  # a defect of one kind must not stop the others: the loop survives
            log.exception("defect while reconciling", id=leased.id)
            with contextlib.suppress(PileusError):
                await self._again(leased, self._backoff(leased.attempts), leased.attempts + 1)
        finally:
            if self._held.get(leased.id) is leased:
                del self._held[leased.id]

    async def _reconcile(self, leased: Leased) -> None:
        try:
            resource = await self._store.get(leased.id)
        except NotFound:
            await self._store.write(lambda tx: tx.change(sql.WORK_DELETE, id=leased.id))
            return
        outcome = await self._decide(resource, leased)
        failpoint("loop.decided")
        try:
            try:
                await self._write(leased, resource, outcome)
            except Waiting as waiting:
                await self._write(leased, resource, waiting.wait)
        except Conflict as error:
            if error.code == "stale-revision":  # somebody wrote meanwhile: look again
                await self._again(leased, 0.0, leased.attempts)
            else:
                log.warning("decision refused", id=leased.id, kind=resource.kind, error=error.message)
                await self._again(leased, self._backoff(leased.attempts), leased.attempts + 1)
        failpoint("loop.finished")

    async def _write(self, leased: Leased, seen: Resource, outcome: Outcome) -> None:
        again_s = await self._store.write(lambda tx: self._finish(tx, leased, seen, outcome), reconciling=seen.id)
        if again_s is not None and again_s < PAUSE_MAX_S:
            self._wake()

    async def _decide(self, resource: Resource, leased: Leased) -> Outcome:
        controller = self._controllers.get(resource.kind)
        if controller is None:
            return Done()
        try:
            return await controller.reconcile(resource, self._store)
        except Stuck as error:
            return Wait(error.reason, error.message, STUCK_RECHECK_S)
        except Transient as error:
            if leased.attempts + 1 >= SHOW_AFTER_ATTEMPTS:
                log.warning("still failing", id=resource.id, kind=resource.kind, error=error.message)
            return Wait(RETRYING, error.message, self._backoff(leased.attempts))

    async def _finish(self, tx: Transaction, leased: Leased, seen: Resource, outcome: Outcome) -> float | None:
        """Write the outcome, and return in how many seconds the work is due again; None: it is done, or gone."""
        seq = await tx.check_lease(leased.id, leased.token)
        current = await tx.get(leased.id)
        if current.revision != seen.revision:
            raise Conflict(f"{seen} changed while it was decided about", code="stale-revision")
        if outcome.apply is not None:
            await outcome.apply(tx)
            current = await tx.get(leased.id)
        if current.deleting and isinstance(outcome, Done):
            blocked = await self._collect(tx, current)
            if blocked is None:
                return None
            outcome = blocked
        if isinstance(outcome, Done):
            await tx.set_waiting(current, None)
            return await self._settle(tx, leased, seq, again_s=outcome.after_s or None, attempts=0)
        failed = outcome.reason == RETRYING
        attempts = leased.attempts + 1 if failed else 0
        hidden = failed and attempts < SHOW_AFTER_ATTEMPTS
        await tx.set_waiting(current, None if hidden else outcome)
        return await self._settle(tx, leased, seq, again_s=outcome.after_s, attempts=attempts)

    async def _settle(
        self, tx: Transaction, leased: Leased, seq: int, *, again_s: float | None, attempts: int
    ) -> float | None:
        """Give the lease back: forget the work, unless it became due again since it was leased."""
        if again_s is None and seq == leased.seq:
            await tx.change(sql.WORK_DELETE, id=leased.id)
            return None
        await _again(tx, leased, again_s or 0.0, attempts)
        return again_s or 0.0 if seq == leased.seq else 0.0

    async def _collect(self, tx: Transaction, resource: Resource) -> Wait | None:
        """Remove a resource whose facts are gone: children first, then what refers to it, then the row."""
        children = await tx.children(resource.id)
        if children:
            for child in children:
                await tx.mark_deleting(child)
            names = ", ".join(str(child) for child in children[:3])
            return Wait("DeletingChildren", f"waits for {len(children)} that belong to it: {names}", 10.0)
        referrer = await tx.referrer(resource.id)
        if referrer is not None:
            return Wait("InUse", f"still used by {referrer}", 10.0)
        controller = self._controllers.get(resource.kind)
        if controller is not None:
            await controller.release(tx, resource)
        await tx.purge(resource)
        return None

    async def _again(self, leased: Leased, after_s: float, attempts: int) -> None:
        await self._store.write(lambda tx: _again(tx, leased, after_s, attempts))
        if after_s < PAUSE_MAX_S:
            self._wake()

    def _backoff(self, attempts: int) -> float:
        ceiling = min(BACKOFF_FIRST_S * 2 ** min(attempts, 16), BACKOFF_MAX_S)
        return float(ceiling * self._random.uniform(0.5, 1.0))


async def _again(tx: Transaction, leased: Leased, after_s: float, attempts: int) -> None:
    """Give the lease back, due ``after_s`` from now; at once when it became due again since it was leased."""
    lease = {"b_id": leased.id, "b_token": leased.token, "b_seq": leased.seq}
    await tx.change(sql.WORK_AGAIN, **lease, now=tx.now, due=tx.now + min(after_s, AHEAD_MAX_S), attempts=attempts)


async def scan(store: Store, page: int = 500) -> int:
    """Make due what is not ready and not due, and return how many that were.

    What a clock that was set back since put too far ahead is due, and its lease free.
    """

    async def catch_up(tx: Transaction) -> None:
        ahead = {"due_max": tx.now + AHEAD_MAX_S, "lease_max": tx.now + 2 * LEASE_S}  # servers' clocks differ a little
        await tx.change(sql.WORK_AHEAD, now=tx.now, **ahead)

    await store.write(catch_up)
    after, found = "", 0
    while True:
        ids = [row[0] for row in await store.fetch(sql.WORK_MISSING, after=after, n=page)]
        if not ids:
            return found

        async def enqueue(tx: Transaction, ids: list[str] = ids) -> None:
            for id in ids:
                await tx.enqueue(id)

        await store.write(enqueue)
        after, found = ids[-1], found + len(ids)
