"""The server half of a consent: what its manager was not told yet goes with it."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction


class ConsentController(Controller):
    """A consent takes effect by being there."""

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Drop what waits to be told of the account."""
        await tx.change(sql.NOTICES_DELETE_OF, manager=resource.assigned.manager, account_id=resource.account_id)
