"""What a session's decision is made of, read from the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmAssigned
from pileus.fleet.node.types import NodeAssigned, NodeLast, NodeObserved, answers
from pileus.infra.host.types import HostAssigned
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.mirror.decapsulator.types import DecapsulatorObserved
from pileus.mirror.filter.plan import compiled, expression_rules
from pileus.mirror.leg.types import LOST
from pileus.mirror.session.plan import (
    HERE,
    Course,
    End,
    Live,
    Offered,
    read_at_decapsulator,
    read_counts,
)
from pileus.mirror.session.types import AtDecapsulator, SessionAssigned, SessionDesired
from pileus.mirror.sniffer.types import SnifferDesired
from pileus.node.mirror.rules import Rule


class Lacking(Struct, frozen=True, kw_only=True):
    """Why a session cannot run. ``stops``: one that runs stops for it."""

    reason: str
    message: str
    stops: bool = False


class World(Struct, frozen=True, kw_only=True):
    """A session and what is around it.

    ``said``: what its decapsulator says of it, if that is of its key. ``heard``: the same, though it may not answer any more.
    """

    session: Resource
    zone: Resource
    legs: Mapping[str, Resource]
    offered: tuple[Offered, ...]
    rules: tuple[Rule, ...] = ()
    source: End | None = None
    course: Course | None = None
    said: AtDecapsulator | None = None
    heard: AtDecapsulator | None = None
    lacking: Lacking | None = None
    live: tuple[Live, ...] = ()
    """Its legs with what they counted last."""
    is_elsewhere: bool = False
    """The packets come from another host, or another tunnel, than its key was given for."""

    @property
    def session_host(self) -> str:
        """The host that packets are copied on."""
        return self.source.host if self.source is not None else ""

    @property
    def lacks_decapsulators(self) -> bool:
        """Whether the zone has fewer than it wishes, besides those that leave."""
        return sum(each.stays for each in self.offered) < int(self.zone.desired.decapsulators)

    @property
    def is_lost(self) -> bool:
        """Whether its source is gone with what it knew, and another one would number packets from 0 again."""
        return any(
            leg.observed is not None and leg.observed.problem is not None and leg.observed.problem.reason == LOST
            for leg in self.legs.values()
            if leg.assigned.key == self.session.assigned.key
        )

    @property
    def is_loaded(self) -> bool:
        """Whether the decapsulator has the session's key in force."""
        return self.said is not None

    async def address_at(self, offered: Offered, store: Store) -> str | None:
        """Return the address that a decapsulator sees the copies come from; None as long as it has no host."""
        found = await store.list(Filter(kind="fleet.node", ids=(offered.node,))) if offered.node else []
        if not found or not found[0].host or self.source is None:
            return None
        return _seen_as(self.source, found[0].host)


async def load_world(session: Resource, store: Store) -> World:
    """Return what there is now."""
    assigned: SessionAssigned = session.assigned
    desired: SessionDesired = session.desired
    links = await store.links(session.id)
    zone = await store.get(assigned.zone)
    legs = {leg.name: leg for leg in await store.list(Filter(kind="mirror.leg", owner=session.id))}
    offered = await _offered(zone, store)
    around = World(session=session, zone=zone, legs=legs, offered=offered, live=await _live(legs.values(), store))
    refused = _refused(zone, desired)
    if refused is not None:
        return replace(around, lacking=refused)
    place = await _nic(assigned.vm, desired.nic, assigned.port, store)
    if isinstance(place, Lacking):
        return replace(around, lacking=place)
    port, source = place
    around = replace(around, source=source, rules=await _rules(desired, links, store))
    # All that may be lacking is asked before a place is: one that cannot run gives its place back.
    sniffer = await _sniffer(assigned, store)
    if not isinstance(sniffer, tuple):
        return replace(around, lacking=sniffer)
    nodes = await store.list(Filter(kind="fleet.node", ids=(assigned.node,))) if assigned.node else []
    if not nodes or not nodes[0].host:
        return around
    node = nodes[0]
    heard = _heard(node, session)
    elsewhere = (assigned.source_host, assigned.source_address) != (source.host, _seen_as(source, node.host))
    return replace(
        around,
        said=heard if answers(node) else None,
        heard=heard,
        is_elsewhere=elsewhere,
        course=await _course(port, source, node, sniffer, store),
    )


async def _live(legs: Iterable[Resource], store: Store) -> tuple[Live, ...]:
    samples = [(leg, await store.sample(leg.id)) for leg in legs]
    return tuple(Live(id=leg.id, leg=leg.assigned, counts=read_counts(sample)) for leg, sample in samples)


