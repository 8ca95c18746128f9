"""A VM that may not start, or not run: what its host does then, and when it is at rest."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from pileus.compute.vm.plan import Fact, Step, Wish, plan, stays_off

NOW = 1_000_000.0
RUN = Wish(
    deleting=False, power="running", boot_serial=0, restart="always", shutdown_timeout_s=30,
    volumes=("root",), ports=("nic0",),
)  # fmt: skip
RUNS = Fact(state="running", volumes=("root",), ports=("nic0",))


def test_one_that_may_not_start_stays_off_and_one_that_runs_goes_on() -> None:
    held = replace(RUN, forbids="start")
    for fact in (Fact(state="absent"), Fact(state="stopped", exit_reason="killed", exit_at=NOW - 900)):
        assert plan(held, fact, NOW) is None
        assert plan(RUN, fact, NOW) == Step(verb="start")
    assert plan(held, RUNS, NOW) is None
    assert plan(held, replace(RUNS, ports=()), NOW) == Step(verb="attach_port", target="nic0")
    assert plan(replace(held, boot_serial=1), RUNS, NOW) == Step(verb="reset")


def test_one_that_may_not_run_is_shut_down_in_an_orderly_way() -> None:
    held = replace(RUN, forbids="run")
    assert plan(held, RUNS, NOW) == Step(verb="shutdown")
    assert plan(held, replace(RUNS, shutdown_asked_at=NOW - 31), NOW) == Step(verb="power_off")
    assert plan(held, Fact(state="stopped", exit_reason="powered-off"), NOW) is None
    assert plan(replace(held, deleting=True), RUNS, NOW) == Step(verb="remove")


ENDS = ["", "powered-off", "guest-shutdown", "killed"]


@pytest.mark.parametrize("restart", ["always", "on-failure", "never"])
@pytest.mark.parametrize("power", ["running", "paused", "stopped"])
def test_what_stays_off_is_never_started_and_what_does_not_is_some_day(power: str, restart: str) -> None:
    wish = replace(RUN, power=power, restart=restart)
    for reason, serial, state in itertools.product(ENDS, (0, 1), ("absent", "stopped", "running", "paused")):
        fact = Fact(state=state, exit_reason=reason, exit_at=NOW - 1000, failures=9, boot_serial=serial)
        wished = replace(wish, boot_serial=1)
        starts = plan(wished, fact, NOW) == Step(verb="start")
        is_off = state in ("absent", "stopped")
        assert stays_off(wished, fact) == (is_off and not starts), (reason, serial, state)
        assert stays_off(replace(wished, forbids="start"), fact) == stays_off(wished, fact)
