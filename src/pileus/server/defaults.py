"""What comes with a new account, and with a new host: the one place where kinds of several capabilities meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pileus.gateway.router.types import RouterAssigned, RouterDesired, router_space
from pileus.gateway.vpn.api import refuse_range_of_vpn
from pileus.infra.host.api import HostAdmission
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, make
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.mirror.decapsulator.types import PLATFORM
from pileus.network.network.api import NetworkAdmission
from pileus.network.network.types import NetworkDesired
from pileus.storage.pool.types import PoolDesired
from pileus.tenancy.vdc.types import VdcDesired


class AccountAdmission(Admission):
    """An account starts with the vdc ``main`` and the network ``default`` when there is no doubt about the zone."""

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._admissions = admissions

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the account. Raises: Invalid for the name that the cloud's own appliances need."""
        if change.old is None and change.new.name == PLATFORM:
            raise Invalid(f"{PLATFORM} is the account of the cloud's own appliances; choose another name", field="name")
        return change.new

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


class NetworkWithRouter(NetworkAdmission):
    """The account's first served network in a zone brings the router of both."""

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Make the router, or let the one there is see the network; a change of the network does the same."""
        await _ensure_router(tx, resource)
        return {}

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the network; one that is to have a router from now on gets it. Raises: as before; Conflict (overlap)."""
        admitted = await super().admit(tx, change)
        if change.old is None:
            await refuse_range_of_vpn(tx, admitted)
        else:
            await _ensure_router(tx, admitted)
        return admitted


async def _ensure_router(tx: Transaction, network: Resource) -> None:
    if network.assigned.router == "none":
        return
    space = router_space(network.assigned.zone)
    known = await tx.holder(space, network.account_id)
    if known is not None:
        if (await tx.get(known)).deleting:
            raise Conflict(
                "the router of the account's last network in the zone is just going; try again", code="deleting"
            )
        await tx.enqueue(known)
        return
    zone = await tx.get(network.assigned.zone)
    router = Resource(
        id=tx.new_id(),
        kind="gateway.router",
        name=f"router-{zone.name}"[:63],
        account_id=network.account_id,
        account=network.account,
        owner=network.account_id,
        desired=RouterDesired(zone=zone.id, vdc=network.assigned.vdc),
        assigned=RouterAssigned(zone=zone.id, vdc=network.assigned.vdc, redundancy=network.assigned.router),
    )
    await tx.claim(space, network.account_id, router.id)
    await tx.create(router, {"zone": zone.id, "vdc": network.assigned.vdc})


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
