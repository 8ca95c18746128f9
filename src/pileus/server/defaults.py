"""What comes with a new account, and with a new host: the one place where kinds of several capabilities meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pileus.infra.host.api import HostAdmission
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, make
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.network.network.types import NetworkDesired
from pileus.storage.pool.types import PoolDesired
from pileus.tenancy.vdc.types import VdcDesired


class AccountAdmission(Admission):
    """An account starts with the vdc ``main`` and the network ``default`` when there is no doubt about the zone."""

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._admissions = admissions

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Make vdc and network once; what the account does with them later is its own affair."""
        if len(await tx.matching(Filter(kind="infra.zone", account_id=""), limit=2)) == 1:
            for kind, name, desired in (
                ("tenancy.vdc", "main", VdcDesired()),
                ("network.network", "default", NetworkDesired()),
            ):
                child = Resource(
                    id=tx.new_id(),
                    kind=kind,
                    name=name,
                    account_id=resource.id,
                    account=resource.name,
                    owner=resource.id,
                    desired=desired,
                )
                await make(tx, self._admissions, principal, child)
        return {}


class HostWithPool(HostAdmission):
    """A host starts with a pool of its own name: its local disk."""

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._admissions = admissions

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Make the pool, owned by the host."""
        pool = Resource(
            id=tx.new_id(),
            kind="storage.pool",
            name=resource.name,
            owner=resource.id,
            desired=PoolDesired(host=resource.id, provider=resource.desired.provider),
        )
        await make(tx, self._admissions, principal, pool)
        return {}
