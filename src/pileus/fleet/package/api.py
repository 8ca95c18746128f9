"""Admission of a package: whose it is, what its descriptor says of a node's size, who signed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from pileus.fleet.package.footprint import Footing, read_package
from pileus.fleet.package.types import PackageAssigned, PackageDesired, PackageGuestAgent
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Transaction


class PackageAdmission(Admission):
    """A package says once and for all what its nodes are. ``check`` raises Invalid for a bad ``guest_agent``."""

    def __init__(self, check: Callable[[PackageGuestAgent], None]) -> None:
        self._check = check

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the package with its footprint. Raises: Invalid, Conflict (version-exists)."""
        if change.old is not None:
            return change.new  # all that it says is immutable; only its labels change
        new = change.new
        desired: PackageDesired = new.desired
        manager = await tx.get(change.links["manager"])
        if manager.account_id != new.account_id:
            where = f"account {manager.account}" if manager.account else "the cluster"
            raise Invalid(f"{manager} is of {where}; its packages are made there", field="desired.manager")
        _check_form(desired)
        if desired.guest_agent is not None:
            self._check(desired.guest_agent)
        await _claim_version(tx, new, manager)
        footing = await _footing(tx, change)
        return replace(
            new,
            assigned=PackageAssigned(
                manager=manager.id,
                image=change.links.get("image", ""),
                vcpus=footing.vcpus,
                memory_mib=footing.memory_mib,
                nics=footing.nics,
                signed_by=footing.signed_by,
                product=footing.product,
                vendor=footing.vendor,
            ),
        )


def _check_form(desired: PackageDesired) -> None:
    """Raises: Invalid when the form of the backchannel and what is said about it do not fit."""
    if (desired.channel == "qga") != (desired.guest_agent is not None):
        if desired.channel == "qga":
            said = "a package with channel qga says nothing of what may be done there; see `pileus explain package.guest_agent`"
        else:
            said = f"is for channel qga only; leave it out with channel {desired.channel}"
        raise Invalid(f"desired.guest_agent: {said}", field="desired.guest_agent")
    if desired.channel == "qga" and desired.role:
        raise Invalid("desired.role: a guest without pileus-node plays no role", field="desired.role")


async def _claim_version(tx: Transaction, package: Resource, manager: Resource) -> None:
    version = package.desired.version
    try:
        await tx.claim(f"version/{manager.id}", version, package.id)
    except AlreadyClaimed as error:
        holder = await tx.get(error.holder)
        raise Conflict(
            f"version {version} of {manager} is {holder} already; a version never changes, give this one another",
            code="version-exists",
            field="desired.version",
        ) from None


async def _footing(tx: Transaction, change: Change) -> Footing:
    """Return what a node of it needs: what is said outright goes before what the descriptor says. Raises: Invalid."""
    desired: PackageDesired = change.new.desired
    read = read_package(desired) if desired.descriptor else Footing()
    if desired.descriptor and "image" in change.links:
        _check_firmware(read, await tx.get(change.links["image"]))
    if desired.manifest and not desired.descriptor:
        raise Invalid("desired.manifest: there is no descriptor for it", field="desired.manifest")
    vcpus, memory_mib = desired.vcpus or read.vcpus, desired.memory_mib or read.memory_mib
    if "image" in change.links and not (vcpus and memory_mib):
        raise Invalid("say vcpus and memory_mib, or give the OVF descriptor that does", field="desired.vcpus")
    nics = desired.nics if desired.nics >= 0 else read.nics
    if desired.channel == "nic" and nics == 0:
        raise Invalid(
            "desired.nics: the channel nic reaches the node through its first NIC; say 1 or more, or another channel",
            field="desired.nics",
        )
    return msgspec.structs.replace(read, vcpus=vcpus, memory_mib=memory_mib, nics=nics)


def _check_firmware(read: Footing, image: Resource) -> None:
    """Raises: Invalid for an image that the descriptor's VM does not start from."""
    there = image.desired.firmware
    if there != read.firmware:
        raise Invalid(
            f"the descriptor's VM starts by {read.firmware}, and {image} is for {there}; "
            f"make one with `pileus create image NAME --firmware {read.firmware}`",
            field="desired.image",
        )
