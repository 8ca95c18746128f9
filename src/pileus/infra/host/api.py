"""Admission of a host: its pod and zone; a host with something on it does not go."""

from __future__ import annotations

from dataclasses import replace

from pileus.infra.host.types import HostAssigned
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction


class HostAdmission(Admission):
    """The pod is said, or the only one."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the host with its place. Raises: Invalid when the pod is not clear."""
        new = change.new
        if change.old is not None:
            return new
        pod = await tx.get(change.links["pod"]) if "pod" in change.links else await only(tx, "infra.pod", "", "pod")
        return replace(new, assigned=HostAssigned(host=new.id, zone=pod.zone, pod=pod.id))

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict while something of a tenant is on the host."""
        for kind, name in await tx.statement(sql.TENANTS_ON_HOST, host=resource.id):
            raise Conflict(
                f"{resource} still has {kind.partition('.')[2]} {name}; delete or move it first", code="in-use"
            )
