"""Snapshots that the cloud's own controllers take: of a VM's root volume, on the account's quota, whoever may read them."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.access import Principal, Rule
from pileus.kernel.admission import make
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.storage.snapshot.api import SnapshotAdmission
from pileus.storage.snapshot.types import SnapshotDesired

KIND = "storage.snapshot"


async def take_snapshot(
    tx: Transaction, volume: str, name: str, account: Resource, reason: str, actor: str
) -> Resource:
    """Return a snapshot of the volume, asked for by ``actor``; one of it that has the name already is returned.

    Raises: Rejected when there is no room, the volume is not made yet, or something else has the name.
    """
    found = await tx.find(KIND, account.id, name)
    if found is not None and found.assigned.volume == volume:
        return found
    snapshot = Resource(
        id=tx.new_id(),
        kind=KIND,
        name=name,
        account_id=account.id,
        account=account.name,
        owner=account.id,
        desired=SnapshotDesired(volume=volume, reason=reason),
    )
    principal = Principal(
        user_id="", user=actor, account_id="", account="", role="", rules=(Rule(kinds=(KIND,), verbs=("create",)),)
    )
    made = (await make(tx, {KIND: SnapshotAdmission()}, principal, snapshot)).resource
    return await tx.update(made, assigned=replace(made.assigned, taken_by=actor))  # the account may delete it
