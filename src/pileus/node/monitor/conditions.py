"""Conditions as closed data: whether a clause holds for what a row says. Pure.

A clause holds, does not, or cannot be known (None); nothing follows from what cannot be known. Of an appliance that is
``unknown``, only what is said of its execution is known; and ``is-not`` never holds because of not knowing. Nothing is
missing in the words of an appliance that has not said what its document came to since it was started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pileus.node.monitor.fields import MISSING, Field, value
from pileus.node.monitor.versions import is_older

Verdict = bool | None

SAID_OF_IT = ("findings", "ignored")
"""Words of ``other`` that are not the appliance's own."""


class Clause(NamedTuple):
    """One condition. ``id`` tells it from others whatever their order; it must hold for ``for_s`` before it counts."""

    id: str
    field: Field
    operator: str
    value: Any
    for_s: float


def _is(seen: Any, wanted: Any) -> bool:
    return bool(isinstance(seen, bool) == isinstance(wanted, bool) and seen == wanted)


def _is_number(seen: Any) -> bool:
    return isinstance(seen, int | float) and not isinstance(seen, bool)


def _contains(seen: Any, wanted: Any) -> bool:
    if isinstance(seen, str):
        return isinstance(wanted, str) and wanted in seen
    return isinstance(seen, list | dict) and any(_is(each, wanted) for each in seen)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "is": _is,
    "is-not": lambda seen, wanted: not _is(seen, wanted),
    "one-of": lambda seen, wanted: any(_is(seen, each) for each in wanted),
    "above": lambda seen, wanted: _is_number(seen) and bool(seen > wanted),
    "below": lambda seen, wanted: _is_number(seen) and bool(seen < wanted),
    "older": lambda seen, wanted: isinstance(seen, str) and seen != "" and is_older(seen, wanted),
    "newer": lambda seen, wanted: isinstance(seen, str) and seen != "" and is_older(wanted, seen),
    "contains": _contains,
}
"""Of something that is there; what is not there fulfils none of them."""

OPERATORS = (*_COMPARISONS, "missing", "present")


def holds(operator: str, seen: Any, wanted: Any) -> bool:
    """Return whether ``seen`` fulfils it."""
    if operator in ("missing", "present"):
        return (seen is MISSING) == (operator == "missing")
    return seen is not MISSING and _COMPARISONS[operator](seen, wanted)


def truth(clause: Clause, row: Mapping[str, Any], subject: str) -> Verdict:
    """Return whether the clause is true of the row now, whatever ``for_s`` says."""
    field = clause.field
    if row["execution"]["state"] == "unknown" and (
        field.section != "execution" or (field.parts[1] == "state" and clause.operator == "is-not")
    ):
        return None
    if clause.operator == "missing" and _is_its_word(field) and not _has_spoken(row):
        return None
    return holds(clause.operator, value(row, field, subject), clause.value)


def _is_its_word(field: Field) -> bool:
    """Return whether the appliance itself says what is there; what scans found is said of it."""
    return field.section in ("applications", "other") and field.parts[1] not in SAID_OF_IT


def _has_spoken(row: Mapping[str, Any]) -> bool:
    """Return whether it has said how its role is, with a document in force."""
    has_words = bool(row["applications"]) or any(word not in SAID_OF_IT for word in row["other"])
    return has_words and bool(row["configuration"]["hash"])


def combined(match: str, verdicts: Iterable[Verdict]) -> Verdict:
    """Return what ``all`` or ``any`` of them say together."""
    found = set(verdicts)
    decisive = match == "any"
    if decisive in found:
        return decisive
    return None if None in found else not decisive and bool(found)
