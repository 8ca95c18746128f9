"""A VM that a failed write paused: it is resumed again and again, but not at once."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pileus.compute.vm.plan import DISK_RETRY_S, Fact, Step, Wish, plan

NOW = 1_000_000.0
WISH = Wish(
    deleting=False, power="running", boot_serial=0, restart="on-failure", shutdown_timeout_s=30, volumes=(), ports=()
)
FAILED = Fact(state="paused", paused_by="disk-error")


def test_the_first_failed_write_is_tried_again_at_once() -> None:
    assert plan(WISH, FAILED, NOW) == Step(verb="resume")


def test_a_write_that_failed_again_waits_for_its_next_try() -> None:
    tried = replace(FAILED, disk_tried_at=NOW - 1)
    assert plan(WISH, tried, NOW) == Step(verb="wait", after_s=DISK_RETRY_S - 1)
    assert plan(WISH, tried, NOW + DISK_RETRY_S) == Step(verb="resume")


def test_a_vm_that_runs_on_after_a_try_is_looked_at_until_it_is_well() -> None:
    running = Fact(state="running", disk_tried_at=NOW)
    assert plan(WISH, running, NOW + 1) == Step(verb="wait", after_s=DISK_RETRY_S - 1)
    assert plan(WISH, running, NOW + DISK_RETRY_S) is None


@pytest.mark.parametrize(("power", "step"), [("stopped", Step(verb="power_off")), ("paused", None)])
def test_other_wishes_do_not_wait_for_the_disk(power: str, step: Step | None) -> None:
    assert plan(replace(WISH, power=power), replace(FAILED, disk_tried_at=NOW), NOW) == step
