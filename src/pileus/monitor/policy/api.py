"""Admission of a policy: clauses that mean something, and acts that can be done."""

from __future__ import annotations

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.policy.plan import check_acts, engine_policy, require_rights
from pileus.monitor.policy.types import PolicyDesired
from pileus.node.monitor.engine import Engine


class PolicyAdmission(Admission):
    """What can be refused is refused here: the engine that will run the policy reads it."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the policy. Raises: Invalid naming clause or act."""
        desired: PolicyDesired = change.new.desired
        check_acts(desired.do)
        if change.old is not None:
            require_rights(change.principal, change.old.desired.do)
        require_rights(change.principal, desired.do)
        is_found = any("*" in clause.field.split(".") for clause in desired.when)
        for number, act in enumerate(desired.do):
            if act.do.endswith("-application") and not act.application and not is_found:
                raise Invalid(
                    "say which application, or let a clause find it: applications.*.state",
                    field=f"desired.do.{number}.application",
                )
        try:
            Engine().configure({"settings": {}, "appliances": {}, "policies": {"policy": engine_policy(change.new)}})
        except ValueError as wrong:
            raise Invalid(str(wrong).removeprefix("policies.policy."), field="desired.when") from None
        return change.new
