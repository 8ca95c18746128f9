"""Which packets a mirror session takes: rules, and the one place that says in Python what they mean.

The eBPF programs of the host are compiled from the same rules and are tested against ``decide``.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Direction = Literal["ingress", "egress"]
"""As the VM sees it: ``ingress`` is what it receives."""

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """All that is said must fit. A rule that says an address, a protocol number or ports fits no frame without them.

    ``protocol``: IP protocol number, or ``arp``; None: any frame. ``family``: IP version; 0: either, or none.
    ``source``, ``destination``: CIDR text; "": any. Ports are of TCP, UDP or SCTP, both ends included; (0, 65535): any, also none.
    Fragments but the first have no ports; what follows an IPv6 extension header is not looked at.
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


def decide(rules: tuple[Rule, ...], frame: bytes, direction: Direction) -> bool:
    """Return whether a session with these rules takes the frame."""
    raise NotImplementedError
