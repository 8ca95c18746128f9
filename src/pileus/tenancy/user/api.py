"""Admission of users and roles: nobody gives, changes or takes away more rights than it has."""

from __future__ import annotations

from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, refuse_more_powerful
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class UserAdmission(Admission):
    """A user's role, before and after, may allow no more than the caller's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the user. Raises: Denied for a role with more rights than the caller has."""
        if change.old is not None:
            await self.may_delete(tx, change.old, change.principal)
        role = await tx.get(change.links["role"])
        refuse_more_powerful(tx, change.principal, role.desired.rules, f"role {role.name}")
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a user with more rights than the caller has."""
        role = await tx.get((await tx.links(resource.id))["role"])
        refuse_more_powerful(tx, principal, role.desired.rules, f"role {role.name} of user {resource.name}")


class RoleAdmission(Admission):
    """A role, before and after, may allow no more than the caller's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the role. Raises: Denied for rights that the caller does not have."""
        if change.old is not None:
            await self.may_delete(tx, change.old, change.principal)
        refuse_more_powerful(tx, change.principal, change.new.desired.rules, "the role")
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a role with more rights than the caller has."""
        refuse_more_powerful(tx, principal, resource.desired.rules, f"role {resource.name}")
