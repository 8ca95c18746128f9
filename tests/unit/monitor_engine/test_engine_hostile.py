"""Reports of hostile content: bounded, counted, and nothing raises."""

from __future__ import annotations

import copy
import json
import math
import random
import time
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
    policy,
    report,
    row,
)

from pileus.node.monitor.contents import APPLICATIONS_MAX
from pileus.node.monitor.engine import Engine

ROW_BYTES_MAX = 64 << 10


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"x": [found]}
    return found


WRONG_STATUSES: list[Any] = [
    {"applications": {f"a{number}": {"state": "failed", "exits": 1} for number in range(100_000)}},
    {"applications": {"web": {"state": "x" * (1 << 20), "version": "y" * (1 << 20)}}},
    {"applications": {"x" * (1 << 20): {"state": "failed"}}},
    {"applications": {"web": {"state": "failed", "exits": math.nan, "since": math.inf}}},
    {"applications": {"web": {"state": "failed", "exits": 10**5000}}},
    {"applications": {"web": {"state": "failed", "exits": True}}},
    {"applications": {"web": nested(1000)}},
    {"applications": [1, 2]},
    {"applications": {"web": "failed", "": {}, "nul\0": {}, "half\ud800": {}}},
    {"applications": {7: {"state": "failed"}}},
    {"deep": nested(1000)},
    {"text": "x" * (1 << 20)},
    {"texts": ["x" * 1000] * 10_000},
    {"many": {str(number): number for number in range(100_000)}},
    {f"k{number}": "v" * 500 for number in range(10_000)},
    {"nan": math.nan, "infinite": -math.inf, "huge": 10**5000, "nul": "a\0b", "half": "\udfff", "odd": object()},
    {"controls": "\x01" * 100_000},
    {"ignored": "forged"},
    "status",
    None,
]


@pytest.mark.parametrize("place", range(len(WRONG_STATUSES)))
def test_a_hostile_status_makes_a_small_row_that_says_so(place: int) -> None:
    made = engine({"p": policy(FAILED), "q": policy({"field": "other.*", "operator": "present"})})
    began = time.process_time()
    work = hear(made, START, status=WRONG_STATUSES[place])
    spent_s = time.process_time() - began
    [told] = work.states
    text = json.dumps(told, allow_nan=False)
    text.encode()
    assert len(text) <= ROW_BYTES_MAX
    assert "\\u0000" not in text
    assert len(told["applications"]) <= APPLICATIONS_MAX
    is_wrong = WRONG_STATUSES[place] != {"ignored": "forged"}
    assert (told["other"]["ignored"] > 0) is is_wrong
    assert spent_s < 1
    assert [state["applications"] for state in hear(made, START + 1, status=applications(web="running")).states] == [
        applications(web="running")["applications"]
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"process": "asleep"},
        {"process": ["running"]},
        {"node": 7},
        {"boots": -1},
        {"boots": 1.5},
        {"boots": 10**30},
        {"disk_bytes": math.nan},
        {"net_bytes": "many"},
        {"heard_s": math.nan},
        {"heard_s": 10**400},
        {"heard_s": None},
        {"boot_id": "x" * 65},
        {"hash": {}},
        {"version": "1\0"},
    ],
)
def test_a_wrong_field_is_left_out_and_counted(wrong: dict[str, Any]) -> None:
    made = engine()
    [told] = hear(made, START, **wrong).states
    assert told["other"]["ignored"] == 1
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("at", [math.nan, math.inf, -5.0, 0, None, "now", True, START + 3600, 10**400])
def test_a_report_of_no_moment_is_none_and_hides_nothing(at: object) -> None:
    made = engine()
    hear(made, START)
    made.hear({**report(START), "at": at}, START + 1)
    assert made.ignored == 1
    [told] = made.work(START + 1).states
    assert (told["at"], told["other"]["ignored"]) == (START, 1)
    assert hear(made, START + 2, process="paused").states[0]["execution"]["state"] == "paused"


@pytest.mark.parametrize("said", [None, 7, [], {}, {"vm": "other"}, {"vm": ["a"]}, {"vm": {}}, {"vm": None, "at": 1}])
def test_what_is_no_report_is_counted(said: Any) -> None:
    made = engine()
    made.hear(said, START)
    assert made.ignored == 1
    made.miss("nobody", START)
    assert made.rows()[0]["other"]["ignored"] == 0


