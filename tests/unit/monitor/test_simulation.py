"""A simulation over the past does what an engine did, and holds what the caps would have held."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest
from tests.unit.monitor_engine.engine_world import FAILED, HUNG, START, applications, document, policy, report

from pileus.monitor.monitor.types import MonitorDesired
from pileus.monitor.policy.types import PolicyAct, PolicyClause, PolicyDesired
from pileus.monitor.simulation import Moment, Rules, caps, engine_policies, simulate
from pileus.monitor.state.types import StateExecution, StateObserved
from pileus.node.monitor.engine import Engine

DAY_S = 86_400.0
STOPPED = PolicyDesired(
    monitor="m",
    when=(PolicyClause(field="execution.state", value="stopped"),),
    do=(PolicyAct(do="restart"),),
    cooldown_s=0,
)


def rules(desired: PolicyDesired = STOPPED, labels: Any = None, **monitor: Any) -> Rules:
    """Return one policy with the terms of its monitor."""
    plain = {"name": "mend", **msgspec.json.decode(msgspec.json.encode(desired))}
    del plain["monitor"]
    read = engine_policies({"p": plain})
    return Rules(monitor=MonitorDesired(**monitor), policies={"p": desired}, read=read, labels=labels or {})


def moment(at: float, state: Any, vm: str = "a", boots: int = 1) -> Moment:
    """Return a row as it was written then."""
    row = StateObserved(at=START + at, execution=StateExecution(state=state, boots=boots, since=START))
    return Moment(START + at, vm, f"name-{vm}", row)


def told(past: list[Moment], given: Rules, since: float = -1e18, until: float = 0.0) -> list[tuple[Any, ...]]:
    """Return (VM, asked at, done at) of each action, from START."""
    found = simulate(given, past, START + since, START + until)
    return [
        (each.vm, each.at - START, None if each.done_at is None else each.done_at - START) for each in found.actions
    ]


@pytest.mark.parametrize("seed", range(30))
def test_it_asks_for_what_an_engine_asked_for_that_wrote_the_past(seed: int) -> None:
    chance = random.Random(seed)
    when = [FAILED] if seed % 2 else [{**FAILED, "for_s": 5}, HUNG]
    said = {"p": policy(*when, match="any", cooldown_s=chance.choice([0, 10, 30]), do=[{"do": "restart-application"}])}
    live = Engine()
    live.configure(document(said, ("a", "b")))
    past: list[Moment] = []
    done: list[dict[str, Any]] = []

    def work(at: float) -> float:
        found = live.work(at)
        done.extend(found.actions)
        past.extend(Moment(at, row["vm"], row["vm"], msgspec.convert(row, StateObserved)) for row in found.states)
        return found.next_at

    now, exits, next_at = START, 0, math.inf
    for _ in range(200):
        now += chance.uniform(1.0, 20.0)
        while next_at < now:
            next_at = work(next_at)
        exits += chance.random() < 0.3
        word = chance.choice(["running", f"failed:{exits}", f"failed:{exits}"])
        given = report(now, vm=chance.choice("ab"), status=applications(web=word, db="running"))
        given["vitals"]["process"] = chance.choice(["running", "running", "running", "hung"])
        live.hear(given, now)
        next_at = work(now)
    desired = msgspec.convert({"monitor": "m", **{k: v for k, v in said["p"].items() if k != "name"}}, PolicyDesired)
    monitor = MonitorDesired(actions_per_hour=1000, fleet_percent=100)
    given_rules = Rules(monitor=monitor, policies={"p": desired}, read=engine_policies(said))
    would = simulate(given_rules, past)
    assert [(each.vm, each.subject, each.incident, each.at) for each in would.actions] == [
        (action["vm"], action["subject"], action["incident"], action["at"]) for action in done
    ]
    assert len(done) > 10


def test_more_than_the_hours_share_is_held_and_done_later_if_it_stands_still() -> None:
    past = [moment(0, "running")]
    for number in range(4):
        past += [moment(1000 * number + 10, "stopped"), moment(1000 * number + 500, "running")]
    past[-1] = moment(4500, "running")
    found = told(past, rules(fleet_percent=100))
    assert found == [("a", 10, 10), ("a", 1010, 1010), ("a", 2010, 2010), ("a", 3010, 3610)]
    past[-1] = moment(3500, "running")
    result = simulate(rules(fleet_percent=100), past, until=START + DAY_S)
    assert [each.ended for each in result.actions] == ["", "", "", "it passed without it"]
    assert caps(result.actions) == {"actions_per_hour": 1, "fleet_percent": 0}
    assert "the most that its monitor's actions_per_hour (3) allows" in result.actions[-1].why


def test_of_many_that_fail_at_once_only_the_fleets_share_is_acted_on_and_the_rest_after_ten_minutes() -> None:
    vms = [f"v{number}" for number in range(10)]
    past = [moment(0, "running", vm) for vm in vms] + [moment(100, "stopped", vm) for vm in vms]
    found = told(past, rules(), until=DAY_S)
    assert [done for _, _, done in found] == [100] * 3 + [700] * 3 + [1300] * 3 + [1900]
    assert [done for _, _, done in told(past, rules(fleet_percent=0), until=DAY_S)] == [None] * 10


def test_what_stood_already_is_acted_on_at_the_beginning_and_what_was_before_is_not() -> None:
    past = [moment(0, "stopped"), moment(50, "running"), moment(60, "stopped", "b"), moment(500, "stopped")]
    assert told(past, rules(), since=100) == [("b", 100, 100), ("a", 500, 500)]
    result = simulate(rules(), past[:3], START + 100)
    assert result.began == 0.0, "nothing is known since then"
    assert told(past[:3], rules(), since=100, until=200) == [("b", 100, 100)]


def test_time_passes_until_the_past_is_known_to_have_ended() -> None:
    lasting = msgspec.structs.replace(
        STOPPED, when=(PolicyClause(field="execution.state", value="stopped", for_s=3600),)
    )
    past = [moment(0, "stopped"), moment(5, "stopped", "b")]
    assert told(past, rules(lasting)) == []
    assert told(past, rules(lasting), until=3603) == [("a", 3600, 3600)]
    gone = [*past, Moment(START + 1000, "a", "name-a", None)]
    assert told(gone, rules(lasting), until=7200) == [("b", 3605, 3605)], "one that is gone needs nothing"


def test_a_policy_for_labels_is_for_those_that_have_them() -> None:
    labelled = msgspec.structs.replace(STOPPED, labels={"tier": "db"})
    past = [moment(0, "stopped"), moment(0, "stopped", "b")]
    assert told(past, rules(labelled, {"b": {"tier": "db", "x": "y"}})) == [("b", 0, 0)]


def test_an_appliance_that_makes_up_incidents_is_cut_short() -> None:
    past = [moment(number, "stopped", boots=number) for number in range(1, 3500)]
    eager = rules(actions_per_hour=0)
    result = simulate(eager, past)
    assert len(result.actions) + result.unwritten < 30, "it backs off as the engine does"
    assert all(each.done_at is None and each.ended for each in result.actions)
