"""What the entries of a router's document are made from, besides the wish itself. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from msgspec import Struct

from pileus.gateway.vpn.types import VpnAssigned
from pileus.kernel.kind import Resource
from pileus.node.document import Document


class Nic(Struct, frozen=True, kw_only=True):
    """A guest's place in a network."""

    network: str
    mac: str
    address: str
    extra_addresses: tuple[str, ...] = ()


class Guest(Struct, frozen=True, kw_only=True):
    """A VM with the NICs that have an address, in the guest's order."""

    id: str
    name: str
    nics: tuple[Nic, ...] = ()

    def address_in(self, network: str) -> str:
        """Return its address in a network, or in its first for ""; empty: it has none yet."""
        return next((nic.address for nic in self.nics if network in ("", nic.network)), "")


class NetworkFacts(Struct, frozen=True, kw_only=True):
    """A network that a router serves."""

    id: str
    name: str
    range: str
    gateway: str
    dns: tuple[str, ...] = ()


class Place(Struct, frozen=True, kw_only=True):
    """What an account has in a zone. ``public_address`` is empty while the router is idle."""

    zone: str
    router: str = ""
    public_address: str = ""
    networks: tuple[NetworkFacts, ...] = ()


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of an account, seen from one zone."""

    zone: str
    places: Mapping[str, Place] = {}
    addresses: Mapping[str, str] = {}
    """Id of a ``gateway.address`` to the address; of all zones."""
    guests: Mapping[str, Guest] = {}
    """VMs of the zone by id; those that were asked for."""
    vpns: Mapping[str, Resource] = {}
    """VPNs of the account in all zones, by id."""

    @property
    def here(self) -> Place:
        """The zone itself."""
        return self.place(self.zone)

    def place(self, zone: str) -> Place:
        """Return what the account has in a zone."""
        return self.places.get(zone) or Place(zone=zone)

    def public(self, zone: str, address: str) -> str:
        """Return the address with this id, or that of the zone's router for ""; empty: there is none now."""
        return self.addresses.get(address, "") if address else self.place(zone).public_address

    def joined(self, vpn: Resource) -> list[Resource]:
        """Return the site VPNs that ``vpn`` names or that name it, in the order of their ids."""
        own: VpnAssigned = vpn.assigned
        others = (each for each in self.vpns.values() if each.id != vpn.id and not each.deleting)
        return sorted((each for each in others if vpn.id == each.assigned.peer or own.peer == each.id), key=_id)


def _id(resource: Resource) -> str:
    return resource.id


def cidrs(texts: Iterable[str]) -> list[str]:
    """Return ranges as the document has them: an address alone is a range of one."""
    return [_cidr(text) for text in texts]


@functools.lru_cache(8192)
def _cidr(text: str) -> str:
    return str(IPv4Network(text))


def united(documents: Iterable[Document]) -> Document:
    """Return one document with the entries of all."""
    result: Document = {}
    for document in documents:
        for section, entries in document.items():
            result.setdefault(section, {}).update(entries)
    return result
