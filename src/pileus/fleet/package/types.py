"""A package: what nodes are made of, one immutable version. Its OVF descriptor says how big; its image is the disk."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.fleet.manager.types import Word
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import ImageRef, ManagerRef
from pileus.kernel.kind import Column, Kind, Resource

ChannelForm = Literal["serial", "nic", "qga"]
DESCRIPTOR_CHARACTERS_MAX = 262_144

Path = Annotated[str, Meta(max_length=500, pattern=r"^/[^\x00-\x1f]*$(?!\n)")]


ValueKind = Literal["word", "number", "address", "text"]
"""``word``: letters, digits and ``._-``. ``number``: up to 18 digits. ``address``: an IP address or network. ``text``: up to
1000 printable characters, the first no ``-``."""


class PackageCommand(Struct, frozen=True, kw_only=True):
    """A program that requests may run, without a shell: ``{name}`` in an argument is a value of the request.

    A ``repeatable`` one does no harm when it runs twice: only these run again after a guest that died in the middle.
    """

    name: Annotated[Word, Meta(description="Name by which requests run the command.")]
    path: Annotated[Path, Meta(description="The program.")]
    arguments: Annotated[
        tuple[str, ...], Meta(max_length=64, description="Its arguments; a word in braces is a value of the request.")
    ] = ()
    values: Annotated[dict[str, ValueKind], Meta(description="What each value of a request must be.")] = {}
    timeout_s: Annotated[int, Meta(ge=1, le=3600, description="Seconds after which it is ended.")] = 60
    repeatable: Annotated[bool, Meta(description="Whether it does no harm when it runs twice.")] = False


class PackageGuestAgent(Struct, frozen=True, kw_only=True):
    """What may be done in a foreign appliance through its QEMU guest agent, and nothing else."""

    commands: Annotated[tuple[PackageCommand, ...], Meta(max_length=64, description="What requests may run.")] = ()
    files: Annotated[tuple[Path, ...], Meta(max_length=64, description="What requests may write whole.")] = ()
    document: Annotated[str, Meta(max_length=500, description="File that has the node's document, as JSON.")] = ""
    apply: Annotated[str, Meta(description="Repeatable command that is run when the document changed.")] = ""
    state: Annotated[str, Meta(description="Folder in the guest, kept over reboots, for notes of what was done.")] = (
        "/var/lib/pileus-fleet"
    )


class PackageDesired(Struct, frozen=True, kw_only=True):
    """One version of what a manager's nodes are made of."""

    manager: Annotated[ManagerRef, Meta(description="The manager whose nodes it is for.")]
    version: Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~-]{0,62}$(?!\n)", description="Such as 1.4.2.")]
    image: Annotated[ImageRef, Meta(description="Disk of the appliance; empty: for VMs that are there already.")] = ""
    role: Annotated[
        str, Meta(pattern=r"^([a-z][a-z0-9-]{0,62})?$(?!\n)", description="What pileus-node shall do in it.")
    ] = ""
    channel: Annotated[ChannelForm, Meta(description="Form of the backchannel.")] = "serial"
    descriptor: Annotated[
        str,
        Meta(max_length=DESCRIPTOR_CHARACTERS_MAX, description="OVF descriptor.", extra={"file": True}),
    ] = ""
    manifest: Annotated[str, Meta(max_length=65_536, description="Of the OVF package.", extra={"file": True})] = ""
    certificate: Annotated[
        str, Meta(max_length=65_536, description="That signs the manifest.", extra={"file": True})
    ] = ""
    vcpus: Annotated[int, Meta(ge=0, le=256, description="Virtual CPUs; 0: as the descriptor says.")] = 0
    memory_mib: Annotated[int, Meta(ge=0, le=4_194_304, description="Memory; 0: as the descriptor says.")] = 0
    nics: Annotated[int, Meta(ge=-1, le=8, description="NICs it needs; -1: as the descriptor says.")] = -1
    guest_agent: Annotated[PackageGuestAgent | None, Meta(description="For the form qga.")] = None


class PackageAssigned(Struct, frozen=True, kw_only=True):
    """The footprint of a node of it, decided when the package came."""

    manager: str
    image: str = ""
    vcpus: int = 1
    memory_mib: int = 192
    disk_gib: int = 0
    nics: int = 0
    signed_by: str = ""
    """Subject of the certificate that signs the manifest; empty: not signed."""
    product: str = ""
    vendor: str = ""


class PackageObserved(Struct, frozen=True, kw_only=True):
    """Whether nodes can be made of it."""

    state: Literal["waiting", "available", "refused"] = "waiting"
    message: str = ""


def _ready(resource: Resource) -> Condition:
    observed: PackageObserved | None = resource.observed
    if observed is None or observed.state == "waiting":
        return unready("ImageNotReady", observed.message if observed is not None else "its image is not looked at yet")
    if observed.state == "refused":
        return unready("Refused", observed.message)
    return ready()


KIND = Kind(
    name="fleet.package",
    summary="What a manager's nodes are made of: an OVF package with an image, one immutable version.",
    desired=PackageDesired,
    assigned=PackageAssigned,
    observed=PackageObserved,
    ready=_ready,
    scope="either",
    private=frozenset({"desired.descriptor", "desired.manifest", "desired.certificate"}),
    immutable=frozenset(PackageDesired.__struct_fields__),
    columns=(
        Column("MANAGER", "desired.manager"),
        Column("VERSION", "desired.version"),
        Column("CHANNEL", "desired.channel"),
        Column("STATE", "observed.state"),
        Column("VCPUS", "assigned.vcpus", wide=True),
        Column("MEMORY", "assigned.memory_mib", wide=True),
        Column("SIGNED_BY", "assigned.signed_by", wide=True),
    ),
)
