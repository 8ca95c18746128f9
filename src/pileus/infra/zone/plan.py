"""The public addresses of a zone. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.errors import Invalid


class PublicPool(Struct, frozen=True, kw_only=True):
    """Public addresses that may be given out: numbers ``low`` to ``high`` from the network address."""

    network: IPv4Network
    gateway: IPv4Address
    low: int
    high: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.high - self.low + 1

    def number(self, address: IPv4Address) -> int:
        """Return the address as a number of the claim space."""
        return int(address) - int(self.network.network_address)

    def address(self, number: int) -> str:
        """Return the address with a number."""
        return str(self.network.network_address + number)

    def __str__(self) -> str:
        return f"{self.address(self.low)} to {self.address(self.high)}"


def public_pool(zone: ZoneDesired) -> PublicPool | None:
    """Return the zone's public addresses; None when it has no public range. Raises: Invalid naming the field."""
    if not zone.public_range:
        for word in ("public_gateway", "public_first", "public_last"):
            if getattr(zone, word):
                raise Invalid(f"{word} needs a public_range", field=f"desired.{word}")
        return None
    network = _network(zone.public_range)
    base, last_host = int(network.network_address), network.num_addresses - 2
    gateway = _address(zone.public_gateway, network, "public_gateway") or network.network_address + 1
    at = int(gateway) - base
    first = _address(zone.public_first, network, "public_first")
    last = _address(zone.public_last, network, "public_last")
    low = int(first) - base if first else (1 if at == last_host else at + 1)
    high = int(last) - base if last else (last_host - 1 if at == last_host else last_host)
    pool = PublicPool(network=network, gateway=gateway, low=low, high=high)
    if low > high:
        raise Invalid(
            f"the public addresses given out would be {pool}, which are none; say public_first and public_last",
            field="desired.public_first",
        )
    if low <= at <= high:
        raise Invalid(
            f"the public gateway {gateway} is among the addresses given out ({pool}); say public_first and public_last",
            field="desired.public_gateway",
        )
    return pool


def _network(text: str) -> IPv4Network:
    field = "desired.public_range"
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is not a range such as 203.0.113.0/24: {error}", field=field) from None
    if "/" not in text or not 8 <= network.prefixlen <= 30:
        raise Invalid(f"{text} is not a range from /8 to /30, such as 203.0.113.0/24", field=field)
    if network.is_loopback or network.is_multicast or network.is_link_local or network.network_address.is_unspecified:
        raise Invalid(f"{text} holds no addresses of hosts", field=field)
    return network


def _address(text: str, network: IPv4Network, word: str) -> IPv4Address | None:
    if not text:
        return None
    field = f"desired.{word}"
    try:
        address = IPv4Address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an IPv4 address", field=field) from None
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise Invalid(f"{address} is no address of a host in the public range {network}", field=field)
    return address
