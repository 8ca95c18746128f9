"""The server half of a signature: appliances whose last scan is too old are scanned anew, a few at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.monitor.plan import is_over
from pileus.monitor.scan.types import OVER, ScanAssigned
from pileus.monitor.scanning import make_scan
from pileus.monitor.signature.types import SignatureAssigned, SignatureDesired, SignatureObserved
from pileus.scan.checking import check
from pileus.scan.rules import RulesRefused

AT_ONCE = 8
"""Scans of a signature that are under way at the same time: they cost the appliances' hosts something."""
LOOK_AGAIN_S = 10.0
KEPT_S = 30 * 86_400.0
"""How long the last scan of an appliance stays that is not watched any more."""
FORGET_MAX = 100
"""Scans that one transaction removes."""


class SignatureController(Controller):
    """Makes scans when they are due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._compiled: dict[str, tuple[int, str]] = {}
        """By signature: the generation whose rules were compiled, and why they are refused."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Scan whose last scan is too old, the longest ago first."""
        if resource.deleting:
            self._compiled.pop(resource.id, None)
            return Done()
        desired: SignatureDesired = resource.desired
        assigned: SignatureAssigned = resource.assigned or SignatureAssigned()
        now = self._clock()
        refused = await self._refused(resource)
        if desired.scan_serial > assigned.scan_serial:
            assigned = SignatureAssigned(scan_serial=desired.scan_serial, asked_at=now)
        vms = await _appliances(resource, store)
        scans = await store.list_all(Filter(kind="monitor.scan", account_id=resource.account_id))
        newest = {
            scan.assigned.vm: scan for scan in scans if scan.assigned.signature == resource.id and not scan.deleting
        }
        kept_until = now - KEPT_S
        old = [id for id, scan in newest.items() if id not in vms and _is_over(scan) and _ended_at(scan) < kept_until]
        room = AT_ONCE - sum(1 for scan in newest.values() if not _is_over(scan))
        due = [(at, id) for id in vms if (at := _due(newest.get(id), desired, assigned, now)) <= now]

        async def apply(tx: Transaction) -> None:
            current = await tx.get(resource.id)
            await tx.update(current, assigned=assigned, observed=replace(_observed(vms, newest), refused=refused))
            for _, id in sorted(due)[: max(0, room)] if not refused else ():
                await make_scan(tx, current, vms[id])
            for id in old[:FORGET_MAX]:
                await tx.mark_deleting(await tx.get(newest[id].id))

        return Done(apply, after_s=LOOK_AGAIN_S)

    async def _refused(self, signature: Resource) -> str:
        """Return why the rules cannot be used; compiled once, by a process of its own."""
        known = self._compiled.get(signature.id)
        if known is None or known[0] != signature.generation:
            refused = ""
            if signature.desired.rules:
                try:
                    await check(signature.desired.rules)
                except RulesRefused as wrong:
                    refused = f"line {wrong.line}: {wrong.message}" if wrong.line else wrong.message
            known = self._compiled[signature.id] = (signature.generation, refused)
        return known[1]


async def _appliances(signature: Resource, store: Store) -> dict[str, Resource]:
    """Return the VMs that are scanned: those of the monitor that have all the labels; none once that has ended."""
    desired: SignatureDesired = signature.desired
    links = await store.links(signature.id)
    if is_over(await store.get(links["monitor"]), store.clock()):
        return {}
    watched = {row.assigned.vm for row in await store.list_all(Filter(kind="monitor.state", owner=links["monitor"]))}
    labels = tuple(sorted(desired.labels.items()))
    vms = await store.list_all(Filter(kind="compute.vm", account_id=signature.account_id, labels=labels))
    return {vm.id: vm for vm in vms if vm.id in watched and not vm.deleting}


def _is_over(scan: Resource) -> bool:
    return scan.observed is not None and scan.observed.state in OVER


def _ended_at(scan: Resource) -> float:
    assigned: ScanAssigned = scan.assigned
    return assigned.ended_at


def _due(scan: Resource | None, desired: SignatureDesired, assigned: SignatureAssigned, now: float) -> float:
    """Return when the appliance is to be scanned again; in the future: not now."""
    if scan is None:
        return 0.0 if desired.every_s or assigned.asked_at else now + 1.0
    before: ScanAssigned = scan.assigned
    if not _is_over(scan):
        return now + 1.0
    if before.began_at < assigned.asked_at and before.ended_at < assigned.asked_at:
        return assigned.asked_at
    return before.ended_at + desired.every_s if desired.every_s else now + 1.0


def _observed(vms: Mapping[str, Resource], newest: Mapping[str, Resource]) -> SignatureObserved:
    states = Counter(newest[id].observed.state if id in newest else "waiting" for id in vms)
    return SignatureObserved(appliances=len(vms), states=dict(sorted(states.items())))
