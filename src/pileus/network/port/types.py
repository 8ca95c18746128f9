"""A port: where a NIC of a VM meets the switch. Made with the VM, never by hand."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import NetworkRef, Problem
from pileus.kernel.kind import Column, Kind, Resource

Attachment = Literal["network", "gateway", "public", "mirror"]
"""``network``: a guest's place in a network. ``gateway``: an appliance's in all networks of the account in the zone.
``public``: an appliance's in the zone's public segment. ``mirror``: an appliance's in none; its host's mirror uses it."""


class PortStation(Struct, frozen=True, kw_only=True):
    """A machine of another site that speaks through this port."""

    mac: str
    addresses: tuple[str, ...]


class PortDesired(Struct, frozen=True, kw_only=True):
    """The network and the addresses that the VM asked for."""

    network: Annotated[NetworkRef, Meta(description="The network it is on; empty for an appliance's port.")] = ""
    attachment: Annotated[Attachment, Meta(description="What the port is a place in.")] = "network"
    addresses: Annotated[
        tuple[str, ...], Meta(description="An appliance's port: every address it may use, claimed by who made it.")
    ] = ()
    stations: Annotated[
        tuple[PortStation, ...], Meta(description="An appliance's port: machines of other sites that speak through it.")
    ] = ()
    address: Annotated[str, Meta(description="IPv4 address; empty: the next free one.")] = ""
    extra_addresses: Annotated[tuple[str, ...], Meta(description="Further addresses of the same NIC.")] = ()
    rate_limit_kbps: Annotated[int, Meta(ge=0, description="Limit each way in kilobits per second; 0: none.")] = 0
    isolated: Annotated[
        Literal["no", "yes"], Meta(description="yes: nothing passes the NIC in either direction; follows the VM's.")
    ] = "no"


class PortAssigned(Struct, frozen=True, kw_only=True):
    """Everything the switch and the guest need to know. An appliance's port has no network and no ``address``.

    ``vlan`` 0 is the zone's public segment, 4095 none at all.
    """

    zone: str
    vdc: str
    network: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    vlan: int
    extra_addresses: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    served: Literal["yes", "no"] = "no"
    """Whether the network has a router, which gives the guest its addresses by DHCP."""
    host: str = ""


class PortObserved(Struct, frozen=True, kw_only=True):
    """What the host's switch has."""

    state: Literal["absent", "plugged"]
    tap: str = ""
    isolated: Literal["no", "yes"] = "no"
    problem: Problem | None = None


PUBLIC_VLAN = 0
"""In place of a VLAN: the zone's public segment."""

APART = 4095
"""In place of a VLAN: of none, as of a mirror's ports. No guest can have it: 802.1Q reserves 4095."""

MAC_SPACE = "mac"
"""Claim space of all MAC addresses of the cluster; numbers are the low 32 bits."""


def mac_of(number: int) -> str:
    """Return the locally administered MAC (IEEE 802: bit 1 of octet 0) with this number, 0 <= number < 2**32."""
    low = number.to_bytes(4, "big")
    return ":".join(f"{octet:02x}" for octet in (0x02, 0x50, *low))


def _ready(resource: Resource) -> Condition:
    observed: PortObserved | None = resource.observed
    if resource.assigned is None:
        return unready("Deciding", "no decision yet")
    if observed is None:
        return unready("Plugging", "its host has not plugged it yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state != "plugged":
        return unready("Plugging", f"the port is {observed.state}")
    desired: PortDesired = resource.desired
    if observed.isolated != desired.isolated:
        return unready(
            "Plugging", "its host has not isolated it yet" if desired.isolated == "yes" else "it is isolated"
        )
    return ready("Isolated", "nothing passes it in either direction") if desired.isolated == "yes" else ready()


KIND = Kind(
    name="network.port",
    summary="The place where a NIC of a VM meets the switch.",
    desired=PortDesired,
    assigned=PortAssigned,
    observed=PortObserved,
    ready=_ready,
    host_bound=True,
    created_by="kernel",
    columns=(
        Column("ADDRESS", "assigned.address"),
        Column("MAC", "assigned.mac"),
        Column("STATE", "observed.state"),
        Column("VM", "owner", ref="compute.vm"),
        Column("VLAN", "assigned.vlan", wide=True),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
