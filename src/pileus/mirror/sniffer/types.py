"""A sniffer: a NIC of one of the account's VMs that gets mirrored packets, as they were."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import VmRef
from pileus.kernel.kind import Column, Kind, Resource

NicNumber = Annotated[int, Meta(ge=0, le=7)]


class SnifferDesired(Struct, frozen=True, kw_only=True):
    """Where packets go. A NIC of its own keeps them apart from the VM's own traffic."""

    vm: Annotated[VmRef, Meta(description="The VM that gets the packets.")]
    nic: Annotated[NicNumber, Meta(description="Which of its NICs, in their order; 0 is the first.")] = 0


class SnifferAssigned(Struct, frozen=True, kw_only=True):
    """The VM, and where it is."""

    vm: str
    zone: str
    vdc: str


def sniffer_space() -> str:
    """Return the claim space of NICs that are sniffers: value ``vm/nic``, owner the sniffer."""
    return "mirror/sniffer"


def source_space(vm: str, nic: int) -> str:
    """Return the claim space of the sessions that copy from a NIC."""
    return f"mirror/source/{vm}/{nic}"


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="mirror.sniffer",
    summary="A NIC of a VM that gets mirrored packets, for tcpdump, Zeek or Suricata.",
    desired=SnifferDesired,
    assigned=SnifferAssigned,
    ready=_ready,
    immutable=frozenset({"vm", "nic"}),
    columns=(
        Column("VM", "desired.vm"),
        Column("NIC", "desired.nic"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
