"""What may be a network: range, gateway, addresses. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from pileus.kernel.errors import Invalid
from pileus.network.network.types import NetworkDesired

PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""RFC 1918."""


def parse_range(text: str) -> IPv4Network:
    """Return the range. Raises: Invalid unless it is a private IPv4 range from /8 to /30 without host bits."""
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is not a range such as 10.1.1.0/24: {error}", field="desired.range") from None
    private = any(network.subnet_of(each) for each in PRIVATE)
    if private and "/" not in text:
        suggested = IPv4Network(f"{text}/24", strict=False)
        raise Invalid(f"{text} has no prefix length; say {suggested}", field="desired.range")
    if not private or network.prefixlen > 30:
        raise Invalid(
            f"{network} is not a private range from /8 to /30; take one inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
            field="desired.range",
        )
    return network


def parse_address(text: str, network: IPv4Network, field: str) -> IPv4Address:
    """Return a host address of the network. Raises: Invalid for one outside, or that no host may have (RFC 1122)."""
    try:
        address = IPv4Address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an IPv4 address", field=field) from None
    if address not in network:
        raise Invalid(f"{address} is outside the network's range {network}", field=field)
    if address in (network.network_address, network.broadcast_address):
        raise Invalid(f"{address} is the network or broadcast address of {network}; choose another", field=field)
    return address


def offset(address: IPv4Address, network: IPv4Network) -> int:
    """Return the address as a number in the network's claim space, 1 for the first host."""
    return int(address) - int(network.network_address)


def host_range(network: IPv4Network) -> tuple[int, int]:
    """Return the lowest and highest offset that a host may have."""
    return 1, network.num_addresses - 2


def pool(desired: NetworkDesired) -> tuple[int, int]:
    """Return the lowest and highest offset that ports get.

    Raises: Invalid when ``first`` or ``last`` is no host's address of the range, or they are the wrong way round.
    """
    network = IPv4Network(desired.range)
    low, high = host_range(network)
    if desired.first:
        low = offset(parse_address(desired.first, network, "desired.first"), network)
    if desired.last:
        high = offset(parse_address(desired.last, network, "desired.last"), network)
    if low > high:
        raise Invalid(f"first {desired.first} is above last {desired.last or 'of the range'}", field="desired.first")
    return low, high
