"""Which packets a mirror session takes: rules, and the one place that says in Python what they mean.

The eBPF programs of the host are compiled from the same rules and are tested against ``decide``.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal

Direction = Literal["ingress", "egress"]
"""As the VM sees it: ``ingress`` is what it receives."""

PORT_MAX = 65_535
RULES_MAX = 64
"""Of one session."""

SESSIONS_PER_PORT_MAX = 8

SNAP_BYTES_MIN = 64
"""The kernel cuts nothing off a packet's headers up to those of TCP or UDP: 54 bytes with IPv6."""

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
WITH_PORTS = (6, 17, 132)
"""TCP, UDP and SCTP: their first four bytes are the ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """All that is said must fit. A rule that says an address, a protocol number or ports fits no frame without them.

    ``protocol``: IP protocol number, or ``arp``; None: any frame. ``family``: IP version; 0: either, or none.
    ``source``, ``destination``: CIDR text; "": any. Ports are of TCP, UDP or SCTP, both ends included; (0, 65535): any,
    also none. Fragments but the first have no ports; what follows an IPv6 extension header is not looked at.
    """

    action: Literal["accept", "reject"] = "accept"
    direction: Literal["ingress", "egress", "both"] = "both"
    family: Literal[0, 4, 6] = 0
    protocol: int | Literal["arp"] | None = None
    source: str = ""
    destination: str = ""
    source_ports: tuple[int, int] = (0, PORT_MAX)
    destination_ports: tuple[int, int] = (0, PORT_MAX)


Network = IPv4Network | IPv6Network


class BadRules(ValueError):
    """Rules that cannot be obeyed; the text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """What of a frame rules and sampling look at. ``family`` 0: no whole IP header follows its ethertype.

    Only the frame's own bytes count: what its headers say about lengths is not looked at.
    """

    ethertype: int
    family: Literal[0, 4, 6] = 0
    protocol: int = 0
    source: bytes = b""
    destination: bytes = b""
    ports: tuple[int, int] | None = None
    is_fragment: bool = False


def networks(rule: Rule) -> tuple[Network | None, Network | None]:
    """Return source and destination of a rule; None: any. Raises BadRules for what is no range of addresses."""
    return _network(rule.source), _network(rule.destination)


def check(rules: tuple[Rule, ...]) -> None:
    """Raise BadRules for rules that nobody could have meant."""
    if len(rules) > RULES_MAX:
        raise BadRules(f"{len(rules)} rules are too many; a session can have {RULES_MAX}")
    for number, rule in enumerate(rules, 1):
        for low, high in (rule.source_ports, rule.destination_ports):
            if not 0 <= low <= high <= PORT_MAX:
                raise BadRules(f"rule {number}: {low}-{high} is no range of ports")
        if isinstance(rule.protocol, int) and not 0 <= rule.protocol <= 255:
            raise BadRules(f"rule {number}: there is no IP protocol {rule.protocol}")
        networks(rule)


def decide(rules: tuple[Rule, ...], frame: bytes, direction: Direction) -> bool:
    """Return whether a session with these rules takes the frame."""
    headers = parse(frame)
    for rule in rules:
        if _fits(rule, headers, direction):
            return rule.action == "accept"
    return not rules


def parse(frame: bytes) -> Headers:
    """Return the headers of an Ethernet frame; never raises."""
    ethertype = int.from_bytes(frame[12:14].ljust(2, b"\0"), "big")
    if ethertype == IPV4 and len(frame) >= 34 and frame[14] >> 4 == 4 and frame[14] & 15 >= 5:
        return _ipv4(frame)
    if ethertype == IPV6 and len(frame) >= 54 and frame[14] >> 4 == 6:
        source, destination, protocol = frame[22:38], frame[38:54], frame[20]
        ports = _ports(frame, 54) if protocol in WITH_PORTS else None
        return Headers(
            ethertype=IPV6, family=6, protocol=protocol, source=source, destination=destination, ports=ports
        )  # fmt: skip
    return Headers(ethertype=ethertype)


def flow_hash(frame: bytes) -> int:
    """Return 32 bits that are equal for both directions of a flow.

    Of a fragment the ports do not count, so that all fragments of a packet are taken or none; what is not IP is told apart by
    its ethertype alone.
    """
    headers = parse(frame)
    words = headers.source + headers.destination
    mixed = headers.ethertype if not headers.family else 0
    for at in range(0, len(words), 4):
        mixed ^= int.from_bytes(words[at : at + 4], "big")
    ports = headers.ports if headers.ports and not headers.is_fragment else (0, 0)
    return scramble(mixed, (ports[0] ^ ports[1]) | headers.protocol << 16)


MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
"""Odd, so that nothing is lost by them; the last two are those of MurmurHash3's finalizer."""


def scramble(addresses: int, rest: int) -> int:
    """Return 32 bits of which each depends on all bits of both numbers (32 bits)."""
    value = addresses * MULTIPLIERS[0] & 0xFFFFFFFF
    value = ((value ^ value >> 15) ^ rest) * MULTIPLIERS[1] & 0xFFFFFFFF
    value = (value ^ value >> 13) * MULTIPLIERS[2] & 0xFFFFFFFF
    return value ^ value >> 16


def threshold(one_in: int) -> int:
    """Return below what a 32-bit number is sampled; ``one_in`` > 1."""
    return (1 << 32) // one_in


def samples_flow(frame: bytes, one_in: int) -> bool:
    """Return whether per-flow sampling of one flow in so many takes the frame."""
    return one_in <= 1 or flow_hash(frame) < threshold(one_in)


def _network(text: str) -> Network | None:
    try:
        return ip_network(text) if text else None
    except ValueError as exc:
        raise BadRules(str(exc)) from None


def _fits(rule: Rule, headers: Headers, direction: Direction) -> bool:
    if rule.direction not in ("both", direction) or rule.family not in (0, headers.family):
        return False
    if rule.protocol == "arp":
        if headers.ethertype != ARP:
            return False
    elif rule.protocol is not None and (not headers.family or rule.protocol != headers.protocol):
        return False
    source, destination = networks(rule)
    if not (_holds(source, headers.source) and _holds(destination, headers.destination)):
        return False
    return _within(rule.source_ports, headers.ports, 0) and _within(rule.destination_ports, headers.ports, 1)


def _holds(network: Network | None, address: bytes) -> bool:
    if network is None:
        return True
    if len(address) * 8 != network.max_prefixlen:
        return False
    return int.from_bytes(address, "big") & int(network.netmask) == int(network.network_address)


def _within(wanted: tuple[int, int], ports: tuple[int, int] | None, which: int) -> bool:
    if wanted == (0, PORT_MAX):
        return True
    return ports is not None and wanted[0] <= ports[which] <= wanted[1]


def _ipv4(frame: bytes) -> Headers:
    fragment = int.from_bytes(frame[20:22], "big") & 0x3FFF
    protocol = frame[23]
    has_ports = protocol in WITH_PORTS and not fragment & 0x1FFF
    return Headers(
        ethertype=IPV4,
        family=4,
        protocol=protocol,
        source=frame[26:30],
        destination=frame[30:34],
        ports=_ports(frame, 14 + 4 * (frame[14] & 15)) if has_ports else None,
        is_fragment=bool(fragment),
    )


def _ports(frame: bytes, at: int) -> tuple[int, int] | None:
    if len(frame) < at + 4:
        return None
    return int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")
