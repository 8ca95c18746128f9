"""What a request does next: by its clock, by what hosts say, and by what guests do."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.request.plan import CONFIRM_S, PROBLEM_S, START_MAX_S, Next, VmSeen, follow, stop_at
from pileus.compute.request.telling import window
from pileus.compute.request.types import RequestAssigned, RequestDesired
from pileus.kernel.clock import iso
from pileus.kernel.errors import Invalid

NOW = 1_900_000_000.0
SIZE: dict[str, Any] = {"zone": "z", "vdc": "v", "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
STARTING = RequestAssigned(**SIZE, image="i", start_from=NOW, start_by=NOW, start=NOW, set="s", phase="starting")
ROW = PlacementAssigned(**SIZE, request="r", number=1, server="h", pool="p", vm="m", state="instructed", since=NOW)
RUNS = VmSeen(power="running", reason="AsDesired", message="", is_running="yes", is_done="no", has_problem="no")
STARTS = replace(RUNS, power="absent", reason="Converging", is_running="no")
FAILS = replace(STARTS, reason="NoMemory", message="none left", has_problem="yes")
SILENT = replace(STARTS, power="", reason="HostSilent")


def after(wish: dict[str, Any], row: PlacementAssigned, vm: VmSeen | None, late_s: float, **more: Any) -> Next:
    vms = {"m": vm} if vm is not None else {}
    return follow(RequestDesired(**wish), replace(STARTING, **more), {"row": row}, vms, NOW + late_s)


SOME = {"mode": "best-effort"}


@pytest.mark.parametrize(
    ("row", "vm", "late_s", "state"),
    [
        (replace(ROW, state="offered", vm=""), None, 0, "instructed"),
        (ROW, None, 5, "instructed"),
        (ROW, STARTS, CONFIRM_S + 1, "instructed"),
        (ROW, STARTS, START_MAX_S, "refused"),
        (ROW, RUNS, 1, "confirmed"),
        (ROW, FAILS, 1, "instructed"),
        (replace(ROW, doubted_at=NOW), FAILS, PROBLEM_S - 1, "instructed"),
        (replace(ROW, doubted_at=NOW), FAILS, PROBLEM_S, "refused"),
        (ROW, SILENT, CONFIRM_S - 1, "instructed"),
        (ROW, SILENT, CONFIRM_S, "refused"),
        (replace(ROW, state="refused"), RUNS, 1, "confirmed"),
        (replace(ROW, state="confirmed"), FAILS, 3600, "confirmed"),
        (replace(ROW, state="preempted", vm=""), None, 1, "preempted"),
    ],
)
def test_a_row_is_as_its_host_says(row: PlacementAssigned, vm: VmSeen | None, late_s: float, state: str) -> None:
    done = after(SOME, row, vm, late_s)
    assert replace(row, **done.rows.get("row", {})).state == state
    assert done.drop == "no"


def test_a_problem_that_passes_is_forgotten() -> None:
    assert after(SOME, replace(ROW, doubted_at=NOW), STARTS, 5).rows["row"]["doubted_at"] == 0


def test_waiting_for_a_network_is_no_refusal_however_long() -> None:
    waits = replace(STARTS, reason="NetworkNotServed")
    row = ROW
    for late_s in range(0, 3000, 10):
        row = replace(row, **after({}, row, waits, late_s).rows.get("row", {}))
    assert row.state == "instructed"


def test_one_refusal_releases_all_or_nothing_and_says_who() -> None:
    done = after({}, replace(ROW, doubted_at=NOW), FAILS, PROBLEM_S)
    assert (done.drop, done.assigned.phase, done.assigned.outcome) == ("yes", "releasing", "refused")
    assert "host h refused machine 1 (NoMemory: none left)" in done.assigned.message


def test_a_refusal_of_a_machine_that_once_ran_releases_nothing() -> None:
    assert after({}, replace(ROW, state="confirmed"), SILENT, 10_000, phase="running").drop == "no"


def test_machines_are_told_to_stop_in_time_and_released_with_the_last_that_did() -> None:
    wish: dict[str, Any] = {"duration_s": 100, "shutdown_timeout_s": 20}
    row, end = replace(ROW, state="confirmed"), NOW + 100
    assert stop_at(RequestDesired(**wish), replace(STARTING, end=end)) == NOW + 78
    assert stop_at(RequestDesired(duration_s=10), replace(STARTING, end=NOW + 10)) == NOW + 5
    before = after(wish, row, RUNS, 77, end=end, phase="running")
    assert (before.power, before.after_s) == ("", 1.0)
    told = after(wish, row, RUNS, 78, end=end, phase="running")
    assert (told.power, told.drop, told.assigned.phase) == ("stopped", "no", "ending")
    assert after(wish, row, RUNS, 99, end=end, phase="ending").drop == "no"
    assert after(wish, row, replace(RUNS, power="stopped"), 80, end=end, phase="ending").drop == "yes"
    assert after(wish, row, RUNS, 100, end=end, phase="ending").drop == "yes"


def test_a_task_that_is_done_releases_its_machine_and_the_last_one_the_request() -> None:
    off = replace(RUNS, power="stopped", reason="GuestShutdown", is_running="no", is_done="yes")
    done = after({"until": "exit"}, replace(ROW, state="confirmed"), off, 5)
    assert done.rows["row"]["reason"] == "TaskDone"
    assert (done.drop, done.assigned.outcome) == ("yes", "ended")
    assert after({}, replace(ROW, state="confirmed"), off, 5).drop == "no"


def test_a_start_ahead_is_waited_for() -> None:
    row = replace(ROW, state="offered", vm="")
    ahead = after({}, row, None, -30, phase="reserved")
    assert (ahead.rows, ahead.after_s) == ({}, 30.0)
    assert after({}, row, None, 0, phase="reserved").rows["row"]["state"] == "instructed"


def test_windows() -> None:
    assert window(RequestDesired(), NOW) == (NOW, NOW)
    assert window(RequestDesired(start_within_s=60), NOW) == (NOW, NOW + 60)
    assert window(RequestDesired(start_at=iso(NOW + 60)), NOW) == (NOW + 60, NOW + 60)
    wishes: list[dict[str, Any]] = [
        {"start_at": "later"},
        {"start_at": "2031-01-01T00:00:00"},
        {"start_at": iso(NOW - 1)},
        {"start_at": "9999-12-31T23:59:59Z"},
        {"start_at": iso(NOW + 9), "start_within_s": 9},
    ]
    for wish in wishes:
        with pytest.raises(Invalid):
            window(RequestDesired(**wish), NOW)
