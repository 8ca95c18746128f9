"""What becomes of an action, and how its steps go on."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pileus.monitor.action import plan
from pileus.monitor.action.types import ActionAssigned, ActionCause, ActionStep
from pileus.monitor.monitor.plan import shared_out
from pileus.monitor.policy.types import PolicyAct

APP, WHOLE = PolicyAct(do="restart-application"), PolicyAct(do="restart")


def proposal(**changes: Any) -> plan.Proposal:
    common: dict[str, Any] = {
        "vm": "a", "do": (WHOLE,), "policy_mode": "enforce", "monitor_mode": "enforce", "acted": (), "per_hour": 3,
        "acted_whole": frozenset(), "appliances": 100, "fleet_percent": 5,
    }  # fmt: skip
    return plan.Proposal(**(common | changes))


@pytest.mark.parametrize(
    ("changes", "word", "why"),
    [
        ({}, "do", ""),
        ({"policy_mode": "observe"}, "observe", "policy"),
        ({"monitor_mode": "observe"}, "observe", "monitor"),
        ({"silent": 0.3}, "held", "30% of the hosts"),
        ({"silent": 0.29}, "do", ""),
        ({"acted": (1.0, 2.0, 3.0)}, "held", "actions_per_hour"),
        ({"acted": (1.0, 2.0)}, "do", ""),
        ({"per_hour": 0}, "held", "actions_per_hour"),
        ({"acted_whole": frozenset("bcdef")}, "held", "fleet_percent"),
        ({"acted_whole": frozenset("bcde")}, "do", ""),
        ({"acted_whole": frozenset("abcde")}, "do", ""),
        ({"acted_whole": frozenset("bcdef"), "do": (APP,)}, "do", ""),
        ({"acted_whole": frozenset("bc"), "appliances": 5}, "do", ""),
        ({"acted_whole": frozenset("bcd"), "appliances": 5}, "held", "fleet_percent"),
        ({"fleet_percent": 0}, "held", "fleet_percent"),
    ],
)
def test_caps_and_modes_decide(changes: dict[str, Any], word: str, why: str) -> None:
    found = plan.verdict(proposal(**changes))
    assert found[0] == word
    assert why in found[1]


def test_steps_go_on_one_after_another_and_a_failure_ends_them() -> None:
    steps = plan.first_steps((APP, WHOLE, WHOLE))
    assert plan.current(steps) == 0
    steps = plan.with_step(steps, 0, replace(steps[0], state="done", message="ok"))
    assert plan.current(steps) == 1
    failed = plan.with_step(steps, 1, replace(steps[1], state="failed", message="no"))
    assert [step.state for step in failed] == ["done", "failed", "skipped"]
    assert plan.current(failed) == 3
    assigned = ActionAssigned(vm="a", cause=ActionCause(actor="x"), steps=failed)
    assert plan.observed(assigned).state == "failed"
    assert plan.observed(replace(assigned, steps=(ActionStep(do="ask", state="doing"),))).state == "asking"
    assert plan.observed(replace(assigned, verdict="held", why="cap")).message == "cap"


def test_appliances_are_shared_out_and_only_those_of_a_watcher_that_went_move() -> None:
    vms = [f"vm{number}" for number in range(1000)]
    three = shared_out(vms, ["a", "b", "c"])
    assert all(250 < list(three.values()).count(watcher) < 420 for watcher in "abc")
    two = shared_out(vms, ["c", "a"])
    assert all(two[vm] == three[vm] for vm in vms if three[vm] != "b")
    assert set(shared_out(vms, []).values()) == {""}


def test_what_waits_for_a_person_says_for_which_answer() -> None:
    steps = (ActionStep(do="ask", state="doing"),)
    told = plan.observed(ActionAssigned(vm="a", cause=ActionCause(actor="x"), steps=steps))
    assert (told.state, told.message) == ("asking", "it waits for an answer: approved=yes or no")
