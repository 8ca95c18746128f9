"""Admission of a filter: what it says is understood before a session asks it."""

from __future__ import annotations

from pileus.kernel.admission import Admission, Change
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.mirror.filter.plan import compiled


class FilterAdmission(Admission):
    """A changed filter is in force at its sessions at once."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the filter. Raises: Invalid with the word that is not understood."""
        compiled(change.new.desired)
        if change.old is not None:
            for session in await tx.matching(Filter(kind="mirror.session", account_id=change.new.account_id)):
                if (await tx.links(session.id)).get("filter") == change.new.id:
                    await tx.enqueue(session.id)
        return change.new
