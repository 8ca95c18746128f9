"""Admission of users and roles: nobody gives more rights than it has."""

from __future__ import annotations

from pileus.kernel.access import Rule, covers
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Denied
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.tenancy.role.types import RoleDesired


class UserAdmission(Admission):
    """A user's role may allow no more than its creator's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the user. Raises: Denied for a role with more rights than the caller has."""
        role = await tx.get(change.links["role"])
        desired: RoleDesired = role.desired
        _refuse_escalation(tx, change, desired.rules, f"role {role.name}")
        return change.new


class RoleAdmission(Admission):
    """A role may allow no more than its creator's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the role. Raises: Denied for rights that the caller does not have."""
        desired: RoleDesired = change.new.desired
        _refuse_escalation(tx, change, desired.rules, "the role")
        return change.new


def _refuse_escalation(tx: Transaction, change: Change, rules: tuple[Rule, ...], what: str) -> None:
    kinds = [kind.name for kind in tx.registry]
    for rule in rules:
        if not covers(change.principal.rules, rule, kinds):
            raise Denied(
                f"{what} allows {', '.join(rule.verbs)} on {', '.join(rule.kinds)}, which you may not do yourself"
            )
