"""Clauses that could never hold are refused, and those that can are taken."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import convert

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.policy.plan import check_clauses
from pileus.monitor.policy.types import PolicyDesired


def check(*clauses: tuple[str, str, Any], match: str = "all") -> None:
    """Raises: Invalid."""
    when = [{"field": field, "operator": operator, "value": value} for field, operator, value in clauses]
    wish = {"monitor": "watch", "when": when, "do": [{"do": "ask"}], "match": match}
    policy = Resource(
        id="p", kind="monitor.policy", name="p", account="acme", account_id="a", desired=convert(wish, PolicyDesired)
    )
    check_clauses(policy)


@pytest.mark.parametrize(
    ("field", "operator", "value", "words"),
    [
        ("execution.boots", "is", "many", "the field is a number, and 'many' is none"),
        ("execution.boots", "above", "many", "it compares numbers, and 'many' is none"),
        ("applications.web.exits", "contains", "3", "the field is a number"),
        ("io.idle_s", "one-of", ["1", "2"], "the field is a number"),
        ("execution.state", "above", 3, "the field is text"),
        ("applications.*.version", "is", 2, """text: --value '"2"'"""),
        ("applications.web.version", "is", True, """text: --value '"true"'"""),
    ],
)
def test_what_compares_another_type_is_refused(field: str, operator: str, value: Any, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        check((field, operator, value))
    assert refused.value.message.startswith(f"policy p: clause 1, {field} {operator}: ")
    assert words in refused.value.message


@pytest.mark.parametrize(
    "clauses",
    [
        (("execution.state", "is", "hung"), ("execution.state", "is", "running")),
        (("execution.state", "is", "hung"), ("execution.state", "is-not", "hung")),
        (("execution.state", "one-of", ["hung", "silent"]), ("execution.state", "is", "stopped")),
        (("execution.boots", "above", 5), ("io.idle_s", "above", 1), ("execution.boots", "below", 3)),
        (("execution.boots", "is", 2), ("execution.boots", "above", 2)),
        (("other.role", "missing", ""), ("other.role", "contains", "web")),
        (("other.load", "above", 5), ("other.load", "below", 5)),
    ],
)
def test_what_never_holds_together_is_refused_unless_one_is_enough(clauses: tuple[tuple[str, str, Any], ...]) -> None:
    with pytest.raises(Invalid, match="is never all of this at once"):
        check(*clauses)
    check(*clauses, match="any")


def test_what_may_hold_together_is_taken() -> None:
    check(("execution.boots", "above", 3), ("execution.boots", "below", 5))
    check(("execution.state", "one-of", ["hung", "silent"]), ("execution.state", "is-not", "hung"))
    check(("applications.*.state", "is", "failed"), ("applications.*.exits", "above", 3))
    check(("applications.web.version", "older", "2"), ("applications.web.version", "newer", "1"))
    check(("other.load", "is", 3), ("other.count", "is", "3"), ("other.names", "contains", 3))
    check(("applications.web", "missing", ""))
