"""A link: a network stretched at layer 2 to a network of another zone."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.gateway.rules import RuleObserved, rule_ready
from pileus.kernel.fields import NetworkRef
from pileus.kernel.kind import Column, Kind


class LinkDesired(Struct, frozen=True, kw_only=True):
    """Two networks of the account with the same range, in two zones."""

    network: Annotated[NetworkRef, Meta(description="One of the two networks.")]
    peer_network: Annotated[NetworkRef, Meta(description="The other: same range, another zone, other addresses.")]


class LinkSide(Struct, frozen=True, kw_only=True):
    """One end: a tunnel of the zone's router; ``inner`` is its address in the tunnel."""

    zone: str
    vdc: str
    network: str
    private_key: str
    public_key: str
    interface: int
    port: int
    inner: str


class LinkAssigned(Struct, frozen=True, kw_only=True):
    """The decisions; the resource itself is in the zone of the near side."""

    zone: str
    vdc: str
    vni: int
    near: LinkSide
    far: LinkSide


class LinkObserved(RuleObserved, frozen=True, kw_only=True):
    """Whether it is in force on both sides."""


KIND = Kind(
    name="gateway.link",
    summary="A network stretched at layer 2 to a network of another zone.",
    desired=LinkDesired,
    assigned=LinkAssigned,
    observed=LinkObserved,
    ready=rule_ready,
    private=frozenset({"assigned"}),
    immutable=frozenset({"network", "peer_network"}),
    columns=(
        Column("NETWORK", "desired.network"),
        Column("PEER", "desired.peer_network"),
        Column("STATE", "observed.state"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
