"""The server half of a segment: where it goes, and whom it meets there."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.network.segment.plan import placed, with_peers
from pileus.network.segment.types import ACCOUNT_LABEL, SegmentAssigned, SegmentObserved
from pileus.network.vlan import forget_segment, segments_of, wake_peers


class SegmentController(Controller):
    """Follows the hosts that have ports of the VLAN."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Keep uplinks and peers as they are now; gone when its host let go of it, or is to go itself."""
        assigned: SegmentAssigned = resource.assigned
        observed: SegmentObserved | None = resource.observed
        host = await store.get(assigned.host)
        if resource.deleting:
            left = resource.gone_confirmed and observed is not None and observed.state == "absent"
            return Done() if left or host.deleting else Wait("Deleting", "its host has still joined it", after_s=30.0)
        zone = await store.get(assigned.zone)
        own = placed(zone, host, assigned.vlan, assigned.vni)

        async def apply(tx: Transaction) -> None:
            others = await segments_of(tx, assigned.zone, resource.labels[ACCOUNT_LABEL])
            decided = with_peers(own, [other.assigned for other in others if not other.deleting])
            await tx.update(resource, assigned=decided)
            if with_peers(decided, []) != with_peers(assigned, []):
                await wake_peers(tx, resource)

        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let the others go on without it, and give the VLAN back with the last."""
        await forget_segment(tx, resource)
