"""Which addresses are of the public internet, as far as an address itself tells."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052 2.1: the last 32 bits are an IPv4 address, which may be a private one."""

_CLOUDS_OWN = frozenset({ip_address("168.63.129.16")})
"""Public by its number, and yet what gives a machine of another cloud its secrets (Azure's WireServer)."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether the address is of the public internet, and so is what it carries inside.

    Not public: loopback, link-local (and with it clouds' metadata), private, shared, reserved, multicast.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and address not in _CLOUDS_OWN
