"""Admission of a manager: where its notices may go, and that the platform's own stays."""

from __future__ import annotations

from dataclasses import replace

from pileus.fleet.manager.plan import check_callback
from pileus.fleet.manager.types import BUILTIN, ManagerAssigned, ManagerDesired
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.authority import check_authority
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.notice import TOLD_SPACE
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction


class ManagerAdmission(Admission):
    """A manager stands for itself: its own row is the first that it sees."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the manager. Raises: Invalid for a callback that may not be; Conflict for a change of the platform's."""
        desired: ManagerDesired = change.new.desired
        before: ManagerDesired = change.old.desired if change.old is not None else ManagerDesired()
        if desired.callback_ca != before.callback_ca:
            check_authority(desired.callback_ca, "desired.callback_ca")
        new = change.new
        if desired.callback_url != before.callback_url or change.old is None:
            new = await _led(tx, new, by_operator=change.principal.operator)
        if change.old is None:
            return replace(new, manager=new.id)
        if _is_built_in(change.old) and desired.state != "active":
            raise Conflict(f"{change.old} is the cloud's own and stays active", code="built-in", field="desired.state")
        return new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict for the platform's own."""
        if _is_built_in(resource):
            raise Conflict(f"{resource} is the cloud's own and cannot be deleted", code="built-in")


async def _led(tx: Transaction, manager: Resource, *, by_operator: bool) -> Resource:
    """Return the manager with how far its callback may lead; from here on it is told, or not any more."""
    url = manager.desired.callback_url
    if not url:
        await tx.release(manager.id, TOLD_SPACE)
        await tx.change(sql.NOTICES_DELETE, manager=manager.id)
        return replace(manager, assigned=ManagerAssigned())
    check_callback(url, by_operator=by_operator)
    await tx.claim(TOLD_SPACE, manager.id, manager.id)
    return replace(manager, assigned=ManagerAssigned(reach="any" if by_operator else "public"))


def _is_built_in(manager: Resource) -> bool:
    return manager.account_id == "" and manager.name in BUILTIN
