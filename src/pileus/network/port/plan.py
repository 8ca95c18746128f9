"""Addresses of a port as numbers of its network's claim space. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from pileus.network.port.types import PortDesired


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
