"""The account of the cloud's own shared appliances, and its share of a zone: made when needed, gone after the last."""

from __future__ import annotations

from msgspec.structs import asdict

from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Waiting
from pileus.kernel.quota import set_limits
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.mirror.decapsulator.types import PLATFORM, DecapsulatorAssigned, DecapsulatorDesired
from pileus.tenancy.account.types import AccountDesired
from pileus.tenancy.vdc.types import Quota, VdcAssigned, VdcDesired

KIND = "mirror.decapsulator"
OWN, OWN_VALUE = "platform/account", "mirrors"
"""Claim space and value that the account made here holds: one that somebody else has made is never touched."""
IN_A_SHARE = ("compute.vm", "storage.volume", "network.network")


async def ensure_decapsulators(tx: Transaction, zone: Resource) -> None:
    """Make as many decapsulators as the zone wishes. Raises: Waiting while those of before are just going."""
    account = await _account(tx)
    vdc = await _vdc(tx, account, zone)
    known = {each.assigned.number: each for each in await tx.matching(Filter(kind=KIND, zone=zone.id))}
    for number in range(zone.desired.decapsulators):
        if number in known:
            continue
        made = Resource(
            id=tx.new_id(),
            kind=KIND,
            name=f"{zone.name[:55]}-{number}",
            account_id=account.id,
            account=account.name,
            owner=account.id,
            desired=DecapsulatorDesired(zone=zone.id),
            assigned=DecapsulatorAssigned(zone=zone.id, vdc=vdc.id, number=number),
        )
        await tx.create(made, {"zone": zone.id, "vdc": vdc.id})


async def tidy(tx: Transaction, gone: Resource) -> None:
    """Let the share of the zone go with its last decapsulator, and the account with its last share; never what is in use."""
    vdc = gone.assigned.vdc
    left = [each for each in await tx.matching(Filter(kind=KIND, account_id=gone.account_id)) if each.id != gone.id]
    if any(each.assigned.vdc == vdc for each in left):
        return
    for kind in IN_A_SHARE:
        if await tx.matching(Filter(kind=kind, account_id=gone.account_id, vdc=vdc), limit=1):
            return
    await tx.mark_deleting(await tx.get(vdc))
    if all(each.id in (gone.id, vdc) for each in await tx.children(gone.account_id)):
        await tx.mark_deleting(await tx.get(gone.account_id))


async def _account(tx: Transaction) -> Resource:
    found = await tx.find("tenancy.account", "", PLATFORM)
    if found is None:
        description = "The cloud's own: appliances that serve several accounts. Comes and goes with them."
        made = Resource(
            id=tx.new_id(), kind="tenancy.account", name=PLATFORM, desired=AccountDesired(description=description)
        )
        await tx.claim(OWN, OWN_VALUE, made.id)
        return await tx.create(made)
    if await tx.holder(OWN, OWN_VALUE) != found.id:
        message = f"the account {PLATFORM} is not the cloud's own, which needs that name; its operator renames it"
        raise Waiting("NameTaken", message, 30.0)
    return _here(found)


async def _vdc(tx: Transaction, account: Resource, zone: Resource) -> Resource:
    found = await tx.find("tenancy.vdc", account.id, zone.name)
    if found is not None:
        return _here(found)
    id = tx.new_id()
    await set_limits(tx, id, asdict(Quota()))
    vdc = Resource(
        id=id,
        kind="tenancy.vdc",
        name=zone.name,
        account_id=account.id,
        account=account.name,
        owner=account.id,
        desired=VdcDesired(zone=zone.name),
        assigned=VdcAssigned(zone=zone.id),
    )
    return await tx.create(vdc, {"zone": zone.id})


def _here(found: Resource) -> Resource:
    if found.deleting:
        raise Waiting("Starting", "the decapsulators of before are just being removed", 1.0)
    return found
