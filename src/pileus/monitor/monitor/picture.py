"""The VMs and rows that a monitor's controller decides by: read whole at first and now and then, else what changed.

Of each only what is decided by is kept: an account may have 10,000 of them, and a server many accounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pileus.compute.vm.types import VmDesired, is_of_cloud
from pileus.kernel.changes import Changes, ids_of, pages, read_all
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.monitor.monitor import plan
from pileus.monitor.monitor.types import APPLIANCES_MAX
from pileus.monitor.state.types import StateDesired, StateObserved

WHOLE_S = 300.0
"""How late a change would be seen that was missed."""
_NOTHING: dict[str, Any] = {"labels": {}, "conditions": (), "host": "", "account": "", "created_at": ""}


class Picture:
    """What one monitor may watch, and its rows."""

    def __init__(self, store: Store, account_id: str, monitor: str) -> None:
        self.rows: dict[str, Resource] = {}
        """By VM."""
        self._store, self._account_id, self._monitor = store, account_id, monitor
        self._vms: dict[str, Resource] = {}
        self._vm_of: dict[str, str] = {}
        """Row -> its VM."""
        self._changes = Changes(store, account_id)
        self._looked_at = self._asked_at = float("-inf")
        self._meant: tuple[object, Sequence[Resource]] | None = None
        self._given: tuple[object, dict[str, str]] | None = None

    @property
    def is_old(self) -> bool:
        """Whether nobody has looked at it for long; then the next look is at the whole."""
        return not 0 <= self._store.clock() - self._asked_at < WHOLE_S

    async def look(self) -> None:
        """See how it is now."""
        now = self._asked_at = self._store.clock()
        if 0 <= now - self._looked_at < WHOLE_S:
            changed = await self._changes.news()
            vms, rows = ids_of(changed, "compute.vm"), ids_of(changed, "monitor.state")
            self._take_vms(vms, await read_all(self._store, "compute.vm", vms))
            self._take_rows(rows, await read_all(self._store, "monitor.state", rows))
            return
        await self._changes.begin()
        self._take_vms(list(self._vms), ())
        self._take_rows(list(self._vm_of), ())
        async for page in pages(self._store, Filter(kind="compute.vm", account_id=self._account_id)):
            self._take_vms((), page)
        async for page in pages(self._store, Filter(kind="monitor.state", owner=self._monitor)):
            self._take_rows((), page)
        self._looked_at = now

    def meant(self, own: Resource) -> Sequence[Resource]:
        """Return the VMs that the monitor means, in the order of their ids."""
        by = own.desired, plan.names(own)
        if self._meant is None or self._meant[0] != by:
            self._meant, self._given = (by, plan.selected(own, self._vms.values())), None
        return self._meant[1]

    def given(self, own: Resource, at_work: Sequence[str]) -> dict[str, str]:
        """Return which watcher shall have which VM, of those that can be watched."""
        meant = self.meant(own)[:APPLIANCES_MAX]
        if self._given is None or self._given[0] != at_work:
            self._given = at_work, plan.shared_out((vm.id for vm in meant), at_work)
        return self._given[1]

    def _take_vms(self, ids: Iterable[str], found: Iterable[Resource]) -> None:
        before = {id: self._vms.pop(id) for id in ids if id in self._vms}
        for vm in found:
            if not vm.deleting and not is_of_cloud(vm):
                kept = {**_NOTHING, "labels": vm.labels, "revision": 0, "generation": 0, "observed_generation": 0}
                self._vms[vm.id] = replace(vm, **kept, desired=_VM, assigned=None, observed=None)
        if self._meant is not None and any(self._vms.get(id) != before.get(id) for id in {*before, *ids}):
            self._meant = None

    def _take_rows(self, ids: Iterable[str], found: Iterable[Resource]) -> None:
        for id in ids:
            self.rows.pop(self._vm_of.pop(id, ""), None)
        for row in found:
            if row.owner == self._monitor:
                observed: StateObserved | None = row.observed
                known = StateObserved(execution=observed.execution) if observed is not None else None
                self._vm_of[row.id] = row.assigned.vm
                self.rows[row.assigned.vm] = replace(row, **_NOTHING, desired=_ROW, observed=known)


_VM = VmDesired()
_ROW = StateDesired(vm="")
