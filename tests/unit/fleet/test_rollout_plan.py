"""How rollouts go on: every phase x wish x node, a server that is cut after each step, and never more than the wave."""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from pileus.fleet.rollout.plan import (
    AT_ONCE,
    Decision,
    NodeSeen,
    Results,
    ahead_of,
    decide,
    looked_at,
    observed_of,
    waves_of,
)
from pileus.fleet.rollout.types import OVER, RolloutAssigned, RolloutDesired, RolloutResult

TIMEOUT_S, SETTLE_S = 60, 10
WAVES = (5, 25, 100)
Conduct = Literal["good", "refuses", "silent", "gone", "touched", "barred"]


class Fleet:
    """Nodes that do what they are told, or do not, and a rollout over them; ``step`` is one look of the controller."""

    def __init__(self, count: int, conducts: dict[str, Conduct] | None = None, **wish: Any) -> None:
        self.ids = [f"n{number:04}" for number in range(count)]
        self.conducts: dict[str, Conduct] = dict.fromkeys(self.ids, "good")
        self.conducts.update(conducts or {})
        self.turned: dict[str, Literal["", "forward", "back"]] = dict.fromkeys(self.ids, "")
        self.desired = RolloutDesired(**{"manager": "m", "timeout_s": TIMEOUT_S, "settle_s": SETTLE_S, **wish})
        self.assigned = RolloutAssigned(manager="m", waves=waves_of(self.ids, WAVES))
        wave_of = {id: number for number, wave in enumerate(self.assigned.waves) for id in wave}
        self.results: Results = tuple(
            RolloutResult(node=id, name=id, account="acme", wave=wave_of[id]) for id in self.ids
        )
        self.now = 1000.0
        self.order: list[str] = []

    def wish(self, **changes: Any) -> None:
        self.desired = replace(self.desired, **changes)

    def seen(self, id: str) -> NodeSeen:
        conduct, turned = self.conducts[id], self.turned[id]
        if conduct == "gone":
            return NodeSeen(state="gone", message="deleted")
        if not turned or (conduct == "touched" and turned == "forward"):
            return NodeSeen(state="other", turned=turned, message="touched")
        if conduct == "refuses" and turned == "forward":
            return NodeSeen(state="refused", turned=turned, message="it cannot")
        if conduct == "silent" and turned == "forward":
            return NodeSeen(state="moving", turned=turned, message="silent")
        return NodeSeen(state="in-force", turned=turned)

    def decide(self) -> Decision:
        seen = {one.node: self.seen(one.node) for one in looked_at(self.results)}
        return decide(self.desired, self.assigned, self.results, seen, self.now)

    def step(self) -> Decision:
        decision = self.decide()
        assert len(decision.changes) <= AT_ONCE
        self.assigned, results = decision.assigned, list(decision.results)
        for id in decision.changes:
            if self.conducts[id] == "barred":
                at = self.ids.index(id)
                results[at] = replace(results[at], state="skipped", message="no consent")
                continue
            self.turned[id] = decision.assigned.turn
            self.order.append(id)
        self.results = tuple(results)
        return decision

    def run(self, steps: int = 200) -> str:
        for _ in range(steps):
            self.step()
            if self.assigned.phase in ("done", "rolled-back", "stopped"):
                break
            self.now += 5.0
        return self.assigned.phase

    def states(self) -> set[str]:
        return {one.state for one in self.results}

    def ahead(self) -> list[str]:
        return [id for id in self.ids if self.turned[id] == "forward"]


@pytest.mark.parametrize(
    ("count", "percents", "sizes"),
    [
        (20, (5, 25, 100), [1, 4, 15]),
        (1, (5, 25, 100), [1]),
        (3, (5, 25, 100), [1, 2]),
        (100, (1, 100), [1, 99]),
        (7, (100,), [7]),
        (2000, (5, 25, 100), [100, 400, 1500]),
    ],
)
def test_waves_have_a_node_at_least_and_all_of_them_by_the_end(
    count: int, percents: tuple[int, ...], sizes: list[int]
) -> None:
    ids = [str(number) for number in range(count)]
    waves = waves_of(ids, percents)
    assert [len(wave) for wave in waves] == sizes
    assert [id for wave in waves for id in wave] == ids


def test_each_wave_begins_when_the_one_before_was_healthy_for_long_enough() -> None:
    fleet = Fleet(20)
    began: dict[int, float] = {}
    for _ in range(100):
        fleet.step()
        began.setdefault(fleet.assigned.wave, fleet.now)
        assert len(fleet.ahead()) <= (1, 5, 20)[fleet.assigned.wave]
        fleet.now += 1.0
    assert fleet.assigned.phase == "done"
    assert began[1] - began[0] >= SETTLE_S
    assert began[2] - began[1] >= SETTLE_S
    assert fleet.order == fleet.ids
    assert fleet.states() == {"done"}


