"""Admission of what many machines have in common: their template, its size, and what all of them cost of the quota."""

from __future__ import annotations

from typing import Any

from pileus.compute.set.types import MemberSpec, Template
from pileus.compute.sizing import sized
from pileus.compute.vm.plan import refuse_bad_keys
from pileus.kernel.admission import Change, only
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge
from pileus.kernel.transaction import Transaction
from pileus.storage.image.types import kernel_arguments, refuse_unready


async def decided(tx: Transaction, change: Change) -> dict[str, Any]:
    """Return the fields of ``MemberSpec`` for a new wish, and complete its links. Raises: Invalid, Conflict."""
    template: Template = change.new.desired
    image = await tx.get(change.links["image"])
    refuse_unready(image)
    refuse_bad_keys(template.ssh_keys)
    wanted = await sized(tx, change, image)
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


async def _check_zone(tx: Transaction, change: Change, vdc: Resource) -> None:
    """Raises: Invalid for a network of another zone."""
    for field, id in change.links.items():
        if field.startswith("nics.") and (network := await tx.get(id)).zone != vdc.zone:
            raise Invalid(f"{network} is in another zone than {vdc}", field=f"desired.{field}")
