"""The state table: silence, misses, hangs, rows that go on elsewhere, and reports in any order."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from pileus.node.monitor.table import TOLD_AGAIN_S

RESET = {"p": policy(HUNG)}


def state(engine: Engine, vm: str = "a") -> str:
    return str(row(engine, vm)["execution"]["state"])


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({}, "running"),
        ({"process": "paused"}, "paused"),
        ({"process": "stopped"}, "stopped"),
        ({"process": "hung"}, "hung"),
        ({"process": "unknown"}, "unknown"),
        ({"node": "silent", "heard_s": 5.0}, "silent"),
        ({"node": "quarantined", "heard_s": 500.0}, "silent"),
        ({"node": "absent", "heard_s": -1}, "running"),
        ({"node": "silent", "heard_s": -1}, "silent"),
    ],
)
def test_what_a_report_says_is_the_state(said: dict[str, Any], word: str) -> None:
    made = engine()
    hear(made, START, **said)
    assert state(made) == word


def test_three_misses_are_unknown_and_a_report_ends_it() -> None:
    made = engine()
    hear(made, START)
    for second in (10, 20):
        made.miss("a", START + second)
        assert made.work(START + second).states == []
    made.miss("a", START + 30)
    [told] = made.work(START + 30).states
    assert (told["execution"]["state"], told["execution"]["since"], told["execution"]["misses"]) == (
        "unknown",
        START + 30,
        3,
    )
    made.hear(report(START + 25), START + 31)
    assert state(made) == "unknown"
    [told] = hear(made, START + 40, origin="push").states
    assert (told["execution"]["state"], told["execution"]["since"], told["execution"]["misses"]) == (
        "running",
        START + 40,
        0,
    )
    made.miss("a", START + 50)
    assert state(made) == "running"


def test_one_that_was_never_heard_is_unknown_after_misses() -> None:
    made = engine(misses=2)
    assert made.work(START).states == []
    made.miss("a", START)
    made.miss("a", START + 10)
    [told] = made.work(START + 10).states
    assert (told["execution"]["state"], told["at"]) == ("unknown", 0.0)


def test_a_row_is_told_when_it_changed_and_counters_now_and_then() -> None:
    made = engine()
    told = sum(len(hear(made, START + second, disk_bytes=second).states) for second in range(1, 3600, 10))
    assert told == 1 + 3600 // TOLD_AGAIN_S - 1
    [changed] = hear(made, START + 3600, hash="other").states
    assert (changed["configuration"]["hash"], changed["io"]["disk_bytes"]) == ("other", 0)


def test_a_change_right_after_another_is_told_a_second_later() -> None:
    made = engine()
    made.work(START)
    assert len(hear(made, START + 0.1, hash="a").states) == 1
    work = hear(made, START + 0.2, hash="b")
    assert (work.states, work.next_at) == ([], START + 1.1)
    [told] = made.work(START + 1.1).states
    assert told["configuration"]["hash"] == "b"
    assert made.work(START + 3).states == []


@pytest.mark.parametrize(
    ("field", "said"), [("io.idle_s", {"disk_bytes": 7}), ("execution.misses", {}), ("io.net_bytes", {"net_bytes": 70})]
)
def test_conditions_see_what_is_not_told(field: str, said: dict[str, Any]) -> None:
    made = engine({"p": policy({"field": field, "operator": "above", "value": 60})}, misses=1000)
    assert hear(made, START, disk_bytes=7).actions == []
    acted = []
    for second in range(1, 70):
        if field == "execution.misses":
            made.miss("a", START + second)
            acted += keys(made.work(START + second))
        else:
            acted += keys(hear(made, START + second, **said))
    assert acted == ["p/a//1"]


def watch(made: Engine, world: dict[str, Any], until: float, start: float = START) -> list[tuple[float, str]]:
    """Poll as the engine wants; ``world`` answers. Return when what was asked for."""
    now, acted = start, []
    while now <= until:
        work = made.work(now)
        acted += [(action["at"], action["key"]) for action in work.actions]
        for vm in work.polls:
            made.hear(report(now, vm, **world["answer"](now)), now)
        if work.polls:
            continue
        now = work.next_at
    return acted


@pytest.mark.parametrize("seed", range(40))
def test_a_hung_guest_is_seen_within_forty_seconds_of_its_last_sign(seed: int) -> None:
    chance = random.Random(seed)
    hangs_at = START + 60 + 30 * chance.random()
    silent_s = chance.choice([0.0, 5.0, 31.0])

    def answer(now: float) -> dict[str, Any]:
        alive_at = min(now, hangs_at)
        heard_s = now - alive_at
        node = "silent" if heard_s > silent_s else "ready"
        return {"disk_bytes": int(alive_at * 1000), "node": node, "heard_s": heard_s}

    made = engine(RESET, poll_s=10, jitter=0.2, hung_s=30, seed=seed)
    [(at, key)] = watch(made, {"answer": answer}, hangs_at + 200)
    assert key == "p/a//1"
    assert 30 <= at - hangs_at <= 40


@pytest.mark.parametrize("counter", ["disk_bytes", "net_bytes"])
def test_no_hang_is_seen_in_an_hour_of_io_while_the_node_is_silent(counter: str) -> None:
    def answer(now: float) -> dict[str, Any]:
        steps = int((now - START) / 29)
        return {counter: steps * 4096, "node": "silent", "heard_s": now - START + 40}

    made = engine(RESET)
    assert watch(made, {"answer": answer}, START + 3600) == []
    assert state(made) == "silent"


def test_a_reset_is_waited_for_and_what_hangs_again_is_reset_again() -> None:
    boots = {"at": START}

    def answer(now: float) -> dict[str, Any]:
        alive_s = min(now - boots["at"], 20.0)
        heard_s = now - boots["at"] - alive_s
        number = 1 + int(boots["at"] > START)
        return {"boots": number, "disk_bytes": int(alive_s * 1000), "node": "silent", "heard_s": heard_s}

    made = engine(RESET)
    [(at, _)] = watch(made, {"answer": answer}, START + 65)
    boots["at"] = at + 1
    acted = watch(made, {"answer": answer}, START + 200, start=at + 1)
    assert [key for _, key in acted] == ["p/a//2"]
    assert acted[0][0] - boots["at"] >= 50


def test_a_report_without_counters_says_nothing_of_io() -> None:
    made = engine(RESET)
    hear(made, START, disk_bytes=7, heard_s=0.0)
    push = report(START + 45, origin="push", node="silent", heard_s=-1)
    del push["vitals"]["disk_bytes"], push["vitals"]["net_bytes"]
    made.hear(push, START + 45)
    assert made.work(START + 45).actions == []
    assert row(made)["io"] == {"disk_bytes": 7, "net_bytes": 0, "idle_s": 0}
    assert keys(hear(made, START + 46, disk_bytes=7, node="silent", heard_s=46)) == ["p/a//1"]
    push["at"], push["vitals"]["boots"] = START + 50, 2
    made.hear(push, START + 50)
    made.work(START + 50)
    assert state(made) == "silent"


def resumed(stored: dict[str, Any], policies: dict[str, Any] | None = None) -> Engine:
    said = document(policies)
    said["appliances"]["a"] |= {"epoch": 2, "resume": json.loads(json.dumps(stored))}
    made = Engine()
    made.configure(said)
    return made


def test_a_row_goes_on_in_another_engine() -> None:
    first = engine({"p": policy(FAILED)})
    hear(first, START, disk_bytes=5, status=applications(web="running"))
    hear(first, START + 10, disk_bytes=5, node="silent", heard_s=9, status=applications(web="failed:1"))
    stored = row(first)
    second = resumed(stored, {"p": policy(FAILED)})
    assert row(second) == {**stored, "epoch": 2}
    work = hear(second, START + 20, disk_bytes=5, node="silent", heard_s=19, status=applications(web="failed:1"))
    assert (work.actions, work.states) == ([], [])
    assert row(second)["execution"]["since"] == START + 10
    assert row(second)["io"]["idle_s"] == 20


def test_a_hang_is_not_taken_from_a_row_whose_silence_nobody_dated() -> None:
    first = engine(RESET)
    [stored] = hear(first, START, disk_bytes=5).states
    second = resumed(stored, RESET)
    for second_s in (3600, 3610, 3629):
        assert hear(second, START + second_s, disk_bytes=5, node="silent", heard_s=-1).actions == []
    assert keys(hear(second, START + 3630, disk_bytes=5, node="silent", heard_s=-1)) == ["p/a//1"]


@pytest.mark.parametrize(
    "wrong", [{"execution": 7}, {"standing": {"p/web": 1}, "at": "x"}, {"io": {"idle_s": "x"}}, {"x": 1}]
)
def test_a_row_that_is_wrong_is_as_if_it_were_not_there(wrong: dict[str, Any]) -> None:
    made = resumed(wrong, {"p": policy(FAILED)})
    made.work(START)
    assert keys(hear(made, START, status=applications(web="failed:1"))) == ["p/a/web/1"]


STATES = st.sampled_from(["running", "failed:1", "failed:2", "stopped"])
MOMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "process": st.sampled_from(["running", "running", "paused", "stopped", "unknown"]),
            "node": st.sampled_from(["ready", "silent", "absent"]),
            "heard_s": st.sampled_from([-1.0, 0.0, 4.0, 31.0, 50.0]),
            "boots": st.integers(0, 1),
            "disk_bytes": st.sampled_from([0, 0, 10]),
            "hash": st.sampled_from(["", "a", "b"]),
            "status": st.builds(lambda web, db: applications(web=web, db=db), STATES, STATES),
        }
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(moments=MOMENTS, chance=st.randoms(use_true_random=False))
def test_late_double_and_reordered_reports_make_the_same_rows(
    moments: list[dict[str, Any]], chance: random.Random
) -> None:
    boots = disk_bytes = 0
    reports = []
    for number, moment in enumerate(moments):
        boots, disk_bytes = boots + moment["boots"], disk_bytes + moment["disk_bytes"]
        said = {**moment, "boots": boots, "disk_bytes": disk_bytes}
        reports.append(report(START + 10 * number, origin=chance.choice(["poll", "push", "host"]), **said))
    shuffled = reports + chance.choices(reports, k=len(reports) // 2)
    chance.shuffle(shuffled)
    now = START + 10 * len(reports)
    in_order, in_any = (
        engine({"p": policy(FAILED, HUNG, match="any")}),
        engine({"p": policy(FAILED, HUNG, match="any")}),
    )
    for each in reports:
        in_order.hear(each, now)
    for each in shuffled:
        in_any.hear(each, now)
    assert in_any.rows() == in_order.rows()
    assert in_any.work(now).actions == in_order.work(now).actions
    assert in_any.rows() == in_order.rows()


@settings(max_examples=100, deadline=None)
@given(moments=MOMENTS, chance=st.randoms(use_true_random=False))
def test_the_same_holds_but_for_what_was_acted_on_when_there_is_work_between(
    moments: list[dict[str, Any]], chance: random.Random
) -> None:
    reports = [report(START + number, **{**moment, "disk_bytes": number}) for number, moment in enumerate(moments)]
    now = START + len(reports)
    shuffled = [*reports, *reports]
    chance.shuffle(shuffled)
    in_order, in_any = engine({"p": policy(FAILED)}), engine({"p": policy(FAILED)})
    for each in reports:
        in_order.hear(each, each["at"])
        in_order.work(each["at"])
    for each in shuffled:
        in_any.hear(each, now)
        in_any.work(now)
    first, second = row(in_order), row(in_any)
    stands = [{key for key, entry in each.pop("standing").items() if entry["since"]} for each in (first, second)]
    assert first == second
    # What stood before nothing was known stands on; who did not hear of it then cannot know it now.
    assert first["execution"]["state"] == "unknown" or stands[0] == stands[1]


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_reports_in_disorder_end_as_in_order(count: int) -> None:
    chance = random.Random(14)
    vms = tuple(f"vm-{number}" for number in range(50))
    in_order, in_any = engine(vms=vms), engine(vms=vms)
    reports = [
        report(
            START + number / 10,
            chance.choice(vms),
            disk_bytes=number,
            process=chance.choice(["running", "paused"]),
            status=applications(web=f"failed:{number}") if chance.random() < 0.3 else applications(web="running"),
        )
        for number in range(count)
    ]
    places = [
        (
            number + (chance.randrange(100) if chance.random() < 0.3 else 36_000 if chance.random() < 0.05 else 0),
            copy,
            each,
        )
        for number, each in enumerate(reports)
        for copy in range(1 + (chance.random() < 0.3))
    ]
    now = START + len(reports)
    for each in reports:
        in_order.hear(each, now)
    for _, _, each in sorted(places, key=lambda place: place[:2]):
        in_any.hear(each, now)
    assert in_any.rows() == in_order.rows()
