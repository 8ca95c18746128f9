"""Admission of a manager: where its notices may go, and that the platform's own stays."""

from __future__ import annotations

from dataclasses import replace

from pileus.fleet.manager.plan import check_callback
from pileus.fleet.manager.types import BUILTIN, ManagerDesired
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class ManagerAdmission(Admission):
    """A manager stands for itself: its own row is the first that it sees."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the manager. Raises: Invalid for a callback that may not be; Conflict for a change of the platform's."""
        desired: ManagerDesired = change.new.desired
        before = change.old.desired.callback_url if change.old is not None else ""
        if desired.callback_url and desired.callback_url != before:
            check_callback(desired.callback_url, by_operator=change.principal.operator)
        if change.old is None:
            return replace(change.new, manager=change.new.id)
        if _is_built_in(change.old) and desired.state != "active":
            raise Conflict(f"{change.old} is the cloud's own and stays active", code="built-in", field="desired.state")
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict for the platform's own."""
        if _is_built_in(resource):
            raise Conflict(f"{resource} is the cloud's own and cannot be deleted", code="built-in")


def _is_built_in(manager: Resource) -> bool:
    return manager.account_id == "" and manager.name in BUILTIN
