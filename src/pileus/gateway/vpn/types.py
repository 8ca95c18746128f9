"""A VPN: guests' networks joined with single clients or with another site, by WireGuard."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.gateway.rules import Cidr, RuleObserved, rule_ready
from pileus.kernel.fields import AddressRef, VdcRef, VpnRef
from pileus.kernel.kind import NAME_PATTERN, Column, Kind

CLIENTS_MAX = 250
PublicKey = Annotated[str, Meta(max_length=44, description="WireGuard public key, as `wg pubkey` prints it.")]


class VpnClient(Struct, frozen=True, kw_only=True):
    """Somebody who may connect."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="Name of a client.")]
    public_key: PublicKey


class VpnOutside(Struct, frozen=True, kw_only=True):
    """A site that is no zone of this cloud."""

    public_key: PublicKey = ""
    ranges: Annotated[tuple[Cidr, ...], Meta(max_length=100, description="What is reached there, as CIDRs.")] = ()
    endpoint: Annotated[str, Meta(max_length=21, description="Its ADDRESS:PORT; empty: it calls.")] = ""


class VpnDesired(Struct, frozen=True, kw_only=True):
    """Who is joined with the networks of the vdc."""

    mode: Annotated[
        Literal["remote-access", "site"],
        Meta(description="remote-access: single clients; site: another VPN of the account, or a site outside."),
    ]
    range: Annotated[str, Meta(description="remote-access: private IPv4 range of the clients' addresses.")] = ""
    clients: Annotated[
        tuple[VpnClient, ...], Meta(max_length=CLIENTS_MAX, description="remote-access: who may connect.")
    ] = ()
    peer: Annotated[
        VpnRef, Meta(description="site: the account's VPN of another zone; one of the two names the other.")
    ] = ""
    outside: Annotated[VpnOutside | None, Meta(description="site: a site that is no zone of this cloud.")] = None
    address: Annotated[
        AddressRef, Meta(description="Public address of the account; empty: that of the account's router.")
    ] = ""
    port: Annotated[int, Meta(ge=0, le=65_535, description="UDP port; 0: one is chosen.")] = 0
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class VpnAssigned(Struct, frozen=True, kw_only=True):
    """The decisions, the private key among them; ``interface`` is its number on the router."""

    zone: str
    vdc: str
    private_key: str
    public_key: str
    interface: int
    port: int
    address: str = ""
    peer: str = ""
    clients: dict[str, str] = {}
    """Name of a client to its address."""


class VpnAccess(Struct, frozen=True, kw_only=True):
    """What a client puts into its own configuration, besides its private key and the server's part."""

    name: str
    address: str


class VpnObserved(RuleObserved, frozen=True, kw_only=True):
    """Whether it is in force, and what the other side must know."""

    public_key: str = ""
    endpoint: str = ""
    allowed: tuple[str, ...] = ()
    """Ranges that are reached through it from the other side: AllowedIPs there."""
    clients: tuple[VpnAccess, ...] = ()
    remotes: tuple[str, ...] = ()
    """Ranges of the other sides that guests reach through it."""


KIND = Kind(
    name="gateway.vpn",
    summary="Joins an account's networks with single clients or another site, by WireGuard.",
    desired=VpnDesired,
    assigned=VpnAssigned,
    observed=VpnObserved,
    ready=rule_ready,
    private=frozenset({"assigned"}),
    immutable=frozenset({"mode", "range", "address", "port", "vdc"}),
    columns=(
        Column("MODE", "desired.mode"),
        Column("ENDPOINT", "observed.endpoint"),
        Column("PEER", "desired.peer"),
        Column("STATE", "observed.state"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
