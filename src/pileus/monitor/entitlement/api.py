"""Admission of an entitlement: a term that is one, its limit as a budget, and which VMs need it."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.times import parse_time
from pileus.kernel.transaction import Transaction
from pileus.monitor.entitlement.types import (
    COUNT_MAX,
    NEEDED_MAX,
    EntitlementAssigned,
    EntitlementDesired,
    entitled_space,
    pinned_space,
    seats_space,
)

UNLIMITED = 1 << 62
"""Of a soft one: what is over its limit is reported, not refused."""


class EntitlementAdmission(Admission):
    """Puts limit and needs in force with the wish itself."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the entitlement with its term. Raises: Invalid, QuotaExceeded."""
        new = change.new
        desired: EntitlementDesired = new.desired
        if desired.needed_by and desired.metric == "users":
            words = "needed_by does not go with the metric users: nobody knows who uses a VM; make their seats by hand"
            raise Invalid(words, field="desired.needed_by")
        await _note_need(tx, new)
        if change.old is not None:
            return new
        starts = parse_time(desired.starts, "desired.starts") if desired.starts else 0.0
        ends = parse_time(desired.ends, "desired.ends") if desired.ends else 0.0
        if ends and ends <= starts:
            raise Invalid(f"{new} ends {desired.ends}, and begins only {desired.starts}", field="desired.ends")
        await tx.set_capacity(seats_space(new.id), desired.limit if desired.enforcement == "hard" else UNLIMITED)
        await tx.set_capacity(pinned_space(new.id), desired.limit)
        return replace(new, assigned=EntitlementAssigned(starts=starts, ends=ends))


async def _note_need(tx: Transaction, entitlement: Resource) -> None:
    """Let every VM of the account that is looked at from now on see whether it needs the entitlement.

    Raises: QuotaExceeded.
    """
    space = entitled_space(entitlement.account_id)
    if not entitlement.desired.needed_by:
        await tx.release(entitlement.id, space)
    elif not await tx.claims(space, entitlement.id):
        if await tx.claimed(space) >= NEEDED_MAX:
            raise QuotaExceeded(
                f"account {entitlement.account} has {NEEDED_MAX} entitlements that VMs need, which is the most; delete one "
                "that ended, or leave needed_by out and make its seats by hand",
                code="too-many-needed",
                field="desired.needed_by",
            )
        await tx.claim_number(space, 1, COUNT_MAX, entitlement.id)
