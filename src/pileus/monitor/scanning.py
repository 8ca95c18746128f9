"""Scans are made: each appliance has one newest scan of a signature, and that stays until the next begins."""

from __future__ import annotations

from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.monitor.scan.types import OVER, ScanAssigned, ScanDesired, ScanObserved, scans_space


async def take_place(tx: Transaction, signature: Resource, vm: str, scan: str) -> None:
    """Let ``scan`` be the newest of the appliance; the one before goes. Raises: Conflict while that is under way."""
    space = scans_space(signature.id)
    try:
        await tx.claim(space, vm, scan)
    except AlreadyClaimed as error:
        before = await tx.get(error.holder)
        if before.observed is None or before.observed.state not in OVER:
            raise Conflict(f"{before} looks at the same appliance already", code="under-way") from None
        await tx.release(before.id, space, vm)
        await tx.mark_deleting(before)
        await tx.claim(space, vm, scan)


async def make_scan(tx: Transaction, signature: Resource, vm: Resource) -> None:
    """Make a scan of the signature's. Raises: Conflict while one is under way."""
    id = tx.new_id()
    await take_place(tx, signature, vm.id, id)
    scan = Resource(
        id=id,
        kind="monitor.scan",
        name=f"scan-{id[-12:]}",
        owner=signature.id,
        account_id=signature.account_id,
        account=signature.account,
        zone=vm.zone,
        vdc=vm.vdc,
        desired=ScanDesired(signature=signature.name, vm=vm.name),
        assigned=ScanAssigned(vm=vm.id, signature=signature.id, signature_name=signature.name),
        observed=ScanObserved(),
    )
    await tx.create(scan, {"signature": signature.id})
