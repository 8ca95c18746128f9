"""An engine is told which appliances came, are others or went, and goes on as if it had been told the whole."""

from __future__ import annotations

import json
from pathlib import Path
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
    report,
    row,
)

from pileus.node.monitor.engine import Engine
from pileus.node.monitor.inventory import Inventory
from pileus.node.monitor.role import answer

KEEP = {"p": policy(FAILED)}


def _entry(vm: str, epoch: int = 1, **more: Any) -> dict[str, Any]:
    return {vm: {"name": vm, "epoch": epoch, **more}}


def test_an_appliance_that_came_is_watched_and_one_that_went_is_not() -> None:
    made = engine(KEEP, ("a",))
    made.work(START)
    made.amend({"appliances": _entry("b"), "gone": ["a", "never"]})
    assert [found["vm"] for found in made.rows()] == ["b"]
    assert made.work(START + 1).polls == ["b"]
    made.hear(report(START + 2), START + 2)
    assert made.ignored == 1
    assert keys(hear(made, START + 3, vm="b", status=applications(web="failed"))) == ["p/b/web/1"]


def test_what_is_said_in_parts_is_what_is_said_at_once() -> None:
    whole, parts = engine(KEEP, ("a", "b", "c")), engine(KEEP, ("a",))
    parts.amend({"appliances": _entry("b") | _entry("c")})
    for each in (whole, parts):
        for vm in ("a", "b", "c"):
            each.hear(report(START, vm, status=applications(web="failed:1")), START)
    assert sorted(keys(whole.work(START))) == sorted(keys(parts.work(START)))
    assert whole.rows() == parts.rows()


def test_what_stays_goes_on_and_a_new_epoch_goes_on_from_its_row() -> None:
    made = engine(KEEP)
    hear(made, START, status=applications(web="failed:1"))
    before = row(made)
    made.amend({"appliances": _entry("a", labels={"tier": "web"})})
    assert row(made) == before
    made.amend({"appliances": _entry("a", epoch=2, resume=before)})
    assert row(made)["epoch"] == 2
    assert keys(hear(made, START + 1, status=applications(web="failed:1"))) == []


def test_labels_decide_anew_which_policies_are_for_it() -> None:
    made = engine({"p": policy(FAILED, labels={"tier": "web"})})
    assert keys(hear(made, START, status=applications(web="failed"))) == []
    made.amend({"appliances": _entry("a", labels={"tier": "web"})})
    assert keys(made.work(START + 1)) == ["p/a/web/1"]


@pytest.mark.parametrize(
    "part",
    [
        {"appliances": []},
        {"appliances": {"/": {}}},
        {"appliances": {"b": 1}},
        {"gone": "a"},
        {"appliances": _entry("b", epoch=-1)},
    ],
)
def test_a_part_that_is_none_is_refused_and_changes_nothing(part: dict[str, Any]) -> None:
    made = engine(KEEP)
    with pytest.raises(ValueError, match=r"^(appliances|gone)"):
        made.amend(part)
    assert [found["vm"] for found in made.rows()] == ["a"]


def test_an_appliance_takes_parts_from_its_cloud(tmp_path: Path) -> None:
    made, kept = Engine(), Inventory(tmp_path / "inventory")

    def ask(**question: Any) -> dict[str, Any]:
        return answer(made, kept, json.dumps(question).encode())

    assert ask(configure=document(KEEP)) == {}
    assert ask(amend={"appliances": _entry("b"), "gone": ["a"]}) == {}
    assert [found["vm"] for found in made.rows()] == ["b"]
    assert "gone" in ask(amend={"gone": 1})["error"]