def test_a_flood_of_pushes_makes_no_flood_of_polls_rows_or_actions() -> None:
    made = engine({"p": policy(FAILED)})
    hear(made, START)
    polls = rows = actions = 0
    for number in range(1000):
        now = START + number / 100
        made.hear(report(now, origin="push", status=applications(web=f"failed:{number}")), now)
        made.hear(report(now, origin="fault"), now)
        work = made.work(now)
        polls, rows, actions = polls + len(work.polls), rows + len(work.states), actions + len(work.actions)
    assert 9 <= polls <= 11
    assert 9 <= rows <= 12
    assert actions == 1
    [told] = made.work(START + 11).states
    assert told["applications"]["web"]["exits"] == 999


class Fuzz:
    """Values without shame."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def value(self, depth: int = 0) -> Any:
        chance = self.chance
        plain = [
            None, True, 0, -1, 1, 1 << 70, math.nan, math.inf, -0.0, 1e308, "", "running", "failed", "\0", "\ud800", "x" * 3000,
            START, START + chance.random() * 100, "a", "*", "web",
        ]  # fmt: skip
        if depth > 3 or chance.random() < 0.6:
            return chance.choice(plain)
        if chance.random() < 0.4:
            return [self.value(depth + 1) for _ in range(chance.randrange(4))]
        return {chance.choice([*self.words, self.value(9)]): self.value(depth + 1) for _ in range(chance.randrange(5))}

    words = (
        "vm", "at", "origin", "vitals", "process", "node", "boots", "heard_s", "status", "applications", "web", "state",
        "exits", "since", "execution", "standing", "io", "idle_s", "incident", "clauses", "counters", "p/web", "other",
    )  # fmt: skip

    def report(self) -> Any:
        said = report(START + self.chance.random() * 1000, status=applications(web="failed:1"))
        for _ in range(self.chance.randrange(1, 4)):
            place: Any = said
            while isinstance(place, dict) and place and self.chance.random() < 0.7:
                key = self.chance.choice(list(place))
                if not isinstance(place[key], dict):
                    break
                place = place[key]
            if isinstance(place, dict):
                place[self.chance.choice([*place, *self.words])] = self.value()
        return said if self.chance.random() < 0.95 else self.value()


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_nothing_that_is_heard_or_resumed_raises(seed: int) -> None:
    print(f"seed {seed}")
    fuzz = Fuzz(random.Random(seed))
    policies = {
        "p": policy(FAILED, {"field": "applications.*.exits", "operator": "above", "value": 0}),
        "q": policy(HUNG, {"field": "other.*.x", "operator": "contains", "value": "a", "for_s": 5}, match="any"),
        "v": policy({"field": "configuration.version", "operator": "older", "value": "2"}),
    }
    made = engine(policies)
    for number in range(4000):
        now = START + number / 4
        made.hear(fuzz.report(), now)
        if number % 7 == 0:
            made.miss(fuzz.chance.choice(["a", "b", ""]), now)
        for told in made.work(now).states:
            assert len(json.dumps(told, allow_nan=False)) <= ROW_BYTES_MAX
        if number % 50 == 0:
            resume = (
                fuzz.value()
                if fuzz.chance.random() < 0.5
                else {**row(made), fuzz.chance.choice(fuzz.words): fuzz.value()}
            )
            said = document(policies)
            said["appliances"]["a"] |= {"epoch": number, "resume": resume if isinstance(resume, dict) else {}}
            made.configure(said)


@pytest.mark.parametrize("seed", [21, 22])
def test_a_document_is_read_or_refused_with_words(seed: int) -> None:
    print(f"seed {seed}")
    fuzz = Fuzz(random.Random(seed))
    made = Engine()
    refused = 0
    for _ in range(3000):
        said: Any = copy.deepcopy(document({"p": policy({**FAILED, "for_s": 3}, HUNG)}))
        place: Any = said
        while isinstance(place, dict | list) and place and fuzz.chance.random() < 0.85:
            key = fuzz.chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key]:
                place[key] = fuzz.value()
                break
            place = place[key]
        else:
            if isinstance(place, dict):
                place[fuzz.value(9)] = fuzz.value()
        words = ""
        try:
            made.configure(said)
        except ValueError as wrong:
            words = str(wrong)
        refused += bool(words)
        assert not words or ": " in words
    assert refused > 500
