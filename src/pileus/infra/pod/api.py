"""Admission of a pod: its zone."""

from __future__ import annotations

from dataclasses import replace

from pileus.infra.pod.types import PodAssigned
from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class PodAdmission(Admission):
    """The zone is said, or the only one."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the pod with its zone. Raises: Invalid when the zone is not clear."""
        if change.old is not None:
            return change.new
        zone = change.links.get("zone") or (await only(tx, "infra.zone", "", "zone")).id
        return replace(change.new, assigned=PodAssigned(zone=zone))
