"""Which clauses can never hold, by what their fields are: pure decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.policy.types import PolicyClause, PolicyDesired
from pileus.node.monitor.conditions import holds
from pileus.node.monitor.fields import MISSING

_NUMBERS = frozenset({"boots", "misses", "since", "heard_at", "disk_bytes", "net_bytes", "idle_s", "exits"})
_TEXTS = frozenset({"state", "node", "boot_id", "hash", "version", "code"})


def other_type(clause: PolicyClause) -> str:
    """Return why a clause never holds because its field is a number, or is text; empty when it can."""
    type, operator, value = _type_of(clause.field), clause.operator, clause.value
    is_text = isinstance(value, str)
    if type == "number" and operator in ("older", "newer", "contains", "one-of"):
        return "the field is a number, which is compared by is, is-not, above and below"
    if type == "number" and operator in ("is", "is-not") and is_text:
        return f"the field is a number, and {value!r} is none"
    if type == "text" and operator in ("above", "below"):
        return "the field is text, which no number is above or below; older and newer compare versions"
    if type == "text" and operator in ("is", "is-not", "contains") and not is_text:
        return f"""the field is text: --value '"{str(value).lower() if isinstance(value, bool) else value}"'"""
    return ""


def _type_of(field: str) -> Literal["number", "text", ""]:
    """Return what a field of the table holds, empty when only the appliance knows."""
    section, *parts = field.split(".")
    if section == "other" or not parts or (section == "applications" and len(parts) < 2):
        return ""
    if parts[-1] in _NUMBERS:
        return "number"
    return "text" if parts[-1] in _TEXTS else ""


def check_together(policy: Resource, words: Mapping[str, tuple[str, ...]]) -> None:
    """Raises: Invalid for clauses over one field of which all must hold, and never do. ``words``: what a field can be."""
    desired: PolicyDesired = policy.desired
    for field in dict.fromkeys(clause.field for clause in desired.when if desired.match == "all"):
        same = [clause for clause in desired.when if clause.field == field]
        values = _possible(same) or words.get(field, ())
        if values and not any(all(holds(one.operator, value, one.value) for one in same) for value in values):
            said = " and ".join(f"{one.operator} {_shown(one.value)}".rstrip() for one in same)
            raise Invalid(
                f"{policy}: {field} is never all of this at once: {said}; match=any is for one of them",
                field="desired.when",
            )


def _possible(clauses: Sequence[PolicyClause]) -> tuple[Any, ...]:
    """Return values of which one fulfils the clauses over one field if any value does; none: that is not known."""
    bounds: dict[str, list[float]] = {"above": [], "below": []}
    for clause in clauses:
        value = clause.value
        if clause.operator == "is":
            return (value,)
        if clause.operator == "one-of" and isinstance(value, tuple):
            return value
        if clause.operator == "missing":
            return (MISSING,)
        if clause.operator in bounds and isinstance(value, int | float):
            bounds[clause.operator].append(value)
    above, below = bounds["above"], bounds["below"]
    return ((max(above) + min(below)) / 2,) if above and below else ()


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
