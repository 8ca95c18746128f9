"""The document of a router (see ``pileus.node.router``), from what ``view`` found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from pileus.gateway.address.plan import entry as address_entry
from pileus.gateway.balancer.plan import entries as balancer_entries
from pileus.gateway.facts import Facts, Guest, NetworkFacts, united
from pileus.gateway.firewall.plan import entries as firewall_entries
from pileus.gateway.forward.plan import entries as forward_entries
from pileus.gateway.link.plan import entries as link_entries
from pileus.gateway.link.plan import sides
from pileus.gateway.router.types import RouterAssigned
from pileus.gateway.vpn.plan import entries as vpn_entries
from pileus.kernel.kind import Resource
from pileus.network.port.types import PortStation
from pileus.node.document import Document

RULES: Mapping[str, Callable[[Resource, Facts], Document]] = {
    "gateway.forward": forward_entries,
    "gateway.balancer": balancer_entries,
    "gateway.firewall": firewall_entries,
    "gateway.vpn": vpn_entries,
    "gateway.link": link_entries,
}
"""The kinds that put entries into a router's document."""


class RouterView(Struct, frozen=True, kw_only=True):
    """All that decides about the document of one router; nothing in it is being deleted."""

    router: Resource
    facts: Facts
    """With all guests of the zone."""
    resolvers: tuple[str, ...] = ()
    rules: tuple[Resource, ...] = ()
    """Everything of a kind in ``RULES`` that concerns the router, links of both sides included."""
    addresses: tuple[Resource, ...] = ()
    """The account's ``gateway.address``es of the zone."""
    far_guests: Mapping[str, tuple[Guest, ...]] = {}
    """Network of this router to the guests of the networks that it is stretched to."""


class Pair(Struct, frozen=True, kw_only=True):
    """A node's part in a redundant pair, by VRRP over the guest link; ``own`` is a link-local CIDR.

    ``yields``: it hands the addresses over, because it will be replaced.
    """

    router_id: int
    priority: int
    own: str
    peer: str
    yields: bool = False


def document(view: RouterView) -> Document:
    """Return what both nodes of a router share: all sections but ``node``, ``links`` and ``redundancy``."""
    return united([_base(view), *(RULES[rule.kind](rule, view.facts) for rule in view.rules)])


def with_links(document: Document, hostname: str, guest_mac: str, public_mac: str = "") -> Document:
    """Return the document of one node: its name, and its NICs by their MACs."""
    links = {"guest": {"mac": guest_mac}} | ({"public": {"mac": public_mac}} if public_mac else {})
    return {**document, "node": {"self": {"hostname": hostname}}, "links": links}


def with_pair(document: Document, pair: Pair) -> Document:
    """Return the document of one node of a redundant pair."""
    entry = asdict(pair)
    return {**document, "redundancy": {"pair": entry}}


def guest_addresses(view: RouterView) -> tuple[str, ...]:
    """Return the addresses that a node may use on its guest link, its own of a pair apart."""
    return tuple(network.gateway for network in view.facts.here.networks)


def public_addresses(view: RouterView) -> tuple[str, ...]:
    """Return the addresses that a node may use on its public link, the router's own first."""
    own: RouterAssigned = view.router.assigned
    held = tuple(each.assigned.address for each in view.addresses)
    return (own.public_address, *held) if own.public_address else held


def stations(view: RouterView) -> tuple[PortStation, ...]:
    """Return the machines of other zones that speak through the guest link: the guests of stretched networks."""
    return tuple(
        PortStation(mac=nic.mac, addresses=(nic.address, *nic.extra_addresses))
        for guests in view.far_guests.values()
        for guest in guests
        for nic in guest.nics
    )


def far_routers(view: RouterView) -> tuple[str, ...]:
    """Return the account's routers in other zones whose documents or ports depend on this one's guests and networks."""
    here = view.facts.zone
    zones = {
        other.assigned.zone for rule in view.rules if rule.kind == "gateway.vpn" for other in view.facts.joined(rule)
    }
    for rule in view.rules:
        ends = sides(rule, here) if rule.kind == "gateway.link" else None
        zones |= {ends[1].zone} if ends else set()
    return tuple(sorted(place.router for zone in zones - {here} if (place := view.facts.place(zone)).router))


def _base(view: RouterView) -> Document:
    assigned: RouterAssigned = view.router.assigned
    shared = assigned.redundancy == "redundant"
    here = view.facts.here
    addresses: dict[str, Any] = {
        network.gateway: {"link": "guest", "prefix": _prefix(network), "shared": shared} for network in here.networks
    }
    source = {}
    if assigned.public_address:
        addresses[assigned.public_address] = {
            "link": "public",
            "prefix": assigned.public_prefix,
            "gateway": assigned.public_gateway,
            "shared": shared,
        }
        source = {"source": {"address": assigned.public_address}}
    for held in view.addresses:
        addresses |= address_entry(held.assigned, shared=shared)
    return {
        "addresses": addresses,
        "networks": {network.id: _network(network, view.router.account) for network in here.networks},
        "resolvers": {address: {} for address in view.resolvers},
        "hosts": _hosts(view.facts),
        "nat": source,
    }


def _network(network: NetworkFacts, account: str) -> dict[str, Any]:
    return {
        "range": network.range,
        "gateway": network.gateway,
        "domain": f"{network.name}.{account}.internal",
        "dns": list(network.dns),
    }


def _hosts(facts: Facts) -> dict[str, dict[str, Any]]:
    served = {network.id for network in facts.here.networks}
    return {
        nic.mac: {"network": nic.network, "address": nic.address, "names": [guest.name]}
        for guest in facts.guests.values()
        for nic in guest.nics
        if nic.network in served
    }


def _prefix(network: NetworkFacts) -> int:
    return int(network.range.partition("/")[2])
