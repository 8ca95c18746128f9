"""The server half of a scan: its node is asked from inside, its host looks from outside, and what they say is written."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.compute.vm.types import VmObserved
from pileus.fleet.asking import ask, node_of
from pileus.fleet.node.types import answers
from pileus.fleet.request.types import ANSWER, RequestObserved, is_settled
from pileus.infra.host.types import HostObserved, silence
from pileus.kernel.clock import Clock, unix
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Waiting
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.look.types import LookAssigned, LookDesired, LookObserved
from pileus.monitor.scan import plan
from pileus.monitor.scan.plan import Appliance, Begin
from pileus.monitor.scan.types import OUTSIDE_S, OVER, SCAN_S, ScanAssigned, ScanObserved
from pileus.monitor.signature.types import SignatureDesired
from pileus.scan.rules import eicar

LOOK_AGAIN_S = 1.0


class ScanController(Controller):
    """Brings each scan to its end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Begin it once, on each of its sides, and wait for what is said there."""
        assigned: ScanAssigned = resource.assigned
        said: ScanObserved = resource.observed or ScanObserved()
        if resource.deleting or said.state in OVER:
            return Done()
        vm = await store.find_id(assigned.vm)
        if vm is None or vm.deleting:
            return _ended(resource, plan.unknown("the VM was deleted"))
        if not assigned.began_at:
            return await self._begin(resource, vm, store)
        parts = [plan.unknown(assigned.refused)] if assigned.refused else []
        if assigned.request:
            inside = await self._inside(assigned, vm, store)
            if inside is None and assigned.sides == "auto":
                return await self._outside_instead(resource, vm, store)
            parts.append(inside or plan.unknown(await self._why_not(assigned, vm, store)))
        if assigned.look:
            parts.append(await self._outside(assigned, store))
        told = plan.merged(parts)
        if told.state in OVER:
            return _ended(resource, told)

        async def apply(tx: Transaction) -> None:
            await tx.update(await tx.get(resource.id), observed=told)

        return Done(apply, after_s=LOOK_AGAIN_S)

    async def _begin(self, scan: Resource, vm: Resource, store: Store) -> Outcome:
        desired: SignatureDesired = (await store.get(scan.assigned.signature)).desired
        node = await node_of(store, vm)
        wanted = "outside" if desired.engine == "clamav" else desired.look
        observed: VmObserved | None = vm.observed
        seen = Appliance(
            power=observed.power if observed is not None else "unknown",
            is_node=node is not None,
            answers=node is not None and answers(node),
            up_s=self._clock() - unix(observed.started_at) if observed is not None and observed.started_at else 0.0,
            unseen=await self._unseen(vm, desired, store),
        )
        begin = plan.begin(wanted, seen)
        if begin is None and self._clock() < unix(scan.created_at) + SCAN_S:
            return Done(after_s=LOOK_AGAIN_S)
        if begin is None or not begin.sides:
            why = begin.refused if begin is not None else f"the VM was not there within {SCAN_S:.0f} s"
            return _ended(scan, plan.unknown(why))
        return _begun(scan, vm, node, desired, replace(begin, wanted=wanted))

    async def _outside_instead(self, scan: Resource, vm: Resource, store: Store) -> Outcome:
        """Look from outside, because nothing answered inside."""
        desired: SignatureDesired = (await store.get(scan.assigned.signature)).desired
        why = await self._unseen(vm, desired, store)
        if why:
            return _ended(scan, plan.unknown(why))
        return _begun(scan, vm, None, desired, Begin(wanted="outside", sides=("outside",)))

    async def _unseen(self, vm: Resource, desired: SignatureDesired, store: Store) -> str:
        """Return why the VM cannot be looked at from outside; empty: it can."""
        host = await store.find_id(vm.assigned.host) if vm.assigned is not None and vm.assigned.host else None
        if host is None or not vm.assigned.volumes:
            return "the VM has no host and no disk yet"
        if host.assigned.silent == "yes":
            return f"host {host.name} is silent: {silence(host.assigned)}"
        observed: HostObserved | None = host.observed
        if desired.engine == "clamav" and (observed is None or not observed.clamd):
            return f"there is no clamd on host {host.name}; install the package clamav-daemon there"
        return ""

    async def _inside(self, assigned: ScanAssigned, vm: Resource, store: Store) -> ScanObserved | None:
        """Return what the node says; None: it said nothing, and will not."""
        request = await store.find_id(assigned.request)
        if request is None:
            return None
        if is_settled(request):
            observed: RequestObserved = request.observed
            if observed.state != "applied":
                return None
            return plan.observed(await store.content(request.id, ANSWER) or observed.answer.encode())
        is_late = self._clock() >= assigned.began_at + SCAN_S
        return None if is_late or plan.stopped(vm.observed) else ScanObserved(state="running")

    async def _why_not(self, assigned: ScanAssigned, vm: Resource, store: Store) -> str:
        """Return why the node said nothing."""
        request = await store.find_id(assigned.request)
        if request is None:
            return "its request was deleted"
        if is_settled(request):
            observed: RequestObserved = request.observed
            return f"its appliance did not do it: {observed.state} {observed.answer[:300]}".strip()
        return plan.stopped(vm.observed) or f"not over within {SCAN_S:.0f} s"

    async def _outside(self, assigned: ScanAssigned, store: Store) -> ScanObserved:
        """Return what the host says."""
        look = await store.find_id(assigned.look)
        if look is None:
            return plan.outside(None)
        said = plan.outside(look.observed)
        if said.state in OVER:
            return said
        host = await store.find_id(look.host)
        if host is None:
            return plan.unknown("its host was removed")
        if host.assigned.silent == "yes":
            return plan.unknown(f"host {host.name} is silent: {silence(host.assigned)}")
        if self._clock() >= assigned.began_at + OUTSIDE_S:
            return plan.unknown(f"not over within {OUTSIDE_S:.0f} s")
        return said


def _begun(scan: Resource, vm: Resource, node: Resource | None, desired: SignatureDesired, begin: Begin) -> Outcome:
    """Return what begins it on its sides; what was asked before, and did not answer, is withdrawn."""

    async def apply(tx: Transaction) -> None:
        current = await tx.get(scan.id)
        await _withdraw(tx, current)
        asked = ""
        if "inside" in begin.sides and node is not None:
            payload = plan.request(desired.rules or eicar(), desired.paths)
            try:
                asked = (await ask(tx, node, current, f"scan-{scan.id}", payload, tx.now + SCAN_S)).id
            except QuotaExceeded as full:
                raise Waiting("QueueFull", full.message, 10.0) from None
        look = await _make_look(tx, current, vm, desired) if "outside" in begin.sides else ""
        decided = replace(
            scan.assigned, sides=begin.wanted, request=asked, look=look, refused=begin.refused, began_at=tx.now
        )
        await tx.update(current, assigned=decided, observed=ScanObserved(state="running"))

    return Done(apply, after_s=LOOK_AGAIN_S)


async def _make_look(tx: Transaction, scan: Resource, vm: Resource, desired: SignatureDesired) -> str:
    """Let the VM's host look at its disks, and return the look."""
    id = tx.new_id()
    rules = "" if desired.engine == "clamav" else desired.rules or eicar()
    look = Resource(
        id=id,
        kind="monitor.look",
        name=f"look-{id[-12:]}",
        owner=scan.id,
        account_id=scan.account_id,
        account=scan.account,
        zone=scan.zone,
        vdc=scan.vdc,
        desired=LookDesired(),
        assigned=LookAssigned(
            host=vm.assigned.host, vm=vm.id, volumes=vm.assigned.volumes, engine=desired.engine, rules=rules
        ),
        # Known as waiting from the start: a host that says the same later writes nothing.
        observed=LookObserved(),
        observed_generation=1,
    )
    await tx.create(look)
    return id


async def _withdraw(tx: Transaction, scan: Resource) -> None:
    """End what goes on for the scan: its host stops, and its node need not begin."""
    for child in await tx.children(scan.id):
        if child.kind == "monitor.look" or not is_settled(child):
            await tx.mark_deleting(child)


def _ended(scan: Resource, said: ScanObserved) -> Outcome:
    async def apply(tx: Transaction) -> None:
        current = await tx.get(scan.id)
        await _withdraw(tx, current)
        await tx.update(current, assigned=replace(current.assigned, ended_at=tx.now), observed=said)
        await tx.enqueue(scan.assigned.signature)

    return Done(apply)
