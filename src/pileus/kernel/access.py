"""Who calls and what they may do: closed data, default deny, tenants bound to their account."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pileus.kernel.errors import Denied
from pileus.kernel.kind import Kind, Resource

OPERATOR = "operator "
"""How ``Principal.described`` begins for an operator, and for nobody else."""


class Rule(Struct, frozen=True, kw_only=True):
    """Allows ``verbs`` on ``kinds``: full names, ``capability.*`` or ``*``. What no rule allows is denied."""

    kinds: tuple[str, ...]
    verbs: tuple[str, ...]


class Principal(Struct, frozen=True, kw_only=True):
    """An authenticated caller. No account and no manager: an operator, whose rules hold everywhere.

    A fleet manager sees what is its own in its own account (none: the cluster) and in those that consented.
    """

    user_id: str
    user: str
    account_id: str
    account: str
    role: str
    rules: tuple[Rule, ...]
    key_id: str = ""
    manager_id: str = ""
    consents: frozenset[str] = frozenset()
    """Ids of the accounts that let the manager act in them."""
    sight: int = 0
    """Revision at which what the manager may see last changed: a watch from before it starts anew."""
    address: str = ""
    """The peer's socket address; never taken from a header."""

    @property
    def operator(self) -> bool:
        """Whether the caller is one of the cluster's own."""
        return self.account_id == "" and self.manager_id == ""

    @property
    def actor(self) -> str:
        """Who it is, in audit and messages; no user can have the name that a manager has there."""
        return f"manager {self.user}" if self.manager_id else self.user

    @property
    def described(self) -> str:
        """Who it is, with the kind of caller: ``user ann``, ``operator admin``, ``manager vpn``."""
        return self.actor if self.manager_id else f"{OPERATOR if self.operator else 'user '}{self.user}"

    def acts_in(self, account_id: str) -> bool:
        """Tell whether the account is the caller's own, or consented."""
        return account_id == self.account_id or account_id in self.consents

    def allows(self, verb: str, kind: str) -> bool:
        """Tell whether a rule allows ``verb`` on ``kind``."""
        return any(verb in rule.verbs and _matches(rule.kinds, kind) for rule in self.rules)

    def require(self, verb: str, kind: str) -> None:
        """Raises: Denied unless a rule allows it."""
        if self.allows(verb, kind):
            return
        who = self.actor if self.manager_id else f"user {self.user} (role {self.role})"
        if verb == "console":
            raise Denied(f"{who} may not use consoles, logs and ports of VMs; ask for a role with the verb console")
        if self.manager_id:
            raise Denied(f"{who} may not {verb} {kind}; what managers may is fixed: `pileus whoami` says it")
        raise Denied(f"{who} may not {verb} {kind}; ask for a role that may")


def sees(principal: Principal, kind: Kind, account_id: str, manager: str) -> bool:
    """Tell whether the caller may know of an object of this account that stands for this manager (or none).

    Everything that is shown, changed, named or announced is decided here; what SQL filters only narrows.
    """
    if principal.operator:
        return True
    if principal.manager_id:
        return manager == principal.manager_id and principal.acts_in(account_id)
    return account_id == principal.account_id or _public(kind, account_id, manager)


def visible(principal: Principal, kind: Kind, resource: Resource) -> bool:
    """Tell whether the caller may know of the object."""
    return sees(principal, kind, resource.account_id, resource.manager)


def is_stranger(principal: Principal, account_id: str) -> bool:
    """Tell whether an object that the caller sees is not of the caller's own: the cluster's, seen by an account's user."""
    return not (principal.operator or principal.manager_id) and account_id != principal.account_id


def nameable(principal: Principal, kind: Kind, account_id: str, target: Resource) -> bool:
    """Tell whether the caller's wish in this account may name ``target``.

    What the caller sees, and what the account does: a manager that makes a node names the account's network.
    """
    if visible(principal, kind, target) or target.id in principal.consents:
        return True
    if principal.manager_id and target.manager:
        return False
    own = account_id != "" and target.account_id == account_id
    return own or _public(kind, target.account_id, target.manager)


def _public(kind: Kind, account_id: str, manager: str) -> bool:
    hidden = kind.managed == "hidden" and manager != ""
    return account_id == "" and kind.readable_by == "everyone" and not hidden


def _matches(patterns: Iterable[str], kind: str) -> bool:
    return any(p in ("*", kind) or (p.endswith(".*") and kind.startswith(p[:-1])) for p in patterns)


def covers(holder: Iterable[Rule], wanted: Rule, kinds: Iterable[str]) -> bool:
    """Tell whether ``holder``'s rules allow everything that ``wanted`` allows, over the ``kinds`` there are."""
    rules = tuple(holder)
    return all(
        any(verb in rule.verbs and _matches(rule.kinds, kind) for rule in rules)
        for kind in kinds
        if _matches(wanted.kinds, kind)
        for verb in wanted.verbs
    )
