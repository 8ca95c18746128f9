"""What policies would have done over a history."""

from __future__ import annotations

import pytest
from tests.unit.monitor_engine.engine_world import FAILED, START, applications, document, engine, policy, report

from pileus.node.monitor.simulate import simulate

HISTORY = [
    report(START, status=applications(web="running")),
    report(START + 10, status=applications(web="failed:1")),
    report(START + 20, status=applications(web="failed:1")),
    report(START + 30, status=applications(web="running:1")),
    report(START + 400, status=applications(web="failed:2")),
]


def test_a_simulation_is_what_an_engine_does() -> None:
    policies = {"p": policy(FAILED), "q": policy(FAILED, mode="observe", cooldown_s=1000)}
    live = engine(policies)
    done = []
    for each in HISTORY:
        live.hear(each, each["at"])
        done += live.work(each["at"]).actions
    would = simulate(document(policies), iter(HISTORY))
    assert would == done
    assert [action["key"] for action in would] == ["p/a/web/1", "q/a/web/1", "p/a/web/2"]


def test_time_passes_between_reports() -> None:
    policies = {"p": policy({**FAILED, "for_s": 5})}
    assert [action["at"] for action in simulate(document(policies), HISTORY)] == [START + 15]


def test_misses_are_part_of_a_history_and_its_row_is_not() -> None:
    said = document({"p": policy({"field": "execution.state", "operator": "is", "value": "unknown"})})
    said["appliances"]["a"]["resume"] = {"at": START + 9999, "execution": {"state": "hung"}}
    misses = [{"vm": "a", "origin": "miss", "at": START + second} for second in (10, 20, 30)]
    assert [action["at"] for action in simulate(said, [HISTORY[0], *misses, {"vm": "z"}, {}])] == [START + 30]


def test_a_wrong_document_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^policies\.p\.when: "):
        simulate(document({"p": policy()}), HISTORY)
