"""How large a machine is: by an offering, by numbers of its own, or by what it shall do."""

from __future__ import annotations

from msgspec import Struct

from pileus.compute.functions import resources_of
from pileus.compute.offering.types import OfferingDesired
from pileus.compute.vm.types import Sized
from pileus.kernel.admission import Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.storage.image.types import ImageObserved
from pileus.tenancy.account.types import VmLimits

DEFAULT_OFFERING = "tiny"
"""What a machine gets that asks for no size at all."""


class Size(Struct, frozen=True, kw_only=True):
    """What a machine gets."""

    vcpus: int
    memory_mib: int
    disk_gib: int


async def sized(tx: Transaction, change: Change, image: Resource) -> Size:
    """Return what is asked for, as numbers, and link the default offering where nothing is said. Raises: Invalid."""
    observed: ImageObserved | None = image.observed
    image_gib = -(-observed.virtual_size_bytes // 2**30) if observed else 0
    return size(change.new.desired, await _offering(tx, change), image_gib)


def size(wish: Sized, offering: OfferingDesired | None, image_gib: int) -> Size:
    """Return the size by the offering, the function or the numbers; the disk is what was asked, what they say, or the image's.

    Raises: Invalid for more than one of them, for half of the numbers, for limits beside an offering, and for a disk too
    small for the image.
    """
    own = own_limits(wish)
    beside = next((word for word in VmLimits.__struct_fields__ if wish.offering and getattr(own, word)), "")
    if beside:
        raise Invalid(f"an offering says its limits; give {beside}, or an offering", field=f"desired.{beside}")
    if wish.function or wish.load:
        offering = _by_function(wish, offering)
    elif offering is not None and (wish.vcpus or wish.memory_mib):
        raise Invalid("give an offering, or vcpus with memory_mib, not both", field="desired.offering")
    if offering is None:
        if not wish.vcpus or not wish.memory_mib:
            raise Invalid("vcpus and memory_mib belong together; give both, or an offering", field="desired.vcpus")
        offering = OfferingDesired(vcpus=wish.vcpus, memory_mib=wish.memory_mib, disk_gib=max(image_gib, 1))
    disk_gib = wish.disk_gib or max(offering.disk_gib, image_gib)
    if disk_gib < image_gib:
        raise Invalid(f"the image needs a disk of {image_gib} GiB, {disk_gib} were asked", field="desired.disk_gib")
    return Size(vcpus=offering.vcpus, memory_mib=offering.memory_mib, disk_gib=disk_gib)


def own_limits(wish: Sized) -> VmLimits:
    """Return the limits that are asked for without an offering."""
    return VmLimits(**{word: getattr(wish, word) for word in VmLimits.__struct_fields__})


def _by_function(wish: Sized, offering: OfferingDesired | None) -> OfferingDesired:
    if not wish.function:
        raise Invalid("load is that of a function; say which, or leave it out", field="desired.load")
    if offering is not None or wish.vcpus or wish.memory_mib:
        raise Invalid("give a function, or an offering, or vcpus with memory_mib, only one", field="desired.function")
    needed = resources_of(wish.function, wish.load)
    return OfferingDesired(vcpus=needed.vcpus, memory_mib=needed.memory_mib, disk_gib=needed.disk_gib)


async def _offering(tx: Transaction, change: Change) -> OfferingDesired | None:
    wish: Sized = change.new.desired
    if "offering" in change.links:
        named: OfferingDesired = (await tx.get(change.links["offering"])).desired
        return named
    if wish.vcpus or wish.memory_mib or wish.function or wish.load:
        return None
    default = await tx.find("compute.offering", "", DEFAULT_OFFERING)
    if default is None:
        raise Invalid("say the size: an offering, or vcpus with memory_mib", field="desired.offering")
    change.links["offering"] = default.id  # also when it was not said: the machine has its limits
    offering: OfferingDesired = default.desired
    return offering
