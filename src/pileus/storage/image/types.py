"""An image: the disk that a VM's root volume starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.errors import Conflict
from pileus.kernel.fields import ManagerRef, Problem
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.usage import Use

Firmware = Literal["bios", "uefi"]
Sha256 = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]


class ImageDesired(Struct, frozen=True, kw_only=True):
    """What the uploaded file is said to be; it is inspected, never believed."""

    format: Annotated[
        Literal["qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi"], Meta(description="Format of the uploaded disk.")
    ] = "qcow2"
    sha256: Annotated[Sha256, Meta(description="Digest that the upload must have; empty: any.")] = ""
    append: Annotated[
        str, Meta(max_length=500, description="Kernel arguments when a kernel and an initrd were uploaded too.")
    ] = ""
    firmware: Annotated[
        Firmware, Meta(description="What starts a VM from the disk: what is installed on it was made for one of them.")
    ] = "bios"
    description: Annotated[str, Meta(max_length=200, description="For people.")] = ""
    manager: Annotated[
        ManagerRef,
        Meta(
            description="The fleet manager whose nodes it is for; the cloud's own is then hidden from other accounts."
        ),
    ] = ""


class ImageObserved(Struct, frozen=True, kw_only=True):
    """What inspection found. Digests are of what hosts fetch: the clean qcow2, the kernel, the initrd."""

    state: Literal["awaiting-upload", "inspecting", "available", "refused"] = "awaiting-upload"
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    sha256: str = ""
    kernel_sha256: str = ""
    kernel_size_bytes: int = 0
    initrd_sha256: str = ""
    initrd_size_bytes: int = 0
    problem: Problem | None = None


def _ready(resource: Resource) -> Condition:
    observed: ImageObserved | None = resource.observed
    if observed is None or observed.state == "awaiting-upload":
        return unready("AwaitingUpload", "upload its disk: `pileus create image NAME --file DISK`")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state == "inspecting":
        return unready("Inspecting", "the uploaded disk is being inspected and converted")
    return ready()


def is_available(image: Resource) -> bool:
    """Tell whether disks can be made of the image: its size and content are known."""
    return _state(image) == "available"


def _state(image: Resource) -> str:
    observed: ImageObserved | None = image.observed
    return observed.state if observed is not None else "awaiting-upload"


def refuse_unready(image: Resource) -> None:
    """Raises: Conflict (image-not-ready) for an image whose size and content are not known yet."""
    if not is_available(image):
        raise Conflict(
            f"{image} is {_state(image)}; repeat once `pileus describe image {image.name}` says it is available",
            code="image-not-ready",
            field="desired.image",
        )


def kernel_arguments(image: Resource) -> str:
    """Return what a VM of the image is booted with directly; empty: it boots from its disk, as accounts' images do.

    The hypervisor itself reads a kernel that it boots directly, so that has to be one of the cluster's own.
    """
    observed: ImageObserved | None = image.observed
    is_direct = observed is not None and observed.kernel_sha256 and image.account_id == ""
    return str(image.desired.append) if is_direct else ""


def _meter(image: Resource) -> Use:
    """Say what an account's image uses: the room of its files."""
    observed: ImageObserved | None = image.observed
    if observed is None or observed.state != "available":
        return Use()
    size_bytes = observed.size_bytes + observed.kernel_size_bytes + observed.initrd_size_bytes
    return Use({"disk_mib": -(-size_bytes // 2**20)})


KIND = Kind(
    name="storage.image",
    summary="A disk image that VMs start from; public when it belongs to no account and no manager.",
    desired=ImageDesired,
    observed=ImageObserved,
    ready=_ready,
    meter=_meter,
    scope="either",
    managed="hidden",
    immutable=frozenset({"format", "sha256", "firmware", "manager"}),
    columns=(
        Column("FORMAT", "desired.format"),
        Column("STATE", "observed.state"),
        Column("SIZE", "observed.size_bytes"),
        Column("VIRTUAL", "observed.virtual_size_bytes"),
    ),
)
