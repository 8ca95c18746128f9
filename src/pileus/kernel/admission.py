"""What is checked before a wish is taken, inside the transaction that takes it. Kinds override what they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from msgspec import Struct

from pileus.kernel.access import Principal, Rule, covers, nameable
from pileus.kernel.errors import Denied, Invalid
from pileus.kernel.ids import is_id
from pileus.kernel.kind import Kind, Resource
from pileus.kernel.reader import Reader
from pileus.kernel.shape import references
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction


class Change(Struct, frozen=True):
    """A wish about to be taken: ``old`` is None for a new resource, ``links`` maps paths of references to ids."""

    principal: Principal
    old: Resource | None
    new: Resource
    links: dict[str, str]


class Decision(Struct, frozen=True, kw_only=True):
    """One answer of a dry run: what would be decided about ``subject``, and why."""

    subject: str
    verdict: str
    reason: str = ""
    message: str = ""


class Admission:
    """The checks of a kind that need none of its own."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the resource to write: complete it, check across fields, charge quotas. Raises: Rejected."""
        return change.new

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Make what comes with a new resource; returns what the answer says besides the resource (a key's secret)."""
        return {}

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict when the user must do something else first; Denied when it is not the caller's to delete."""

    async def preview(self, tx: Transaction, resource: Resource, principal: Principal) -> list[Decision]:
        """Return what would be decided about a resource that a dry run has just written, as far as the caller may know."""
        return []


class Made(Struct, frozen=True):
    """A new resource, and what is said only now (a key's secret)."""

    resource: Resource
    extra: Mapping[str, Any]


async def look_up(
    reader: Reader, kind: Kind, account_id: str, word: str, is_known: Callable[[Resource], bool]
) -> Resource | None:
    """Return the resource that ``word`` (id or name) means to somebody in this account, or None.

    An account has its own objects and the cluster's public ones; the cluster (no account) its own by name, and everything
    by id. Of those only what the caller may know (``is_known``) is there.
    """
    if is_id(word):
        found = await _by_id(reader, kind, account_id, word)
        return found if found is not None and is_known(found) else None
    if account_id:
        own = await reader.find(kind.name, account_id, word)
        if own is not None and is_known(own):
            return own
    if kind.scope == "account" or (account_id and kind.readable_by == "operator"):
        return None
    common = await reader.find(kind.name, "", word)
    return common if common is not None and is_known(common) else None


async def _by_id(reader: Reader, kind: Kind, account_id: str, id: str) -> Resource | None:
    found = await reader.find_id(id)
    if found is None or found.kind != kind.name:
        return None
    public = found.account_id == "" and kind.readable_by == "everyone"
    return found if not account_id or found.account_id == account_id or public else None


async def resolve(
    tx: Transaction, principal: Principal, new: Resource, held: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return path to id for every reference of the wish. Raises: Invalid (no-such-object) naming the field.

    Another account's object gives the same answer as none; so does what the caller may not name. ``held``: what an
    object that is there already refers to. That may be named again, and fields that never change keep it unlooked at.
    """
    links = {}
    desired, account_id, account = new.desired, new.account_id, new.account
    known = frozenset((held or {}).values())
    fixed = tx.registry[new.kind].immutable if held is not None else frozenset()
    for path, kind_name, word in references(desired):
        if path.partition(".")[0] in fixed:
            if held is not None and path in held:
                links[path] = held[path]
            continue
        kind = tx.registry[kind_name]
        may_name = functools.partial(_may_name, principal, kind, account_id, known)
        target = await look_up(tx, kind, account_id, word, may_name)
        if target is None or target.deleting:
            where = f" in account {account}" if account else ""
            raise Invalid(
                f"there is no {kind.short} {word!r}{where}{list_hint(kind, operator=not account_id)}",
                code="no-such-object",
                field=f"desired.{path}",
            )
        links[path] = target.id
    return links


def _may_name(principal: Principal, kind: Kind, account_id: str, known: Container[str], target: Resource) -> bool:
    return nameable(principal, kind, account_id, target) or target.id in known


def list_hint(kind: Kind, *, operator: bool) -> str:
    """Return the end of a message that says how to see what there is; empty for who may not list the kind."""
    hidden = kind.scope == "cluster" and kind.readable_by == "operator" and not operator
    return "" if hidden else f"; `pileus get {kind.short}` lists what there is"


async def only(tx: Transaction, kind_name: str, account_id: str, flag: str) -> Resource:
    """Return the one object of a kind when nobody said which. Raises: Invalid when there is none, or several."""
    kind = tx.registry[kind_name]
    found = [each for each in await tx.matching(Filter(kind=kind_name, account_id=account_id)) if not each.deleting]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Invalid(f"there is no {kind.short} yet; `pileus create {kind.short}` makes one", field=f"desired.{flag}")
    raise Invalid(f"there are several {kind.plural}; say which with --{flag}", field=f"desired.{flag}")


def refuse_more_powerful(tx: Transaction, principal: Principal, rules: Iterable[Rule], what: str) -> None:
    """Raises: Denied when ``what`` has rights that the caller has not: nobody gives, changes or takes away more."""
    kinds = [kind.name for kind in tx.registry]
    for rule in rules:
        if not covers(principal.rules, rule, kinds):
            raise Denied(
                f"{what} allows {', '.join(rule.verbs)} on {', '.join(rule.kinds)}, which you may not do yourself"
            )


async def make(tx: Transaction, admissions: Mapping[str, Admission], principal: Principal, new: Resource) -> Made:
    """Take a new wish: resolve its references, admit it, write it, make what comes with it. Raises: Rejected."""
    links = await resolve(tx, principal, new)
    admission = admissions.get(new.kind) or Admission()
    admitted = await admission.admit(tx, Change(principal, None, new, links))
    made = await tx.create(admitted, links)
    return Made(await tx.get(made.id), await admission.created(tx, made, principal))
