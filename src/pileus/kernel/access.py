"""Who calls and what they may do: closed data, default deny, tenants bound to their account."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pileus.kernel.errors import Denied


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
    address: str = ""
    """The peer's socket address; never taken from a header."""

    @property
    def operator(self) -> bool:
        """Whether the caller is one of the cluster's own."""
        return self.account_id == "" and self.manager_id == ""

    def allows(self, verb: str, kind: str) -> bool:
        """Tell whether a rule allows ``verb`` on ``kind``."""
        return any(verb in rule.verbs and _matches(rule.kinds, kind) for rule in self.rules)

    def require(self, verb: str, kind: str) -> None:
        """Raises: Denied unless a rule allows it."""
        if self.allows(verb, kind):
            return
        who = f"user {self.user} (role {self.role})"
        if verb == "console":
            raise Denied(f"{who} may not use consoles, logs and ports of VMs; ask for a role with the verb console")
        raise Denied(f"{who} may not {verb} {kind}; ask for a role that may")


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
