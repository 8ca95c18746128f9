"""The public addresses of a zone. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.errors import Invalid


class PublicPool(Struct, frozen=True, kw_only=True):
    """What may be given out: offsets ``low`` to ``high`` of ``network``, but for that of the gateway."""

    network: IPv4Network
    gateway: IPv4Address
    low: int
    high: int

    def address(self, number: int) -> str:
        """Return the address at an offset."""
        return str(self.network.network_address + number)

    def number(self, address: IPv4Address) -> int:
        """Return the offset of an address."""
        return int(address) - int(self.network.network_address)


def public_pool(zone: ZoneDesired) -> PublicPool | None:
    """Return the zone's pool of public addresses; None when it has none. Raises: Invalid, naming the field.

    The gateway is the first or the last of the range, or lies outside first to last.
    """
    if not zone.public_range:
        return None
    try:
        network = IPv4Network(zone.public_range)
    except ValueError as error:
        raise Invalid(f"{zone.public_range!r} is not a range: {error}", field="desired.public_range") from None
    if network.prefixlen > 30:
        raise Invalid(f"{network} has no room for a gateway and an address", field="desired.public_range")
    hosts = (network.network_address + 1, network.broadcast_address - 1)
    gateway = _address(zone.public_gateway, network, "public_gateway") or hosts[0]
    first = _address(zone.public_first, network, "public_first") or hosts[0] + (gateway == hosts[0])
    last = _address(zone.public_last, network, "public_last") or hosts[1] - (gateway == hosts[1])
    if first > last:
        raise Invalid(f"public_first {first} is above public_last {last}", field="desired.public_first")
    if first <= gateway <= last:
        message = f"the gateway {gateway} lies among the addresses given out, {first} to {last}; say others"
        raise Invalid(message, field="desired.public_gateway")
    base = int(network.network_address)
    return PublicPool(network=network, gateway=gateway, low=int(first) - base, high=int(last) - base)


def _address(text: str, network: IPv4Network, field: str) -> IPv4Address | None:
    if not text:
        return None
    try:
        address = IPv4Address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an IPv4 address", field=f"desired.{field}") from None
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise Invalid(f"{address} is no host address of {network}", field=f"desired.{field}")
    return address
