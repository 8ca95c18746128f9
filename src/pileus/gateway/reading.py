"""Reads of what an account has, for the documents of its routers: a few lists, however many guests there are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping

from msgspec import Struct

from pileus.fleet.node.types import NodeDesired, NodeObserved
from pileus.gateway.facts import Facts, Guest, NetworkFacts, Nic, Place
from pileus.gateway.router.types import RouterAssigned
from pileus.kernel.kind import Resource
from pileus.kernel.records import decode, revision_of
from pileus.kernel.store.engine import Row
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.statements import COLUMNS
from pileus.kernel.store.store import Store
from pileus.network.network.types import NetworkAssigned, NetworkDesired
from pileus.network.port.types import PortAssigned, PortDesired
from pileus.node.document import Document, document_hash

PAGE = 1000
APPLIANCES_KEPT = 64
_ID, _NAME, _DELETING = COLUMNS.index("id"), COLUMNS.index("name"), COLUMNS.index("deleting_at")


async def living(store: Store, filter: Filter) -> list[Resource]:
    """Return all that match and are not being deleted, in the order of their ids."""
    found, after = [], ""
    while True:
        page = await store.list(filter, after=after, limit=PAGE)
        found += [each for each in page if not each.deleting]
        if len(page) < PAGE:
            return found
        after = page[-1].id


class Appliance(Struct, frozen=True):
    """A node of a router, and the hash of the document that is wished there: what it was assigned may be older."""

    resource: Resource
    hash: str

    @property
    def observed(self) -> NodeObserved | None:
        """What its host knows of it."""
        found: NodeObserved | None = self.resource.observed
        return found

    @property
    def document(self) -> Document:
        """The document that is wished."""
        desired: NodeDesired = self.resource.desired
        return desired.document


class Appliances:
    """Nodes of routers, decoded once per revision: their documents are long, and all rules of a router look at them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Appliance] = OrderedDict()

    async def of(self, store: Store, router: str) -> list[Appliance]:
        """Return the nodes of a router that are not being deleted."""
        rows = await store.list_rows(Filter(kind="fleet.node", owner=router))
        return [self._decoded(store, row) for row in rows if not row[_DELETING]]

    def _decoded(self, store: Store, row: Row) -> Appliance:
        known = self._known.get(row[_ID])
        if known is None or known.resource.revision != revision_of(row):
            resource = decode(store.registry, row)
            known = Appliance(resource, document_hash(resource.desired.document))
        self._known[row[_ID]] = known
        self._known.move_to_end(row[_ID])
        if len(self._known) > APPLIANCES_KEPT:
            self._known.popitem(last=False)
        return known


async def read_facts(store: Store, account_id: str, zone: str, guests: Mapping[str, Guest]) -> Facts:
    """Return what the account has in all zones; ``guests`` are those of ``zone`` that are needed."""
    networks = await living(store, Filter(kind="network.network", account_id=account_id))
    routers = await living(store, Filter(kind="gateway.router", account_id=account_id))
    addresses = await living(store, Filter(kind="gateway.address", account_id=account_id))
    vpns = await living(store, Filter(kind="gateway.vpn", account_id=account_id))
    by_zone = {router.assigned.zone: router for router in routers if router.assigned is not None}
    served = [network for network in networks if network.assigned is not None and network.assigned.router != "none"]
    zones = {*by_zone, *(network.assigned.zone for network in served)}
    return Facts(
        zone=zone,
        places={each: _place(each, by_zone.get(each), served) for each in zones},
        addresses={address.id: address.assigned.address for address in addresses},
        guests=guests,
        vpns={vpn.id: vpn for vpn in vpns},
    )


async def guests_of(store: Store, account_id: str, vms: Collection[str]) -> dict[str, Guest]:
    """Return these VMs by id; one that is gone is left out."""
    found = {}
    for vm in await store.list(Filter(kind="compute.vm", ids=tuple(sorted(set(vms))))) if vms else []:
        ports = await store.list(Filter(kind="network.port", account_id=account_id, owner=vm.id))
        found[vm.id] = Guest(id=vm.id, name=vm.name, nics=tuple(_nics(ports)))
    return found


async def guests_in(store: Store, account_id: str, zone: str) -> dict[str, Guest]:
    """Return all VMs of the account in a zone by id, without decoding what is not needed."""
    ports: dict[str, list[Resource]] = {}
    for port in await living(store, Filter(kind="network.port", account_id=account_id, zone=zone)):
        ports.setdefault(port.owner, []).append(port)
    rows = _rows(store, Filter(kind="compute.vm", account_id=account_id, zone=zone))
    return {
        row[_ID]: Guest(id=row[_ID], name=row[_NAME], nics=tuple(_nics(ports[row[_ID]])))
        async for row in rows
        if row[_ID] in ports
    }


async def _rows(store: Store, filter: Filter) -> AsyncIterator[Row]:
    after = ""
    while True:
        page = await store.list_rows(filter, after=after, limit=PAGE)
        for row in page:
            yield row
        if len(page) < PAGE:
            return
        after = page[-1][_ID]


def _nics(ports: Iterable[Resource]) -> list[Nic]:
    """Return the NICs in the guest's order, which is that in which their ports were made; appliances have none."""
    found = []
    for port in sorted(ports, key=lambda each: each.id):
        desired: PortDesired = port.desired
        assigned: PortAssigned | None = port.assigned
        if assigned is not None and desired.attachment == "network" and not port.deleting:
            nic = Nic(
                network=assigned.network,
                mac=assigned.mac,
                address=assigned.address,
                extra_addresses=assigned.extra_addresses,
            )
            found.append(nic)
    return found


def _place(zone: str, router: Resource | None, networks: Iterable[Resource]) -> Place:
    assigned: RouterAssigned | None = router.assigned if router is not None else None
    return Place(
        zone=zone,
        router=router.id if router is not None else "",
        public_address=assigned.public_address if assigned is not None else "",
        networks=tuple(_network(each) for each in networks if each.assigned.zone == zone),
    )


def _network(network: Resource) -> NetworkFacts:
    desired: NetworkDesired = network.desired
    assigned: NetworkAssigned = network.assigned
    return NetworkFacts(
        id=network.id, name=network.name, range=desired.range, gateway=assigned.gateway, dns=desired.dns
    )
