"""A forward: ports of a public address that lead to a VM."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.gateway.rules import Protocol, RuleObserved, Sources, rule_ready
from pileus.kernel.fields import AddressRef, NetworkRef, VmRef
from pileus.kernel.kind import Column, Kind

PORTS_MAX = 1000
"""Ports of one forward: each is claimed by itself."""


class ForwardDesired(Struct, frozen=True, kw_only=True):
    """From where to where."""

    vm: Annotated[VmRef, Meta(description="The VM that gets the traffic.")]
    port: Annotated[int, Meta(ge=1, le=65_535, description="Port that is reached from outside.")]
    port_last: Annotated[
        int, Meta(ge=0, le=65_535, description=f"Last port of a range of up to {PORTS_MAX}; 0: the one port.")
    ] = 0
    protocol: Annotated[Protocol, Meta(description="tcp or udp.")] = "tcp"
    vm_port: Annotated[
        int, Meta(ge=0, le=65_535, description="Port of the VM, the first of a range; 0: the same as outside.")
    ] = 0
    address: Annotated[
        AddressRef, Meta(description="Public address of the account; empty: that of the account's router.")
    ] = ""
    network: Annotated[
        NetworkRef, Meta(description="Network in which the VM is reached; empty: that of its first NIC.")
    ] = ""
    sources: Sources = ()


class ForwardAssigned(Struct, frozen=True, kw_only=True):
    """The ids of what the wish names; ``address`` is empty for the router's own."""

    zone: str
    vdc: str
    vm: str
    network: str = ""
    address: str = ""


class ForwardObserved(RuleObserved, frozen=True, kw_only=True):
    """Whether it is in force, and where."""

    public_address: str = ""
    to_address: str = ""


KIND = Kind(
    name="gateway.forward",
    summary="Ports of a public address that lead to a VM.",
    desired=ForwardDesired,
    assigned=ForwardAssigned,
    observed=ForwardObserved,
    ready=rule_ready,
    immutable=frozenset({"vm"}),
    columns=(
        Column("PUBLIC", "observed.public_address"),
        Column("PROTOCOL", "desired.protocol"),
        Column("PORT", "desired.port"),
        Column("VM", "desired.vm"),
        Column("VM_PORT", "desired.vm_port", wide=True),
        Column("STATE", "observed.state"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
