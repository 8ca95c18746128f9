"""A firewall: rules in order, for what passes an account's router."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.gateway.rules import Cidr, RuleObserved, rule_ready
from pileus.kernel.fields import NetworkRef, VdcRef
from pileus.kernel.kind import Column, Kind

RULES_MAX = 1000
Cidrs = Annotated[tuple[Cidr, ...], Meta(max_length=100)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class FirewallRule(Struct, frozen=True, kw_only=True):
    """The first rule that fits a connection decides about it."""

    direction: Annotated[
        Literal["ingress", "egress"], Meta(description="ingress: opened from outside; egress: opened by a guest.")
    ]
    action: Annotated[Literal["accept", "drop"], Meta(description="What becomes of it.")]
    protocol: Annotated[Literal["any", "tcp", "udp", "icmp"], Meta(description="Protocol; any: all.")] = "any"
    remotes: Annotated[Cidrs, Meta(description="The outer ends, as CIDRs; empty: any.")] = ()
    locals: Annotated[Cidrs, Meta(description="The guests, as CIDRs; empty: any.")] = ()
    port_first: Annotated[Port, Meta(description="Lowest destination port; 0: any.")] = 0
    port_last: Annotated[Port, Meta(description="Highest destination port; 0: only the lowest.")] = 0
    description: Annotated[str, Meta(max_length=200, description="For people.")] = ""


class FirewallDesired(Struct, frozen=True, kw_only=True):
    """Rules in their order. Several firewalls of a router are judged in the order of their names."""

    network: Annotated[NetworkRef, Meta(description="Network whose guests it is about; empty: all of the vdc.")] = ""
    rules: Annotated[tuple[FirewallRule, ...], Meta(max_length=RULES_MAX, description="Rules, first to last.")] = ()
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the network's, else the only one.")] = ""


class FirewallAssigned(Struct, frozen=True, kw_only=True):
    """The ids of what the wish names."""

    zone: str
    vdc: str
    network: str = ""


class FirewallObserved(RuleObserved, frozen=True, kw_only=True):
    """Whether it is in force."""

    rules: int = 0


KIND = Kind(
    name="gateway.firewall",
    summary="Rules for what passes an account's router.",
    desired=FirewallDesired,
    assigned=FirewallAssigned,
    observed=FirewallObserved,
    ready=rule_ready,
    immutable=frozenset({"vdc"}),
    columns=(
        Column("NETWORK", "desired.network"),
        Column("RULES", "observed.rules"),
        Column("STATE", "observed.state"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
