"""Admission of an action that a person writes: on an appliance that is theirs, with acts that can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pileus.compute.vm.types import is_of_cloud
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.action import plan
from pileus.monitor.action.types import ActionAssigned, ActionCause, ActionDesired
from pileus.monitor.notes import note_action
from pileus.monitor.policy.plan import check_acts, require_rights


class ActionAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the action with its cause. Raises: Invalid, Conflict."""
        # No link: the log outlives what was acted on.
        vm_id = change.links.pop("vm", "")
        new = change.new
        desired: ActionDesired = new.desired
        require_rights(change.principal, desired.do)
        if change.old is not None:
            _refuse_answer(change.old, desired)
            return new
        check_acts(new, desired.do)
        vm = await tx.get(vm_id)
        if is_of_cloud(vm):
            raise Invalid(f"{vm} is one of the cloud's own appliances: it is not acted on by hand", field="desired.vm")
        for number, act in enumerate(desired.do):
            if act.do.endswith("-application") and not act.application:
                raise Invalid(
                    f"{new}: act {number + 1}, {act.do}: say which application it is; `pileus describe state` shows them",
                    field=f"desired.do.{number}.application",
                )
        cause = ActionCause(actor=change.principal.actor, key=new.id, cause=desired.reason, at=tx.now)
        steps = plan.first_steps(desired.do)
        assigned = ActionAssigned(zone=vm.zone, vdc=vm.vdc, vm=vm.id, cause=cause, steps=steps)
        return replace(new, zone=vm.zone, vdc=vm.vdc, assigned=assigned, observed=plan.observed(assigned))

    async def created(self, tx: Transaction, resource: Resource, principal: object) -> dict[str, Any]:
        """Note it for histories before any of it is done."""
        await note_action(tx, resource)
        return {}

    async def may_delete(self, tx: Transaction, resource: Resource, principal: object) -> None:
        """Raises: Conflict: the log stays as long as it is kept."""
        raise Conflict(
            f"{resource} is part of the log of actions, which nobody changes; it goes by itself after 30 days",
            code="kept",
        )


def _refuse_answer(old: Resource, desired: ActionDesired) -> None:
    before: ActionDesired = old.desired
    if before.approved and desired.approved != before.approved:
        raise Conflict(f"{old} was answered already: {before.approved}", code="answered", field="desired.approved")
