"""What a node's VM shall be: pure decisions from its package and its wish."""

from __future__ import annotations

from msgspec import Struct

from pileus.compute.vm.types import Power, VmAppliance, VmAssigned
from pileus.fleet.node.types import Footprint
from pileus.fleet.package.types import PackageAssigned, PackageDesired
from pileus.kernel.kind import Resource
from pileus.storage.image.types import ImageObserved


class NodeWish(Struct, frozen=True, kw_only=True):
    """What its power follows from. ``is_current``: the VM's disk is of the node's package. ``is_off``: it is stopped."""

    power: Power
    is_current: bool
    is_off: bool


def next_power(wish: NodeWish) -> Power:
    """Return what the VM shall be now: it is stopped as long as its disk is of another package."""
    return wish.power if wish.is_current else "stopped"


def is_made_of(footprint: Footprint, vm: Resource) -> bool:
    """Tell whether the VM has the disk, the size, the channel and the role of the footprint."""
    assigned: VmAssigned = vm.assigned
    appliance: VmAppliance | None = vm.desired.appliance
    told = (appliance.channel, appliance.role) if appliance is not None else ("", "")
    made = (assigned.image, assigned.vcpus, assigned.memory_mib, *told)
    return made == (footprint.image, footprint.vcpus, footprint.memory_mib, footprint.channel, footprint.role)


def disk_gib(image: Resource) -> int:
    """Return how large the root volume of a VM made of this image is."""
    observed: ImageObserved = image.observed
    return max(1, -(-observed.virtual_size_bytes // 2**30))


def footprint_of(package: Resource) -> Footprint:
    """Return what a node's VM is, made of this package."""
    desired: PackageDesired = package.desired
    assigned: PackageAssigned = package.assigned
    return Footprint(
        image=assigned.image,
        role=desired.role,
        channel=desired.channel,
        vcpus=assigned.vcpus,
        memory_mib=assigned.memory_mib,
        guest_agent=desired.guest_agent,
    )


def costs(package: Resource, image: Resource) -> dict[str, int]:
    """Return what a node's VM takes of the account's quota."""
    assigned: PackageAssigned = package.assigned
    return {
        "vms": 1, "vcpus": assigned.vcpus, "memory_mib": assigned.memory_mib, "volumes": 1, "disk_gib": disk_gib(image),
    }  # fmt: skip
