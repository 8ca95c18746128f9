"""Admission of what many machines have in common: their template, its size, and what all of them cost of the quota."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from pileus.compute.functions import resources_of
from pileus.compute.offering.types import OfferingDesired
from pileus.compute.set.types import MemberSpec, Template
from pileus.compute.vm.plan import Size, refuse_bad_keys, size
from pileus.compute.vm.types import VmDesired
from pileus.kernel.admission import Change, only
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge
from pileus.kernel.transaction import Transaction
from pileus.storage.image.types import ImageObserved, kernel_arguments, refuse_unready

DEFAULT_OFFERING = "tiny"
"""What machines get that ask for no size at all."""


async def decided(tx: Transaction, change: Change) -> dict[str, Any]:
    """Return the fields of ``MemberSpec`` for a new wish, and complete its links. Raises: Invalid, Conflict."""
    template: Template = change.new.desired
    image = await tx.get(change.links["image"])
    refuse_unready(image)
    refuse_bad_keys(template.ssh_keys)
    wanted = await _size(tx, change, template, image)
    vdc = await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", change.new.account_id, "vdc")).id)
    change.links["vdc"] = vdc.id  # also when it was not said: the vdc cannot go before what is in it
    await _check_zone(tx, change, vdc)
    return {
        "zone": vdc.zone,
        "vdc": vdc.id,
        "image": image.id,
        "vcpus": wanted.vcpus,
        "memory_mib": wanted.memory_mib,
        "disk_gib": wanted.disk_gib,
        "append": kernel_arguments(image),
        "firmware": image.desired.firmware,
    }


async def charge_members(tx: Transaction, spec: MemberSpec, owner: str, count: int) -> None:
    """Let ``owner`` use the quota of its vdc for this many members. Raises: QuotaExceeded."""
    amounts = {
        "vms": count,
        "vcpus": count * spec.vcpus,
        "memory_mib": count * spec.memory_mib,
        "volumes": count,
        "disk_gib": count * spec.disk_gib,
    }
    await charge(tx, await tx.get(spec.vdc), owner, amounts)


async def _size(tx: Transaction, change: Change, template: Template, image: Resource) -> Size:
    observed: ImageObserved | None = image.observed
    image_gib = -(-observed.virtual_size_bytes // 2**30) if observed else 0
    asked = VmDesired(vcpus=template.vcpus, memory_mib=template.memory_mib, disk_gib=template.disk_gib)
    if template.function or template.load:
        return size(_by_function(change, template, asked, image_gib), None, image_gib)
    return size(asked, await _offering(tx, change, template), image_gib)


async def _offering(tx: Transaction, change: Change, template: Template) -> OfferingDesired | None:
    if "offering" in change.links:
        named: OfferingDesired = (await tx.get(change.links["offering"])).desired
        return named
    if template.vcpus or template.memory_mib:
        return None
    default = await tx.find("compute.offering", "", DEFAULT_OFFERING)
    if default is None:
        raise Invalid("say the size: an offering, or vcpus with memory_mib", field="desired.offering")
    change.links["offering"] = default.id  # also when it was not said: the members have its limits
    offering: OfferingDesired = default.desired
    return offering


def _by_function(change: Change, template: Template, asked: VmDesired, image_gib: int) -> VmDesired:
    """Return what was asked with the numbers that its function takes. Raises: Invalid."""
    if not template.function:
        raise Invalid("load is that of a function; say which, or leave it out", field="desired.load")
    if "offering" in change.links or template.vcpus or template.memory_mib:
        raise Invalid("give a function, or an offering, or vcpus with memory_mib, only one", field="desired.function")
    needed = resources_of(template.function, template.load)
    disk_gib = template.disk_gib or max(needed.disk_gib, image_gib)
    return replace(asked, vcpus=needed.vcpus, memory_mib=needed.memory_mib, disk_gib=disk_gib)


async def _check_zone(tx: Transaction, change: Change, vdc: Resource) -> None:
    """Raises: Invalid for a network of another zone."""
    for field, id in change.links.items():
        if field.startswith("nics.") and (network := await tx.get(id)).zone != vdc.zone:
            raise Invalid(f"{network} is in another zone than {vdc}", field=f"desired.{field}")
