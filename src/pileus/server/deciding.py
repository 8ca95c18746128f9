"""What a watcher's engine decided is written: rows, each with its actions, late when an account has much, never lost.

What waits is in memory only: whoever takes over finds it again, for no row says yet that it was acted on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec

from pileus.kernel.kind import Resource
from pileus.kernel.lease import Lease, check
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.acting import Proposed, Silence, Told, write_action
from pileus.monitor.notes import note_state
from pileus.monitor.state.types import StateObserved
from pileus.node.monitor.engine import Work
from pileus.server.watched import Appliance, bounded, is_stored, to_store
from pileus.server.watchlist import Watchlist

ROWS_MAX = 100
"""Rows written in one transaction."""
PAUSE_S = 0.5
"""Between two writes of an appliance's row, whatever an engine wants: a customer's VM may be one."""
WRITES_PER_S, WRITES_BURST = 250.0, 2500.0
WAITING_MAX = 128
"""Actions of one appliance: an honest engine, which hears nothing of it meanwhile, has fewer."""
ACTION_WRITES = 10
"""What comes of an action until it is done, about."""


class Allowance:
    """What the monitors of one account may write on one server: much at once, and so much in each second."""

    def __init__(self, now: float) -> None:
        self._left, self._at = WRITES_BURST, now

    def wait_s(self, now: float) -> float:
        """Return in how many seconds something may be written; 0: now."""
        if now != self._at:
            passed_s = max(0.0, now - self._at)
            self._left, self._at = min(WRITES_BURST, self._left + WRITES_PER_S * passed_s), now
        return max(0.0, (1 - self._left) / WRITES_PER_S)

    def spend(self, writes: int) -> None:
        """Take it off; what is written together may be more than is left, and is waited for afterwards."""
        self._left -= writes


class Deciding:
    """Writes what one watcher decides."""

    def __init__(
        self, store: Store, watcher: Resource, lease: Lease, watchlist: Watchlist, allowance: Allowance
    ) -> None:
        self._store, self._watcher, self._lease = store, watcher, lease
        self._list, self._appliances, self._allowance = watchlist, watchlist.by_vm, allowance
        self._rows: dict[str, StateObserved] = {}
        """VM -> a row that waits."""
        self._actions: dict[str, list[Proposed]] = {}
        """VM -> actions that wait, with its row."""
        self._live: dict[str, tuple[str, StateObserved]] = {}
        """VM -> id of its row and the row, of a table that is kept in memory."""
        self._silence, self._silent = Silence(), 0.0

    def holds(self, vm: str) -> bool:
        """Tell whether actions of it wait: it is heard again when they are written."""
        return vm in self._actions

    async def write(self, work: Work) -> None:
        """Take what was decided, and write what may be written now. Raises: LeaseLost."""
        self._take(work)
        now = self._store.clock()
        due = [vm for vm in self._actions if vm in self._appliances]
        due += [vm for vm in self._rows if vm not in self._actions and self._is_rested(vm, now)]
        if self._actions:
            self._silent = await self._silence.share(self._store)
        while due and not self._allowance.wait_s(now):
            part: list[str] = []
            while len(part) < min(ROWS_MAX, len(due)) and not self._allowance.wait_s(now):
                self._allowance.spend(1 + ACTION_WRITES * len(self._actions.get(due[len(part)], ())))
                part.append(due[len(part)])
            due = due[len(part) :]
            await self._write(part, now)

    def wait_s(self) -> float | None:
        """Return in how many seconds something that waits can be written; None: nothing waits."""
        if not self._rows and not self._actions:
            return None
        return max(self._allowance.wait_s(self._store.clock()), 0.0 if self._actions else PAUSE_S)

    def forget(self) -> None:
        """Show nothing any more that is not stored: another server may have it."""
        for vm in list(self._live):
            self._hide(vm)

    def _take(self, work: Work) -> None:
        for wanted in work.actions:
            with contextlib.suppress(msgspec.ValidationError):
                proposed = msgspec.convert(wanted, Proposed)
                waiting = self._actions.setdefault(proposed.vm, [])
                if len(waiting) < WAITING_MAX:
                    waiting.append(proposed)
        is_kept = self._list.desired.table == "memory"
        if self._live and not is_kept:
            whole = {vm: observed for vm, (_, observed) in self._live.items()}
            self._rows = {vm: msgspec.structs.replace(observed, kept_by="") for vm, observed in whole.items()}
            self.forget()
        for row in work.states:
            known = self._appliances.get(str(row.get("vm")))
            observed = self._read(row) if known is not None else None
            if known is not None and observed is not None:
                self._take_row(known, observed, is_kept)
        for vm in [vm for vm in (*self._rows, *self._actions, *self._live) if vm not in self._appliances]:
            self._rows.pop(vm, None)
            self._actions.pop(vm, None)
            self._hide(vm)

    def _take_row(self, known: Appliance, observed: StateObserved, is_kept: bool) -> None:
        vm = known.row.assigned.vm
        if is_kept:
            observed = msgspec.structs.replace(observed, kept_by=self._store.server)
            self._live[vm] = known.row.id, observed
            self._store.unstored[known.row.id] = observed
        if not is_kept or vm in self._actions or not is_stored(known.row.observed, observed):
            self._rows[vm] = observed

    def _read(self, row: dict[str, object]) -> StateObserved | None:
        try:
            observed = msgspec.convert(row, StateObserved)
        except msgspec.ValidationError:
            return None
        return bounded(observed) if self._watcher.desired.form == "appliance" else observed

    def _is_rested(self, vm: str, now: float) -> bool:
        known = self._appliances.get(vm)
        return known is not None and not 0 <= now - known.written_at < PAUSE_S

    def _hide(self, vm: str) -> None:
        if vm in self._live:
            self._store.unstored.pop(self._live.pop(vm)[0], None)

    async def _write(self, vms: Iterable[str], now: float) -> None:
        part = [(self._appliances[vm], self._rows.pop(vm, None), self._actions.pop(vm, ())) for vm in vms]

        async def write(tx: Transaction) -> None:
            await check(tx, self._lease)
            for known, observed, actions in part:
                told = Told(lease=self._lease, row=known.row.id, silent=self._silent)
                for proposed in actions:
                    await write_action(tx, told, proposed)
                await self._write_row(tx, known.row.id, observed)

        await self._store.write(write)
        for known, _, _ in part:
            known.written_at = now

    async def _write_row(self, tx: Transaction, id: str, observed: StateObserved | None) -> None:
        current = await tx.find_id(id)
        if observed is None or current is None or current.deleting:
            return
        if (current.assigned.watcher, current.assigned.epoch) != (self._watcher.id, observed.epoch):
            return
        stored = to_store(observed) if observed.kept_by else observed
        written = await tx.update(current, observed=stored, observed_generation=current.generation)
        await note_state(tx, written, current.observed)