def test_a_node_that_fails_again_while_its_wave_settles_keeps_the_gate_shut() -> None:
    fleet = Fleet(20, on_failure="pause")
    fleet.step()
    fleet.now += 5.0
    fleet.step()
    assert fleet.assigned.healthy_since
    fleet.conducts["n0000"] = "silent"
    fleet.now += 5.0
    fleet.step()
    assert not fleet.assigned.healthy_since
    assert fleet.run() == "stopped"
    assert fleet.ahead() == ["n0000"]
    assert "silent" in fleet.results[0].failure


@pytest.mark.parametrize("conduct", ["refuses", "silent"])
@pytest.mark.parametrize("bad", [0, 3, 19])
def test_a_failure_turns_it_back_says_which_and_why_and_a_new_attempt_begins_anew(conduct: Conduct, bad: int) -> None:
    id = f"n{bad:04}"
    fleet = Fleet(20, {id: conduct})
    assert fleet.run() == "rolled-back"
    assert fleet.ahead() == []
    changed = [one for one in fleet.order if fleet.order.count(one) == 2]
    half = len(fleet.order) // 2
    assert fleet.order[half:] == list(reversed(changed[:half]))
    observed = observed_of(fleet.assigned, fleet.results)
    assert observed.failed == 1
    assert id in observed.message
    assert fleet.results[bad].state == "rolled-back"
    assert fleet.results[bad].failure
    fleet.step()
    assert fleet.ahead() == []
    fleet.conducts[id] = "good"
    fleet.wish(attempt=1)
    assert fleet.run() == "done"
    assert fleet.ahead() == fleet.ids
    assert fleet.states() == {"done"}
    assert not observed_of(fleet.assigned, fleet.results).message


def test_a_failure_stops_it_when_that_is_wished_and_a_new_attempt_goes_on_with_what_failed() -> None:
    fleet = Fleet(20, {"n0002": "refuses"}, on_failure="pause")
    assert fleet.run() == "stopped"
    assert fleet.ahead() == fleet.ids[:5]
    fleet.now += 1000.0
    fleet.step()
    assert fleet.ahead() == fleet.ids[:5]
    fleet.wish(attempt=1)
    assert fleet.run() == "stopped"
    fleet.conducts["n0002"] = "good"
    fleet.wish(attempt=2)
    assert fleet.run() == "done"
    assert fleet.states() == {"done"}


def test_as_many_may_fail_as_are_allowed() -> None:
    fleet = Fleet(20, {"n0002": "refuses", "n0010": "silent"}, failures_max=2)
    assert fleet.run() == "done"
    observed = observed_of(fleet.assigned, fleet.results)
    assert (observed.done, observed.failed) == (18, 2)
    fleet.conducts.update(n0002="good", n0010="good")
    fleet.wish(attempt=1)
    assert fleet.run() == "done"
    assert observed_of(fleet.assigned, fleet.results).done == 20


def test_nodes_that_are_gone_touched_or_not_allowed_hold_nothing_up_and_are_left_alone() -> None:
    fleet = Fleet(20, {"n0001": "touched", "n0002": "gone", "n0003": "barred"})
    assert fleet.run() == "done"
    assert [one.state for one in fleet.results[:4]] == ["done", "skipped", "gone", "skipped"]
    fleet.wish(state="rolled-back")
    assert fleet.run() == "rolled-back"
    assert fleet.ahead() == ["n0001", "n0002"]
    assert fleet.turned["n0003"] == ""
    assert fleet.results[0].state == "rolled-back"


def test_a_node_touched_while_it_goes_back_or_that_stays_away_ends_the_way_back() -> None:
    fleet = Fleet(4)
    assert fleet.run() == "done"
    fleet.wish(state="rolled-back")
    fleet.step()
    fleet.turned.update(dict.fromkeys(fleet.ids, "back"))

    class Away(Fleet):
        def seen(self, id: str) -> NodeSeen:
            return NodeSeen(state="moving", turned="back", message="off") if id == "n0001" else super().seen(id)

    fleet.__class__ = Away
    assert fleet.run() == "rolled-back"
    assert fleet.results[1].state == "failed"
    assert "off" in fleet.results[1].failure


