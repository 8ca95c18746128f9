"""A filter: which packets a mirror session takes. By an expression, or by rules in order."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource
from pileus.node.mirror.rules import RULES_MAX

Port = Annotated[int, Meta(ge=0, le=65_535)]
Protocol = Annotated[
    str, Meta(description="any, tcp, udp, sctp, icmp, icmp6, arp, or an IP protocol number such as 47.", max_length=8)
]


class MirrorRule(Struct, frozen=True, kw_only=True):
    """All that is said must fit; the first rule that fits decides."""

    action: Literal["accept", "reject"] = "accept"
    direction: Annotated[
        Literal["ingress", "egress", "both"], Meta(description="As the VM sees it: ingress is what it receives.")
    ] = "both"
    protocol: Protocol = "any"
    source: Annotated[str, Meta(description="IPv4 or IPv6 range; empty: any.", max_length=64)] = ""
    destination: Annotated[str, Meta(description="IPv4 or IPv6 range; empty: any.", max_length=64)] = ""
    source_port_first: Annotated[Port, Meta(description="First source port; 0: any.")] = 0
    source_port_last: Annotated[Port, Meta(description="Last source port; 0: the one port.")] = 0
    port_first: Annotated[Port, Meta(description="First destination port; 0: any.")] = 0
    port_last: Annotated[Port, Meta(description="Last destination port; 0: the one port.")] = 0


class FilterDesired(Struct, frozen=True, kw_only=True):
    """Either an expression or rules. What no rule accepts is not taken."""

    expression: Annotated[
        str, Meta(max_length=2000, description="As tcpdump has it, such as 'tcp port 443 and host 10.1.1.5'.")
    ] = ""
    rules: Annotated[tuple[MirrorRule, ...], Meta(max_length=RULES_MAX, description="Rules, in their order.")] = ()


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="mirror.filter",
    summary="Which packets mirror sessions take: an expression as of tcpdump, or rules in order.",
    desired=FilterDesired,
    ready=_ready,
    columns=(Column("EXPRESSION", "desired.expression"),),
)
