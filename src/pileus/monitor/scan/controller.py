"""The server half of a scan: its node is asked, and what it answers is written."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.fleet.asking import ask, node_of
from pileus.fleet.request.types import ANSWER, RequestObserved, is_settled
from pileus.kernel.clock import Clock
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Waiting
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.scan import plan
from pileus.monitor.scan.types import OVER, SCAN_S, ScanAssigned, ScanObserved
from pileus.scan.rules import eicar

LOOK_AGAIN_S = 1.0


class ScanController(Controller):
    """Brings each scan to its end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Ask the node once, and wait for its answer."""
        assigned: ScanAssigned = resource.assigned
        said: ScanObserved = resource.observed or ScanObserved()
        if resource.deleting or said.state in OVER:
            return Done()
        if not assigned.request:
            return await self._begin(resource, store)
        request = await store.find_id(assigned.request)
        if request is None:
            return _ended(resource, ScanObserved(state="unknown", message="its request was deleted"))
        if is_settled(request):
            observed: RequestObserved = request.observed
            if observed.state != "applied":
                words = f"its appliance did not do it: {observed.state} {observed.answer[:300]}"
                return _ended(resource, ScanObserved(state="unknown", message=words.strip()))
            answer = await store.content(request.id, ANSWER) or observed.answer.encode()
            return _ended(resource, plan.observed(answer))
        if self._clock() >= assigned.began_at + SCAN_S:
            return _ended(resource, ScanObserved(state="unknown", message=f"not over within {SCAN_S:.0f} s"))
        return Done(after_s=LOOK_AGAIN_S)

    async def _begin(self, scan: Resource, store: Store) -> Outcome:
        assigned: ScanAssigned = scan.assigned
        vm = await store.find_id(assigned.vm)
        if vm is None:
            return _ended(scan, ScanObserved(state="unknown", message="the VM was deleted"))
        node = await node_of(store, vm)
        if node is None:
            words = "the VM is no node of a manager: it cannot be looked at from inside"
            return _ended(scan, ScanObserved(state="unknown", message=words))
        signature = (await store.get(assigned.signature)).desired
        payload = plan.request(signature.rules or eicar(), signature.paths)

        async def apply(tx: Transaction) -> None:
            current = await tx.get(scan.id)
            try:
                made = await ask(tx, node, current, f"scan-{scan.id}", payload, tx.now + SCAN_S)
            except QuotaExceeded as full:
                raise Waiting("QueueFull", full.message, 10.0) from None
            decided = replace(assigned, request=made.id, began_at=tx.now)
            await tx.update(current, assigned=decided, observed=ScanObserved(state="running"))

        return Done(apply, after_s=LOOK_AGAIN_S)


def _ended(scan: Resource, said: ScanObserved) -> Outcome:
    async def apply(tx: Transaction) -> None:
        current = await tx.get(scan.id)
        await tx.update(current, assigned=replace(current.assigned, ended_at=tx.now), observed=said)
        await tx.enqueue(scan.assigned.signature)

    return Done(apply)
