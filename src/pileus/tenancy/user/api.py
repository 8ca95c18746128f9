"""Admission of users and roles: nobody gives, changes or takes away more rights than it has."""

from __future__ import annotations

from collections.abc import Sequence

from pileus.kernel.access import Principal, Rule
from pileus.kernel.admission import Admission, Change, refuse_more_powerful
from pileus.kernel.errors import Invalid, NotFound
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.transaction import Transaction
from pileus.tenancy.role.types import VERBS

OPERATOR = "operator"
"""The cluster's own role that allows everything everywhere; in an account it would only look as if it did."""


class UserAdmission(Admission):
    """A user's role, before and after, may allow no more than the caller's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the user. Raises: Denied for a role with more rights than the caller has; Invalid for operator."""
        before = ""
        if change.old is not None:
            await self.may_delete(tx, change.old, change.principal)
            before = (await tx.links(change.old.id))["role"]
        role = await tx.get(change.links["role"])
        cloud_only = role.name == OPERATOR and not role.account_id
        if change.new.account_id and cloud_only and role.id != before:
            raise Invalid(
                "role operator is for the cloud's own users; take owner, member or reader", field="desired.role"
            )
        refuse_more_powerful(tx, change.principal, role.desired.rules, f"role {role.name}")
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a user with more rights than the caller has."""
        role = await tx.get((await tx.links(resource.id))["role"])
        refuse_more_powerful(tx, principal, role.desired.rules, f"role {role.name} of user {resource.name}")


class RoleAdmission(Admission):
    """A role, before and after, may allow no more than the caller's does."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the role. Raises: Denied for rights that the caller does not have; Invalid for unknown words."""
        if change.old is not None:
            await self.may_delete(tx, change.old, change.principal)
        if change.old is None or change.old.desired.rules != change.new.desired.rules:
            refuse_unknown_words(tx.registry, change.new.desired.rules)
        refuse_more_powerful(tx, change.principal, change.new.desired.rules, "the role")
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a role with more rights than the caller has."""
        refuse_more_powerful(tx, principal, resource.desired.rules, f"role {resource.name}")


def refuse_unknown_words(registry: Registry, rules: Sequence[Rule]) -> None:
    """Raises: Invalid for a kind or verb that there is not: a rule that allows nothing is a typing mistake."""
    for position, rule in enumerate(rules):
        field = f"desired.rules[{position}]"
        for word in rule.kinds:
            _check_kind(registry, word, f"{field}.kinds")
        for verb in rule.verbs:
            if verb not in VERBS:
                said = f"{', '.join(VERBS[:-1])} or {VERBS[-1]}"
                raise Invalid(f"{verb!r} is not a verb; say {said}", field=f"{field}.verbs")


def _check_kind(registry: Registry, word: str, field: str) -> None:
    capabilities = sorted({kind.name.partition(".")[0] for kind in registry})
    if word == "*" or word in registry or word in [f"{each}.*" for each in capabilities]:
        return
    if word.endswith(".*"):
        raise Invalid(
            f"{word!r} names no capability; there are {', '.join(f'{each}.*' for each in capabilities)}", field=field
        )
    try:
        meant = registry.find(word).name
    except NotFound:
        raise Invalid(
            f"{word!r} is not a kind; say *, a capability such as compute.*, or a full name such as compute.vm",
            field=field,
        ) from None
    raise Invalid(f"{word!r} is not a kind's full name; say {meant}", field=field)
