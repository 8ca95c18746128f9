"""Admission of an image: how many an account may have, and which manager's nodes it is for."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction

IMAGES_MAX = 100
"""Images of one account: bounds what it can have waiting for a conversion. The cluster's own are not bounded."""


class ImageAdmission(Admission):
    """Bounds the number of images, which belong to no vdc and so to no quota."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the image. Raises: QuotaExceeded, Invalid for a manager of elsewhere."""
        if change.old is not None:
            return change.new
        new = await _managed(tx, change)
        if new.account_id:
            present = await tx.matching(Filter(kind=new.kind, account_id=new.account_id), limit=IMAGES_MAX)
            if len(present) >= IMAGES_MAX:
                raise QuotaExceeded(f"account {new.account} has {IMAGES_MAX} images, the most there may be; delete one")
        return new


async def _managed(tx: Transaction, change: Change) -> Resource:
    """Return the image with its manager: the one that uploads it, or the one that was said. Raises: Invalid."""
    new, principal = change.new, change.principal
    if principal.manager_id and "manager" not in change.links:
        change.links["manager"] = principal.manager_id
        new = replace(new, desired=msgspec.structs.replace(new.desired, manager=principal.user))
    if "manager" not in change.links:
        return new
    manager = await tx.get(change.links["manager"])
    if manager.account_id != new.account_id:
        where = f"account {manager.account}" if manager.account else "the cluster"
        raise Invalid(f"{manager} is of {where}; its images are made there", field="desired.manager")
    return replace(new, manager=manager.id)
