"""A VM whose QEMU does not answer: nothing is asked of it, a restart ends it, and so do a stop in time and a removal."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.compute.vm.plan import Fact, Step, Wish, plan

NOW = 1_000_000.0
RUN = Wish(
    deleting=False, power="running", boot_serial=0, restart="always", shutdown_timeout_s=30,
    volumes=("root",), ports=("nic0",),
)  # fmt: skip
HUNG = Fact(state="running", process="hung", volumes=("root", "old"), ports=())


def test_a_hung_vm_is_left_alone() -> None:
    assert plan(RUN, HUNG, NOW) is None
    assert plan(replace(RUN, power="paused"), HUNG, NOW) is None
    assert plan(RUN, replace(HUNG, state="paused", paused_by="disk-error"), NOW) is None


def test_a_restart_ends_a_hung_vm_and_starts_it_however_its_end_is_seen() -> None:
    again = replace(RUN, boot_serial=1)
    for state in ("running", "paused"):
        assert plan(again, replace(HUNG, state=state), NOW) == Step(verb="power_off")
    for reason in ("powered-off", "killed"):
        ended = Fact(state="stopped", exit_reason=reason, exit_at=NOW, failures=5)
        assert plan(again, ended, NOW) == Step(verb="start")
    assert plan(again, replace(HUNG, boot_serial=1), NOW) is None


def test_a_restart_of_a_vm_that_answers_is_a_reset_still() -> None:
    assert plan(replace(RUN, boot_serial=1), replace(HUNG, process="answers"), NOW) == Step(verb="reset")


def test_a_hung_vm_that_shall_stop_is_ended_after_its_guests_time() -> None:
    stop = replace(RUN, power="stopped")
    assert plan(stop, HUNG, NOW) == Step(verb="shutdown")
    asked = replace(HUNG, shutdown_asked_at=NOW)
    assert plan(stop, asked, NOW + 10) == Step(verb="wait", after_s=20.0)
    assert plan(stop, asked, NOW + 30) == Step(verb="power_off")
    assert plan(replace(stop, shutdown_timeout_s=0), HUNG, NOW) == Step(verb="power_off")


def test_a_hung_vm_is_removed_like_any_other() -> None:
    assert plan(replace(RUN, deleting=True), HUNG, NOW) == Step(verb="remove")
