"""Admission of an image: how many an account may have."""

from __future__ import annotations

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction

IMAGES_MAX = 100
"""Images of one account: bounds what it can have waiting for a conversion. The cluster's own are not bounded."""


class ImageAdmission(Admission):
    """Bounds the number of images, which belong to no vdc and so to no quota."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the image. Raises: QuotaExceeded."""
        new = change.new
        if change.old is None and new.account_id:
            present = await tx.matching(Filter(kind=new.kind, account_id=new.account_id), limit=IMAGES_MAX)
            if len(present) >= IMAGES_MAX:
                raise QuotaExceeded(f"account {new.account} has {IMAGES_MAX} images, the most there may be; delete one")
        return new
