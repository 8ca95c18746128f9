"""Incidents: when one begins, that it is acted on once, and how long the next waits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.monitor_engine.engine_world import (
    FAILED,
    HUNG,
    START,
    applications,
    document,
    engine,
    hear,
    keys,
    policy,
    report,
    row,
)

from pileus.node.monitor.engine import Engine
from pileus.node.monitor.standing import ENTRIES_MAX
from pileus.node.monitor.table import with_actions

KEEP = {"p": policy(FAILED)}


def standing(engine: Engine, key: str = "p/web") -> dict[str, Any]:
    found: dict[str, Any] = row(engine)["standing"][key]
    return found


def test_a_failed_application_is_acted_on_at_once_and_once() -> None:
    made = engine(KEEP)
    assert hear(made, START, status=applications(web="running", db="running")).actions == []
    work = hear(made, START + 1, status=applications(web="failed:1", db="running"), origin="push")
    [action] = work.actions
    assert action["key"] == "p/a/web/1"
    assert action["cause"] == {
        "text": 'applications.web.state is "failed" (it is "failed")',
        "clauses": [{"field": "applications.web.state", "operator": "is", "value": "failed", "seen": "failed"}],
    }
    assert (action["acts"], action["mode"], action["epoch"]) == ([{"do": "restart"}], "enforce", 1)
    assert [state["standing"]["p/web"]["acted"] for state in work.states] == [1]
    for second in range(2, 900, 7):
        assert hear(made, START + second, status=applications(web="failed:1", db="running")).actions == []


def test_it_fails_again_after_it_ran_and_that_is_another_incident() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    hear(made, START + 20, status=applications(web="running:1"))
    assert standing(made)["since"] is None
    assert keys(hear(made, START + 40, status=applications(web="failed:2"))) == ["p/a/web/2"]


@pytest.mark.parametrize("more", [{"status": applications(web="failed:2")}, {"boots": 2}])
def test_a_restart_that_is_counted_while_it_stands_is_another_incident(more: dict[str, Any]) -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    said = {"status": applications(web="failed:1"), **more}
    assert hear(made, START + 5, **said).actions == []
    assert standing(made)["incident"] == 2
    assert keys(made.work(START + 10)) == ["p/a/web/2"]


def test_a_counter_that_begins_anew_is_no_incident() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:9"))
    assert hear(made, START + 60, status=applications(web="failed:0")).actions == []
    assert keys(hear(made, START + 120, status=applications(web="failed:1"))) == ["p/a/web/2"]


def test_pauses_double_to_five_minutes_and_are_forgotten_after_ten() -> None:
    made = engine(KEEP)
    now, exits = START, 0
    acted: list[float] = []
    while len(acted) < 9:
        exits += 1
        work = hear(made, now, status=applications(web=f"failed:{exits}"))
        if work.actions:
            acted.append(now)
        now = now + 1
    pauses = [after - before for before, after in pairwise(acted)]
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    later = acted[-1] + 601
    assert hear(made, later, status=applications(web="running:9999")).actions == []
    assert len(hear(made, later + 1, status=applications(web="failed:10000")).actions) == 1
    assert len(hear(made, later + 11, status=applications(web="failed:10001")).actions) == 1


def test_an_action_that_waits_is_due_without_a_word_and_is_dropped_when_it_is_over() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    hear(made, START + 1, status=applications(web="running:1"))
    work = hear(made, START + 2, status=applications(web="failed:2"))
    assert (work.actions, work.next_at) == ([], min(START + 10, work.next_at))
    assert made.work(START + 9.9).actions == []
    hear(made, START + 9.95, status=applications(web="running:2"))
    assert made.work(START + 60).actions == []
    assert keys(hear(made, START + 61, status=applications(web="failed:3"))) == ["p/a/web/3"]


def test_a_cooldown_that_is_longer_holds() -> None:
    made = engine({"p": policy(FAILED, cooldown_s=100)})
    hear(made, START, status=applications(web="failed:1"))
    assert hear(made, START + 99, status=applications(web="failed:2")).actions == []
    assert keys(made.work(START + 100)) == ["p/a/web/2"]


def test_pauses_begin_with_a_cooldown_that_is_longer_and_double_from_it() -> None:
    made = engine({"p": policy(FAILED, cooldown_s=60)})
    acted = [
        START + second
        for second in range(700)
        if hear(made, START + second, status=applications(web=f"failed:{second + 1}")).actions
    ]
    assert [after - before for before, after in pairwise(acted)] == [60, 120, 240]


def test_what_must_last_is_acted_on_when_it_lasted() -> None:
    made = engine({"p": policy({**FAILED, "for_s": 30})})
    hear(made, START, status=applications(web="failed:1"))
    hear(made, START + 29, status=applications(web="running:1"))
    hear(made, START + 30, status=applications(web="failed:1"))
    assert made.work(START + 59.9).actions == []
    assert keys(made.work(START + 60)) == ["p/a/web/1"]


def test_what_must_last_goes_on_lasting_in_another_engine() -> None:
    policies = {"p": policy({**FAILED, "for_s": 30})}
    first = engine(policies)
    [stored] = hear(first, START, status=applications(web="failed:1")).states
    second = Engine()
    said = document(policies)
    said["appliances"]["a"] |= {"epoch": 2, "resume": stored}
    second.configure(said)
    assert second.work(START + 40).actions == []
    work = hear(second, START + 41, status=applications(web="failed:1"))
    assert [(action["key"], action["epoch"]) for action in work.actions] == [("p/a/web/1", 2)]


def test_each_application_is_a_subject_and_all_clauses_must_hold_for_it() -> None:
    made = engine({"p": policy(FAILED, {"field": "applications.*.exits", "operator": "above", "value": 1})})
    status = applications(web="failed:2", db="failed:1", mail="running:7")
    assert keys(hear(made, START, status=status)) == ["p/a/web/1"]


def test_any_of_clauses_acts_once_on_the_appliance_and_once_on_each_application() -> None:
    made = engine({"p": policy(HUNG, FAILED, match="any")})
    said = hear(made, START, process="hung", status=applications(web="failed:1", db="running"))
    assert keys(said) == ["p/a//1", "p/a/web/1"]


def test_an_application_that_is_gone_stands_no_more() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    hear(made, START + 30, status=applications())
    assert standing(made)["since"] is None
    assert keys(hear(made, START + 60, status=applications(web="failed:1"))) == ["p/a/web/2"]


def test_an_appliance_that_is_unknown_neither_begins_nor_ends_an_incident() -> None:
    made = engine(KEEP | {"lost": policy({"field": "execution.state", "operator": "is", "value": "unknown"})})
    hear(made, START, status=applications(web="failed:1"))
    for second in (10, 20, 30):
        made.miss("a", START + second)
    assert keys(made.work(START + 30)) == ["lost/a//1"]
    assert standing(made)["since"] == START
    assert hear(made, START + 60, status=applications(web="failed:1")).actions == []


def test_policies_are_for_appliances_with_their_labels_and_changes_take_effect() -> None:
    said = document({"p": policy(FAILED, labels={"tier": "web"})}, ("a", "b"))
    said["appliances"]["b"]["labels"] = {"tier": "web", "x": "y"}
    made = Engine()
    made.configure(said)
    for vm in ("a", "b"):
        made.hear(report(START, vm, status=applications(web="failed:1")), START)
    assert keys(made.work(START)) == ["p/b/web/1"]
    said["appliances"]["a"]["labels"] = {"tier": "web"}
    made.configure(said)
    assert keys(made.work(START + 1)) == ["p/a/web/1"]
    said["policies"]["q"] = policy(FAILED, mode="observe")
    made.configure(said)
    work = made.work(START + 2)
    assert keys(work) == ["q/a/web/1", "q/b/web/1"]
    assert {action["mode"] for action in work.actions} == {"observe"}


def test_a_policy_that_went_and_came_gives_no_number_again() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    made.configure(document())
    made.work(START + 1)
    made.configure(document(KEEP))
    assert keys(made.work(START + 2)) == ["p/a/web/2"]


def test_names_without_end_make_no_row_without_end_and_no_number_is_given_again() -> None:
    made = engine(KEEP)
    seen: list[str] = []
    for number in range(2 * ENTRIES_MAX):
        seen += keys(hear(made, START + number, status=applications(**{f"x{number}": "failed:1"})))
    assert len(seen) == len(set(seen)) == 2 * ENTRIES_MAX
    assert len(row(made)["standing"]) == ENTRIES_MAX + 1
    seen += keys(hear(made, START + 5000, status=applications(x0="failed:1")))
    assert len(seen) == len(set(seen)) == 2 * ENTRIES_MAX + 1


def test_a_row_that_stayed_behind_its_actions_is_mended() -> None:
    made = engine(KEEP)
    [old] = hear(made, START, status=applications(web="running")).states
    work = hear(made, START + 5, status=applications(web="failed:1"))
    mended = with_actions(old, work.actions)
    assert mended["standing"] == work.states[0]["standing"]
    assert with_actions(mended, work.actions) == mended


def test_nothing_is_due_when_nothing_is_watched() -> None:
    assert Engine().work(START) == ([], [], [], math.inf)