@pytest.mark.parametrize("after", range(0, 30, 3))
@pytest.mark.parametrize("bad", [{}, {"n0004": "refuses"}])
def test_pausing_changes_nothing_more_and_going_on_ends_the_same(after: int, bad: dict[str, Conduct]) -> None:
    fleet = Fleet(20, bad)
    for _ in range(after):
        fleet.step()
        fleet.now += 5.0
    fleet.wish(state="paused")
    before = dict(fleet.turned)
    for _ in range(20):
        assert not fleet.step().changes
        fleet.now += 30.0
    assert fleet.turned == before
    fleet.wish(state="running")
    assert fleet.run() == ("rolled-back" if bad else "done")
    assert fleet.ahead() == ([] if bad else fleet.ids)


@pytest.mark.parametrize("after", range(0, 30, 3))
def test_the_wish_turns_it_back_at_any_time_and_forward_again(after: int) -> None:
    fleet = Fleet(20)
    for _ in range(after):
        fleet.step()
        fleet.now += 5.0
    fleet.wish(state="rolled-back")
    assert fleet.run() == "rolled-back"
    assert fleet.ahead() == []
    fleet.wish(state="running")
    assert fleet.run() == "done"
    assert fleet.ahead() == fleet.ids


PHASES = ("running", "paused", "stopped", "rolling-back", "done", "rolled-back")
STATES = ("waiting", "changing", "done", "failed", "rolling-back", "rolled-back", "skipped", "gone")
SEEN = tuple(
    NodeSeen(state=state, turned=turned)
    for state in ("gone", "other", "moving", "refused", "in-force")
    for turned in ("", "forward", "back")
)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("wish", ["running", "paused", "rolled-back"])
@pytest.mark.parametrize("attempt", [0, 1])
def test_every_phase_wish_and_node_has_its_decision(phase: Any, wish: Any, attempt: int) -> None:
    is_back = phase in ("rolling-back", "rolled-back")
    for state, seen, cause, policy in itertools.product(STATES, SEEN, ("wish", "failure"), ("roll-back", "pause")):
        fleet = Fleet(4, state=wish, attempt=attempt, on_failure=policy)
        turn: Any = ("back", cause) if is_back else ("forward", "")
        fleet.assigned = replace(fleet.assigned, phase=phase, turn=turn[0], cause=turn[1], wave=0)
        first = replace(fleet.results[0], state=state, since=fleet.now - 5.0)
        fleet.results = (first, *fleet.results[1:])
        known = {first.node: seen}
        decision = decide(fleet.desired, fleet.assigned, fleet.results, known, fleet.now)
        assert set(decision.changes) <= {first.node}  # the later waves wait
        if wish == "paused":
            assert not decision.changes
        if decision.changes and decision.assigned.turn == "back":
            assert seen.turned == "forward"
            assert seen.state != "other"
        if wish == "rolled-back":
            assert decision.assigned.turn == "back"
        again = decide(fleet.desired, decision.assigned, decision.results, known, fleet.now)
        assert again.assigned.turn == decision.assigned.turn or again.assigned.cause == "failure"
        assert again.assigned.attempt == decision.assigned.attempt
        if phase in OVER and not attempt and decision.assigned.phase in OVER:
            assert not again.changes


@pytest.mark.parametrize("seed", range(20))
def test_a_server_cut_after_any_step_is_followed_by_one_that_goes_on(seed: int) -> None:
    conducts: list[dict[str, Conduct]] = [{}, {"n0007": "refuses"}, {"n0000": "silent"}, {"n0003": "gone"}]
    whole, cut = Fleet(20, conducts[seed % 4]), Fleet(20, conducts[seed % 4])
    whole.run()
    for number in range(400):
        if (number * 7 + seed) % 3 == 0:
            lost = cut.decide()  # decided, and never written
            assert lost == cut.decide()
        cut.step()
        if cut.assigned.phase in OVER:
            break
        cut.now += 5.0
    assert cut.assigned.phase == whole.assigned.phase
    assert cut.turned == whole.turned
    assert cut.order == whole.order


def test_two_thousand_nodes_are_decided_about_in_a_moment() -> None:
    fleet = Fleet(2000, settle_s=0)
    spent = []
    while fleet.assigned.phase not in OVER:
        began = time.perf_counter()
        decision = fleet.decide()
        observed_of(decision.assigned, decision.results)
        spent.append(time.perf_counter() - began)
        fleet.step()
        fleet.now += 5.0
    assert fleet.states() == {"done"}
    assert sorted(spent)[len(spent) // 2] < 0.05
    assert ahead_of(fleet.results) == list(fleet.results)
