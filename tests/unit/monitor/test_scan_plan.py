"""From where an appliance is looked at, and what is known when node and host have said what they found."""

from __future__ import annotations

import itertools
import json
from typing import Literal

import pytest

from pileus.kernel.fields import Problem
from pileus.monitor.look.plan import disk_look, unread
from pileus.monitor.look.types import DISK_FINDINGS_MAX, LookObserved
from pileus.monitor.scan import plan
from pileus.monitor.scan.plan import BOOT_S, Appliance, begin
from pileus.monitor.scan.types import FINDINGS_MAX, ScanObserved
from pileus.scan.report import Finding, Report

PLAIN = Appliance(power="running", up_s=1.0)
NODE = Appliance(power="running", is_node=True, answers=True)
BOOTING = Appliance(power="running", is_node=True, up_s=BOOT_S - 1)
MUTE = Appliance(power="running", is_node=True, up_s=BOOT_S)
PAUSED = Appliance(power="paused", is_node=True, answers=True)
STOPPED = Appliance(power="stopped")
BEING_MADE = Appliance(power="unknown", is_node=True)
UNSEEN = Appliance(power="stopped", unseen="host h is silent")

CASES = [
    ("auto", PLAIN, ("outside",)),
    ("auto", NODE, ("inside",)),
    ("auto", BOOTING, None),
    ("auto", MUTE, ("outside",)),
    ("auto", PAUSED, ("outside",)),
    ("auto", STOPPED, ("outside",)),
    ("auto", BEING_MADE, None),
    ("auto", UNSEEN, ()),
    ("inside", PLAIN, ()),
    ("inside", NODE, ("inside",)),
    ("inside", BOOTING, ("inside",)),
    ("inside", PAUSED, ()),
    ("outside", NODE, ("outside",)),
    ("outside", BOOTING, ("outside",)),
    ("outside", BEING_MADE, None),
    ("both", NODE, ("inside", "outside")),
    ("both", PLAIN, ("outside",)),
    ("both", PAUSED, ("outside",)),
    ("both", UNSEEN, ()),
]


@pytest.mark.parametrize(("wanted", "seen", "sides"), CASES)
def test_each_appliance_is_looked_at_from_where_something_can_be_said(
    wanted: Literal["auto", "inside", "outside", "both"], seen: Appliance, sides: tuple[str, ...] | None
) -> None:
    begun = begin(wanted, seen)
    assert (None if begun is None else begun.sides) == sides
    if begun is not None and (not begun.sides or (wanted == "both" and len(begun.sides) == 1)):
        assert begun.refused


def test_found_is_found_and_clean_is_only_what_all_say() -> None:
    parts = {state: ScanObserved(state=state, message=state, files=1) for state in ("clean", "found", "unknown")}
    for one, other in itertools.product(parts, parts):
        states = {one, other}
        expected = "found" if "found" in states else "unknown" if "unknown" in states else "clean"
        both = plan.merged([parts[one], parts[other]])
        assert (both.state, both.message, both.files) == (expected, expected, 2)
        assert plan.merged([parts[one], ScanObserved(state="running")]).state == "running"
    assert plan.merged([]).state == "unknown"


def test_files_are_said_first_and_a_flood_of_findings_is_counted() -> None:
    flood = tuple(Finding(rule="r", where="disk", offset=number) for number in range(500))
    file = Finding(rule="r", where="file", path="/a", partition=2)
    disk = disk_look("id", "root", Report(findings=(*flood, file), left_out=7))
    assert (disk.state, len(disk.findings), disk.findings[0].path) == ("found", DISK_FINDINGS_MAX, "/a")
    assert disk.left_out == 500 + 1 + 7 - DISK_FINDINGS_MAX
    said = plan.outside(LookObserved(state="over", disks=(disk, disk)))
    assert (said.state, len(said.findings), said.disks[0].findings) == ("found", FINDINGS_MAX, 508)
    assert said.message == "r in /a of volume root"


def test_what_could_not_be_read_is_never_clean() -> None:
    clean = disk_look("1", "root", Report(scanned_bytes=9))
    assert plan.outside(LookObserved(state="over", disks=(clean,))).state == "clean"
    said = plan.outside(LookObserved(state="over", disks=(clean, unread("2", "data", "no room"))))
    assert (said.state, said.message) == ("unknown", "volume data: no room")
    assert plan.outside(LookObserved(state="over")).state == "unknown"
    assert plan.outside(None).state == "unknown"
    assert plan.outside(LookObserved(problem=Problem(reason="AgentDefect", message="a defect"))).message == "a defect"
    reading = plan.outside(LookObserved(state="reading", volume="root", looked_bytes=5 << 20))
    assert (reading.state, reading.message) == ("running", "reading volume root, 5 MiB so far")


def test_words_of_a_node_are_harmless_and_cannot_name_a_disk() -> None:
    found = {"rule": "r\x1b", "where": "file", "path": "/x\n", "volume": "v\x1b", "offset": -1}
    said = plan.observed(json.dumps({"state": "found", "findings": [found]}).encode())
    assert (said.findings[0].rule, said.findings[0].path, said.findings[0].volume) == ("r ", "/x ", "")