def _refused(zone: Resource, desired: SessionDesired) -> Lacking | None:
    place: ZoneDesired = zone.desired
    if place.mirroring == "forbidden":
        return Lacking(reason="Forbidden", message=f"{zone} forbids mirroring", stops=True)
    if place.mirroring == "approval" and desired.approval != "granted":
        message = f"{zone} wants an operator's approval: `pileus patch session NAME --approval granted`"
        return Lacking(reason="ApprovalNeeded", message=message, stops=True)
    return None


async def _rules(desired: SessionDesired, links: Mapping[str, str], store: Store) -> tuple[Rule, ...]:
    if desired.expression:
        return expression_rules(desired.expression)
    if "filter" in links:
        return compiled((await store.get(links["filter"])).desired)
    return ()


async def _offered(zone: Resource, store: Store) -> tuple[Offered, ...]:
    found = await store.list(Filter(kind="mirror.decapsulator", zone=zone.id))
    return tuple(_offer(each, zone.desired.decapsulators) for each in found if not each.deleting)


def _offer(decapsulator: Resource, wished: int) -> Offered:
    observed: DecapsulatorObserved | None = decapsulator.observed
    stays = decapsulator.assigned.number < wished
    if observed is None:
        return Offered(id=decapsulator.id, node="", state="starting", sessions=0, stays=stays)
    return Offered(
        id=decapsulator.id, node=observed.node, state=observed.state, sessions=observed.sessions, stays=stays
    )


async def _nic(vm_id: str, nic: int, kept: str, store: Store) -> tuple[str, End] | Lacking:
    """Return the port of a VM's NIC and where it is. ``kept``: the port that it was first; another one is another NIC."""
    vm = await store.get(vm_id)
    assigned: VmAssigned = vm.assigned
    if not vm.host:
        return Lacking(reason="VmNotPlaced", message=f"{vm} has no host yet")
    if nic >= len(vm.desired.nics):
        return Lacking(reason="NoNic", message=f"{vm} has no NIC {nic} any more", stops=True)
    if vm.desired.isolated == "yes":
        return Lacking(reason="Isolated", message=f"{vm} is isolated: nothing passes its NICs", stops=True)
    if nic >= len(assigned.ports):
        return Lacking(reason="VmNotPlaced", message=f"NIC {nic} of {vm} is being made")
    if kept and assigned.ports[nic] != kept:
        message = f"NIC {nic} of {vm} is another one now; make a session or sniffer for it, and delete this one"
        return Lacking(reason="NoNic", message=message, stops=True)
    ports = await store.list(Filter(kind="network.port", ids=(assigned.ports[nic],)))
    if not ports or ports[0].assigned is None:
        why = f": {ports[0].ready.message}" if ports and ports[0].ready is not None else ""
        return Lacking(reason="NicNotPlugged", message=f"NIC {nic} of {vm} is not there yet{why}")
    return assigned.ports[nic], await _end_of(vm.host, store)


async def _end_of(host_id: str, store: Store) -> End:
    assigned: HostAssigned = (await store.get(host_id)).assigned
    return End(host=host_id, tunnel_address=assigned.tunnel_address)


def _seen_as(source: End, host: str) -> str:
    """Return the address that a host sees the source's copies come from."""
    return HERE if source.host == host else source.tunnel_address


async def _sniffer(assigned: SessionAssigned, store: Store) -> tuple[str, End | None] | Lacking:
    """Return the sniffer's port and where it is; none for a session whose packets the decapsulator keeps."""
    if not assigned.sniffer:
        return "", None
    sniffer = await store.get(assigned.sniffer)
    desired: SnifferDesired = sniffer.desired
    found = await _nic(sniffer.assigned.vm, desired.nic, assigned.delivery_port, store)
    if isinstance(found, Lacking):
        return Lacking(reason="SnifferNotReady", message=f"{sniffer}: {found.message}", stops=found.stops)
    return found


async def _course(
    port: str, source: End, node: Resource, sniffer: tuple[str, End | None], store: Store
) -> Course | None:
    """Return all places; None as long as the decapsulator's VM has not both its NICs."""
    assigned: NodeAssigned = node.assigned
    vms = await store.list(Filter(kind="compute.vm", ids=(assigned.vm,))) if assigned.vm else []
    ports: tuple[str, ...] = vms[0].assigned.ports if vms else ()
    if len(ports) != 2:
        return None
    return Course(
        port=port,
        source=source,
        decapsulator=await _end_of(node.host, store),
        tunnel_port=ports[0],
        sniffer_port=ports[1],
        delivery_port=sniffer[0],
        sniffer=sniffer[1],
    )


def _heard(node: Resource, session: Resource) -> AtDecapsulator | None:
    """Return what the node said last of the session."""
    observed: NodeObserved | None = node.observed
    if observed is None:
        return None
    last = observed.last or NodeLast(boot_id=observed.boot_id, status=observed.status)
    sessions = last.status.get("sessions")
    said = sessions.get(session.id) if isinstance(sessions, dict) else None
    return read_at_decapsulator(said, session.assigned.key, last.boot_id)
