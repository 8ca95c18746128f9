"""Admission of a consent: one per account and manager, of a manager that the account can see."""

from __future__ import annotations

from dataclasses import replace

from pileus.fleet.consent.types import ConsentAssigned, ConsentDesired, consent_space
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Transaction


class ConsentAdmission(Admission):
    """A manager of another account is like none: references are looked up in the consent's own account."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the consent. Raises: Conflict (already-exists) for a second one to the same manager."""
        if change.old is not None:
            return change.new
        desired: ConsentDesired = change.new.desired
        manager = change.links["manager"]
        try:
            await tx.claim(consent_space(change.new.account_id), manager, change.new.id)
        except AlreadyClaimed as error:
            known = await tx.get(error.holder)
            doing = "is being withdrawn; repeat this in a moment" if known.deleting else "says so; change that one"
            raise Conflict(
                f"the account has consented to manager {desired.manager} already: {known} {doing}",
                code="already-exists",
                field="desired.manager",
            ) from None
        return replace(change.new, assigned=ConsentAssigned(manager=manager))
