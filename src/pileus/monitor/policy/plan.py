"""What a policy is for the engine, and which acts can be: pure decisions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from pileus.kernel.access import Principal
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.policy.clauses import check_together, other_type
from pileus.monitor.policy.types import PolicyAct, PolicyClause, PolicyDesired
from pileus.monitor.state.types import ExecutionState, NodeState
from pileus.node.monitor.engine import Engine

_CLAUSE = re.compile(r"when\[(\d+)\]\.(\w+)[^:]*: (.*)")
_LAST = frozenset({"terminate"})
_OF_BOTH = frozenset({"restart", "suspend", "terminate"})

WORDS: dict[str, tuple[str, ...]] = {"execution.state": get_args(ExecutionState), "execution.node": get_args(NodeState)}
"""Fields that have one of a few words."""

NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "restart-application": (("create", "fleet.request"),),
    "suspend-application": (("create", "fleet.request"),),
    "resume-application": (("create", "fleet.request"),),
    "terminate-application": (("create", "fleet.request"),),
    "restart": (("update", "compute.vm"), ("update", "fleet.node")),
    "suspend": (("update", "compute.vm"), ("update", "fleet.node")),
    "isolate": (("update", "compute.vm"),),
    "snapshot": (("create", "storage.snapshot"),),
    "stop": (("update", "compute.vm"), ("update", "fleet.node")),
    "terminate": (("delete", "compute.vm"), ("delete", "fleet.node")),
    "configure": (("update", "fleet.node"),),
    "ask": (),
    "webhook": (),
}
"""By verb: (verb, kind) that whoever has it done must be allowed: nobody has done by a monitor what they may not do."""


def engine_policy(policy: Resource) -> dict[str, Any]:
    """Return the policy as the engine reads it."""
    desired: PolicyDesired = policy.desired
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(desired))  # lists, as it travels
    del plain["monitor"]
    return {"name": policy.name, **plain}


def check_whole(policy: Resource) -> None:
    """Raises: Invalid naming the clause or act that cannot be. The engine that will run the policy reads it, too."""
    desired: PolicyDesired = policy.desired
    check_acts(policy, desired.do)
    is_found = any("*" in clause.field.split(".") for clause in desired.when)
    for number, act in enumerate(desired.do):
        if act.do.endswith("-application") and not act.application and not is_found:
            raise Invalid(
                f"{policy}: act {number + 1}, {act.do}: say which application it is, or let a clause find it with "
                "* such as applications.*.state",
                field=f"desired.do.{number}.application",
            )
    check_clauses(policy)
    try:
        Engine().configure({"settings": {}, "appliances": {}, "policies": {"policy": engine_policy(policy)}})
    except ValueError as wrong:
        raise _refusal(policy, str(wrong)) from None
    check_words(policy)


def _refusal(policy: Resource, words: str) -> Invalid:
    """Return what the engine says, in words for people."""
    words = words.removeprefix("policies.policy.")
    found = _CLAUSE.fullmatch(words)
    if found is None:
        return Invalid(f"{policy}: {words}", field="desired.when")
    place, name, why = int(found[1]), found[2], found[3]
    desired: PolicyDesired = policy.desired
    shown = f"{name} {getattr(desired.when[place], name, '')!r}"
    return Invalid(f"{policy}: clause {place + 1}, {shown}: {why}", field=f"desired.when.{place}.{name}")


def check_acts(owner: Resource, acts: Iterable[PolicyAct]) -> None:
    """Raises: Invalid for an act that lacks what it needs, or has what it does not take."""
    ended = ""
    for number, act in enumerate(acts):
        field, words = ("", f"nothing can be done after {ended}: leave it out") if ended else _wrong(act)
        if words:
            where = f"desired.do.{number}{field and f'.{field}'}"
            raise Invalid(f"{owner}: act {number + 1}, {act.do}: {words}", field=where)
        ended = act.do if act.do in _LAST else ""


def _wrong(act: PolicyAct) -> tuple[str, str]:
    """Return field and words of what is wrong with an act; empty for nothing."""
    if act.do == "configure" and not act.document:
        return "document", """it needs a document: section, key, entry, such as {"applications": {"web": {…}}}"""
    if act.document and act.do != "configure":
        return "document", "it takes no document; only configure does"
    if act.do == "webhook" and not act.url.startswith("https://"):
        return "url", "it needs a url that begins with https://"
    if act.url and act.do != "webhook":
        return "url", "it takes no url; only webhook does"
    if act.application and not act.do.endswith("-application"):
        also = f"; {act.do}-application does" if act.do in _OF_BOTH else ""
        return "application", f"it is done to the whole appliance, and takes no application{also}"
    return "", ""


def check_clauses(policy: Resource) -> None:
    """Raises: Invalid for a clause that no row could ever fulfil, or whose value is of another type than is compared."""
    desired: PolicyDesired = policy.desired
    for number, clause in enumerate(desired.when):
        words = _never(clause) or other_type(clause)
        if words:
            place = f"clause {number + 1}, {clause.field} {clause.operator}"
            raise Invalid(f"{policy}: {place}: {words}", field=f"desired.when.{number}.value")
    check_together(policy, WORDS)


def _never(clause: PolicyClause) -> str:
    """Return why a clause can never hold; empty when it can."""
    value, operator = clause.value, clause.operator
    if operator in ("above", "below"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number else f"it compares numbers, and {value!r} is none"
    if operator in ("older", "newer") and (not isinstance(value, str) or not value):
        return f"""it compares versions, which are text: --value '"{value or "1.10"}"'"""
    if operator in ("missing", "present"):
        return "it takes no value" if value != "" else ""
    if operator == "one-of":
        return "" if isinstance(value, tuple) and value else """it takes a list: --value '["hung", "silent"]'"""
    if isinstance(value, tuple):
        return "it takes one value; one-of takes a list"
    if value == "" and operator in ("is", "contains"):
        return "say with what it is compared: value"
    return ""


def check_words(policy: Resource) -> None:
    """Raises: Invalid for a value that its field never has."""
    desired: PolicyDesired = policy.desired
    for number, clause in enumerate(desired.when):
        known = WORDS.get(clause.field, ())
        is_word = bool(known) and clause.operator in ("is", "is-not", "one-of")
        values = clause.value if isinstance(clause.value, tuple) else (clause.value,)
        for value in values if is_word else ():
            if value not in known:
                raise Invalid(
                    f"{policy}: clause {number + 1}: {clause.field} is never {value!r}; it is one of {', '.join(known)}",
                    field=f"desired.when.{number}.value",
                )


def require_rights(principal: Principal, acts: Iterable[PolicyAct]) -> None:
    """Raises: Denied unless the caller may do all of it by hand."""
    for act in acts:
        for verb, kind in NEEDS[act.do]:
            principal.require(verb, kind)
