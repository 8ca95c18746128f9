"""Conditions: every operator, what cannot be known, and what a document may not say."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.monitor_engine.engine_world import (
    FAILED,
    START,
    applications,
    document,
    engine,
    hear,
    keys,
    policy,
    row,
)

from pileus.node.monitor.conditions import OPERATORS, Clause, combined, truth
from pileus.node.monitor.engine import Engine
from pileus.node.monitor.fields import names, read_field
from pileus.node.monitor.versions import is_older

ROW: dict[str, Any] = {
    "execution": {"state": "running", "boots": 3, "misses": 0},
    "configuration": {"hash": "ab", "version": "1.4.2"},
    "io": {"disk_bytes": 10, "net_bytes": 0, "idle_s": 70},
    "applications": {"web": {"state": "failed", "version": "1.2-rc1", "exits": 2}, "my.db": {"state": "running"}},
    "other": {"role": "applications", "users": ["ann", "bob"], "seats": {"cad": "expired"}, "is_open": True, "n": 1},
}

CASES = [
    ("execution.state", "is", "running", True),
    ("execution.state", "is", "hung", False),
    ("execution.state", "is-not", "hung", True),
    ("execution.state", "is-not", "running", False),
    ("execution.state", "one-of", ["hung", "running"], True),
    ("execution.state", "one-of", ["hung", "paused"], False),
    ("execution.boots", "above", 2, True),
    ("execution.boots", "above", 3, False),
    ("execution.boots", "below", 3.5, True),
    ("execution.boots", "below", 3, False),
    ("execution.state", "above", 0, False),
    ("other.is_open", "above", 0, False),
    ("other.is_open", "is", True, True),
    ("other.is_open", "is", 1, False),
    ("other.n", "is", 1, True),
    ("other.n", "is", True, False),
    ("io.idle_s", "above", 60, True),
    ("configuration.version", "older", "1.10", True),
    ("configuration.version", "older", "1.4.2", False),
    ("configuration.version", "newer", "1.4", True),
    ("configuration.version", "newer", "2", False),
    ("applications.web.version", "older", "1.2", True),
    ("applications.my.db.state", "is", "running", True),
    ("applications.my.db.version", "older", "9", False),
    ("other.users", "contains", "bob", True),
    ("other.users", "contains", "eve", False),
    ("other.seats", "contains", "cad", True),
    ("other.role", "contains", "cat", True),
    ("execution.boots", "contains", "3", False),
    ("other.seats.cad", "is", "expired", True),
    ("other.seats.cad.more", "missing", None, True),
    ("other.nothing", "missing", None, True),
    ("other.role", "missing", None, False),
    ("other.role", "present", "", True),
    ("applications.web", "present", None, True),
    ("applications.mail", "present", None, False),
    ("applications.mail", "missing", None, True),
    ("applications.mail.state", "is-not", "running", False),
    ("applications.mail.state", "is", "running", False),
]


def clause(field: str, operator: str, value: object) -> Clause:
    return Clause("1", read_field(field), operator, value, 0.0)


@pytest.mark.parametrize(("field", "operator", "value", "is_so"), CASES)
def test_a_clause_holds_or_does_not(field: str, operator: str, value: object, is_so: bool) -> None:
    assert truth(clause(field, operator, value), ROW, "") is is_so
    made = Engine()
    made.configure(document({"p": policy({"field": field, "operator": operator, "value": value})}))


def test_every_operator_is_seen_to_hold_and_not_to_hold() -> None:
    assert {case[1::2] for case in CASES} == {(operator, is_so) for operator in OPERATORS for is_so in (True, False)}


def test_a_star_stands_for_every_name() -> None:
    field = read_field("applications.*.state")
    assert names(ROW, field) == ["web", "my.db"]
    found = {name: truth(clause("applications.*.state", "is", "failed"), ROW, name) for name in names(ROW, field)}
    assert found == {"web": True, "my.db": False}
    assert names(ROW, read_field("other.seats.*")) == ["cad"]
    assert names(ROW, read_field("other.role.*")) == []


def test_of_an_unknown_appliance_only_its_execution_is_known() -> None:
    unknown = {**ROW, "execution": {"state": "unknown", "misses": 3}}
    assert truth(clause("execution.state", "is", "unknown"), unknown, "") is True
    assert truth(clause("execution.misses", "above", 2), unknown, "") is True
    assert truth(clause("execution.state", "is-not", "running"), unknown, "") is None
    assert truth(clause("applications.web.state", "is", "failed"), unknown, "") is None
    assert truth(clause("other.role", "missing", None), unknown, "") is None


def test_nothing_is_missing_in_the_words_of_an_appliance_that_has_not_spoken_since_its_start() -> None:
    silent = {**ROW, "applications": {}, "other": {"findings": {}, "ignored": 0}}
    undocumented = {**ROW, "configuration": {"hash": "", "version": "1.4.2"}}
    for row_of in (silent, undocumented):
        assert truth(clause("applications.mail.state", "missing", None), row_of, "") is None
        assert truth(clause("other.nothing", "missing", None), row_of, "") is None
        assert truth(clause("applications.mail.state", "present", None), row_of, "") is False
        assert truth(clause("other.findings.eicar", "missing", None), row_of, "") is True
        assert truth(clause("execution.state", "missing", None), row_of, "") is False


def test_a_policy_on_what_is_missing_waits_for_the_first_words_after_each_boot() -> None:
    made = engine({"p": policy({"field": "applications.web", "operator": "missing"})})
    assert keys(hear(made, START, node="ready", status={})) == []
    assert keys(hear(made, START + 1, status={"role": "applications", "applications": {}})) == []
    said = {"hash": "ab", "status": {"role": "applications", "applications": {}}}
    assert keys(hear(made, START + 2, **said)) == ["p/a//1"]
    assert keys(hear(made, START + 20, boots=2, node="silent", heard_s=-1.0, status={})) == []
    assert keys(hear(made, START + 40, boots=2, hash="ab", status=applications(web="running"))) == []
    assert row(made)["standing"]["p/"]["since"] is None


@pytest.mark.parametrize(
    ("match", "verdicts", "together"),
    [
        ("all", [True, True], True),
        ("all", [True, None], None),
        ("all", [False, None], False),
        ("any", [True, None], True),
        ("any", [False, None], None),
        ("any", [False, False], False),
    ],
)
def test_what_is_not_known_decides_nothing(match: str, verdicts: list[bool | None], together: bool | None) -> None:
    assert combined(match, verdicts) is together


def test_versions_are_compared_as_people_count_them() -> None:
    ordered = [
        "0.9",
        "1.0-alpha",
        "1.0-alpha.1",
        "1.0-alpha.beta",
        "1.0-rc1",
        "1.0",
        "1.0.1",
        "1.2",
        "1.10",
        "1.10a",
        "2",
    ]
    assert all(is_older(one, other) and not is_older(other, one) for one, other in pairwise(ordered))
    for one, other in (("1.0", "v1"), ("1.0.0", "1.0+build7"), ("1.0~rc1", "1.0-rc1")):
        assert not is_older(one, other)
        assert not is_older(other, one)
    assert is_older("9" * 1000, "x" * 1000)


GOOD = document({"p": policy(FAILED)})


def changed(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    made = copy.deepcopy(GOOD)
    place: Any = made
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return made


WHEN = ("policies", "p", "when", 0)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("settings",), [], "settings: this is no object"),
        (("settings", "poll_s"), 0, "settings.poll_s: "),
        (("settings", "poll_s"), float("nan"), "settings.poll_s: "),
        (("settings", "misses"), 2.5, "settings.misses: "),
        (("settings", "misses"), True, "settings.misses: "),
        (("appliances",), [], "appliances: "),
        (("appliances", "../x"), {}, "appliances.../x: this is no id"),
        (("appliances", "a", "epoch"), "1", "appliances.a.epoch: "),
        (("appliances", "a", "labels"), {"x": 1}, "appliances.a.labels: "),
        (("appliances", "a", "resume"), "row", "appliances.a.resume: "),
        (("policies", "p"), None, "policies.p: this is no object"),
        (("policies", "p", "unless"), [], "policies.p.unless: there is no such field"),
        (("policies", "p", "when"), [], "policies.p.when: "),
        (("policies", "p", "when"), [FAILED] * 17, "policies.p.when: "),
        ((*WHEN,), "x", "policies.p.when[0]: this is no object"),
        ((*WHEN, "field"), "execution.stat", "policies.p.when[0].field: execution has the fields"),
        ((*WHEN, "field"), "secrets.key", "policies.p.when[0].field: a field begins with"),
        ((*WHEN, "field"), "applications.*.*", "policies.p.when[0].field: "),
        ((*WHEN, "field"), "applications.we*.state", "policies.p.when[0].field: one whole part"),
        ((*WHEN, "field"), "other..x", "policies.p.when[0].field: this is no field"),
        ((*WHEN, "field"), "other" + ".x" * 9, "policies.p.when[0].field: a field of other"),
        ((*WHEN, "field"), 7, "policies.p.when[0].field: "),
        ((*WHEN, "operator"), "matches", "policies.p.when[0].operator: this is none of is, "),
        ((*WHEN, "operator"), "above", "policies.p.when[0].value: this is no number"),
        ((*WHEN, "operator"), "one-of", "policies.p.when[0].value: "),
        ((*WHEN, "operator"), "missing", "policies.p.when[0].value: missing has none"),
        ((*WHEN, "value"), None, "policies.p.when[0].value: "),
        ((*WHEN, "value"), "x" * 257, "policies.p.when[0].value: "),
        ((*WHEN, "for_s"), -1, "policies.p.when[0].for_s: "),
        ((*WHEN, "unless"), 1, "policies.p.when[0].unless: there is no such field"),
        (("policies", "p", "match"), "most", "policies.p.match: this is none of all, any"),
        (("policies", "p", "do"), [], "policies.p.do: "),
        (("policies", "p", "do"), [{"act": "restart"}], "policies.p.do[0].do: "),
        (("policies", "p", "do"), [{"do": "x", "y": {1, 2}}], "policies.p.do: this is no JSON"),
        (("policies", "p", "do"), [{"do": "x", "y": "y" * 20_000}], "policies.p.do: this is more than"),
        (("policies", "p", "mode"), "force", "policies.p.mode: "),
        (("policies", "p", "cooldown_s"), float("inf"), "policies.p.cooldown_s: "),
    ],
)
def test_a_wrong_document_is_refused_with_the_path_and_nothing_changes(
    path: tuple[Any, ...], value: object, words: str
) -> None:
    made = Engine()
    made.configure(GOOD)
    hear(made, START, status={"applications": {"web": {"state": "running"}}})
    before = row(made)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        made.configure(changed(path, value))
    assert row(made) == before
    assert keys(hear(made, START + 1, status={"applications": {"web": {"state": "failed"}}})) == ["p/a/web/1"]
