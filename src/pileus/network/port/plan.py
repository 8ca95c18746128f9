"""Addresses of a port as numbers of its network's claim space, and what it follows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from msgspec.structs import replace

from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.kind import Resource
from pileus.network.network.types import NetworkDesired
from pileus.network.port.types import PortAssigned, PortDesired


def host_numbers(range_: str, addresses: Iterable[str]) -> list[int]:
    """Return the offsets of addresses from the network address of ``range_``."""
    base = int(IPv4Network(range_).network_address)
    return [int(IPv4Address(address)) - base for address in addresses]


def numbered(range_: str, number: int) -> str:
    """Return the address at an offset."""
    return str(IPv4Network(range_).network_address + number)


def wished_numbers(range_: str, desired: PortDesired) -> list[int]:
    """Return the offsets that the port asks for, its own address first."""
    wished = (desired.address, *desired.extra_addresses) if desired.address else desired.extra_addresses
    return host_numbers(range_, wished)


def served(network: Resource) -> Literal["yes", "no"]:
    """Return whether a router gives the network's guests their addresses."""
    return "no" if network.assigned.router == "none" else "yes"


def guest_dns(network: Resource, zone: Resource) -> tuple[str, ...]:
    """Return the name servers that guests are told: their router, which asks those of the network or zone."""
    if served(network) == "yes":
        return (network.assigned.gateway,)
    range_: NetworkDesired = network.desired
    place: ZoneDesired = zone.desired
    return range_.dns or place.dns


def followed(assigned: PortAssigned, desired: PortDesired, network: Resource | None, zone: Resource) -> PortAssigned:
    """Return the decision as it follows what may change: the router of its network, or the addresses of an appliance."""
    if network is None:
        return replace(assigned, extra_addresses=desired.addresses)
    return replace(assigned, dns=guest_dns(network, zone), served=served(network))
