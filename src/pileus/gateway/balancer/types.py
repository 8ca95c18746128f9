"""A balancer: one port of a public address, shared out over several VMs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.gateway.rules import RuleObserved, Sources, rule_ready
from pileus.kernel.fields import AddressRef, VmRef
from pileus.kernel.kind import Column, Kind

Port = Annotated[int, Meta(ge=0, le=65_535)]


class BalancerMember(Struct, frozen=True, kw_only=True):
    """A VM that takes part."""

    vm: Annotated[VmRef, Meta(description="A VM that takes part.")]
    port: Annotated[Port, Meta(description="Its port; 0: the balancer's own.")] = 0


class BalancerCheck(Struct, frozen=True, kw_only=True):
    """How a member is seen to be alive."""

    protocol: Annotated[
        Literal["tcp", "http"], Meta(description="tcp: it takes a connection; http: it answers a GET with 2xx or 3xx.")
    ] = "tcp"
    path: Annotated[
        str, Meta(pattern=r"^/[A-Za-z0-9._~/?=&%+-]{0,255}$(?!\n)", description="Path of the http check.")
    ] = "/"
    interval_ms: Annotated[int, Meta(ge=200, le=60_000, description="Time between two checks, in milliseconds.")] = 1000
    fall: Annotated[int, Meta(ge=1, le=10, description="Failures in a row after which it gets no more.")] = 2
    rise: Annotated[int, Meta(ge=1, le=10, description="Successes in a row after which it takes part again.")] = 2


class BalancerDesired(Struct, frozen=True, kw_only=True):
    """What is shared out, how, over whom."""

    port: Annotated[int, Meta(ge=1, le=65_535, description="Port that is reached from outside.")]
    members: Annotated[tuple[BalancerMember, ...], Meta(max_length=64, description="VMs that share the work.")] = ()
    protocol: Annotated[
        Literal["tcp", "http"], Meta(description="tcp: connections; http: requests, with X-Forwarded-For.")
    ] = "tcp"
    algorithm: Annotated[
        Literal["round-robin", "least-connections", "source"],
        Meta(description="round-robin: in turn; least-connections: the least busy; source: the same one for a client."),
    ] = "round-robin"
    address: Annotated[
        AddressRef, Meta(description="Public address of the account; empty: that of the account's router.")
    ] = ""
    check: Annotated[BalancerCheck, Meta(description="How a member is seen to be alive.")] = BalancerCheck()
    sources: Sources = ()


class BalancerAssigned(Struct, frozen=True, kw_only=True):
    """The ids of what the wish names, members in its order; ``address`` is empty for the router's own."""

    zone: str
    vdc: str
    members: tuple[str, ...]
    address: str = ""


class MemberHealth(Struct, frozen=True, kw_only=True):
    """A member as the balancer sees it."""

    vm: str
    address: str
    port: int
    health: Literal["up", "down", "unknown"]


class BalancerObserved(RuleObserved, frozen=True, kw_only=True):
    """Whether it is in force, where, and how its members are."""

    public_address: str = ""
    up: int = 0
    members: tuple[MemberHealth, ...] = ()


KIND = Kind(
    name="gateway.balancer",
    summary="A port of a public address, shared out over several VMs.",
    desired=BalancerDesired,
    assigned=BalancerAssigned,
    observed=BalancerObserved,
    ready=rule_ready,
    columns=(
        Column("PUBLIC", "observed.public_address"),
        Column("PROTOCOL", "desired.protocol"),
        Column("PORT", "desired.port"),
        Column("ALGORITHM", "desired.algorithm", wide=True),
        Column("UP", "observed.up"),
        Column("STATE", "observed.state"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
