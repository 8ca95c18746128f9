"""The plan of a VM on its host: from every state to every wish, also when cut in the middle of any step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from pileus.compute.vm.plan import BACKOFF_MAX_S, Fact, Step, Wish, backoff_s, plan
from pileus.compute.vm.types import Power

NOW = 1_000_000.0
STEPS_MAX = 20
VOLUMES, PORTS = ("root", "data"), ("nic0", "nic1")
ENDS = ("", "powered-off", "guest-shutdown", "guest-panic", "killed", "failed")


def wishes() -> Iterator[Wish]:
    """Yield every kind of wish."""
    powers: tuple[Power, ...] = ("running", "stopped", "paused")
    for power, serial, restart, deleting in itertools.product(
        powers, (0, 1), ("always", "on-failure", "never"), (False, True)
    ):
        yield Wish(
            deleting=deleting, power=power, boot_serial=serial, restart=restart, shutdown_timeout_s=30,
            volumes=VOLUMES, ports=PORTS,
        )  # fmt: skip


def facts() -> Iterator[Fact]:
    """Yield every kind of machine that may be found."""
    yield Fact(state="absent")
    yield Fact(state="absent", noted=True)
    for end, failures in itertools.product(ENDS, (0, 1, 5)):
        yield Fact(state="stopped", exit_reason=end, exit_at=NOW - 1, failures=failures, noted=True)
    devices = ((VOLUMES, PORTS), (VOLUMES[:1], PORTS[:1]), ((*VOLUMES, "old"), (*PORTS, "old")), (("root", "old"), ()))
    for state, (volumes, ports), asked in itertools.product(("running", "paused"), devices, (None, NOW - 5, NOW - 500)):
        yield Fact(state=state, volumes=volumes, ports=ports, shutdown_asked_at=asked, noted=True)


class Simulated:
    """A machine that does what steps say; ``deaf``: its guest ignores the power button."""

    def __init__(self, wish: Wish, fact: Fact, *, deaf: bool = False) -> None:
        self.wish, self.fact, self.now, self.deaf = wish, fact, NOW, deaf

    def machine_part(self, step: Step) -> None:
        """Do what a step does to the machine."""
        fact = self.fact
        ended = replace(fact, state="stopped", volumes=(), ports=(), exit_at=self.now, shutdown_asked_at=None)
        match step.verb:
            case "start":
                self.fact = replace(fact, state="running", volumes=self.wish.volumes, ports=self.wish.ports)
                self.fact = replace(self.fact, exit_reason="", noted=True)
            case "remove":
                self.fact = Fact(state="absent")
            case "power_off":
                self.fact = replace(ended, exit_reason="powered-off")
            case "shutdown" if not self.deaf:
                self.fact = replace(ended, exit_reason="powered-off")  # the half tells it from a guest's own end
            case "pause" | "resume":
                self.fact = replace(fact, state="paused" if step.verb == "pause" else "running")
            case "attach_volume" | "detach_volume":
                self.fact = replace(fact, volumes=_changed(fact.volumes, step))
            case "attach_port" | "detach_port":
                self.fact = replace(fact, ports=_changed(fact.ports, step))

    def note_part(self, step: Step) -> None:
        """Do what a step writes down beside the machine."""
        if step.verb in ("start", "reset"):
            self.fact = replace(self.fact, boot_serial=self.wish.boot_serial)
        if step.verb == "start":
            self.fact = replace(self.fact, shutdown_asked_at=None)
        if step.verb == "shutdown" and self.fact.state != "stopped":
            asked = self.fact.shutdown_asked_at or self.now
            self.fact = replace(self.fact, shutdown_asked_at=asked, shutdown_pressed_at=self.now)

    def run(self, cut_step: int = -1, cut_part: int = 0) -> int:
        """Follow the plan to its end; leave out the parts of step ``cut_step`` from ``cut_part`` on. Return the steps."""
        for number in range(STEPS_MAX):
            step = plan(self.wish, self.fact, self.now)
            if step is None:
                return number
            self.now += step.after_s
            parts = (
                (self.note_part, self.machine_part) if step.verb == "shutdown" else (self.machine_part, self.note_part)
            )
            for position, part in enumerate(parts):
                if number != cut_step or position < cut_part:
                    part(step)
        raise AssertionError(f"no end after {STEPS_MAX} steps: {self.fact} for {self.wish}")


def _changed(have: tuple[str, ...], step: Step) -> tuple[str, ...]:
    if step.verb.startswith("attach"):
        assert step.target not in have
        return (*have, step.target)
    return tuple(id for id in have if id != step.target)


def satisfied(wish: Wish, before: Fact, after: Fact) -> bool:
    """Tell whether ``after`` is what the wish means for a machine that was found as ``before``."""
    if wish.deleting:
        return after.state == "absent" and not after.noted
    if wish.power == "stopped":
        return after.state in ("stopped", "absent")
    if after.state == "stopped":
        by_itself = before.state == "stopped" and wish.boot_serial <= before.boot_serial
        guest = before.exit_reason == "guest-shutdown" and wish.restart != "always"
        crash = before.exit_reason not in ("", "powered-off", "guest-shutdown") and wish.restart == "never"
        return by_itself and (guest or crash)
    if wish.power == "paused":
        return after.state == "paused"
    whole = (set(after.volumes), set(after.ports)) == (set(VOLUMES), set(PORTS))
    return after.state == "running" and whole and after.boot_serial >= wish.boot_serial


def test_every_state_reaches_every_wish_and_then_nothing_is_left_to_do() -> None:
    cases = 0
    for wish, fact, deaf in itertools.product(wishes(), facts(), (False, True)):
        machine = Simulated(wish, fact, deaf=deaf)
        machine.run()
        assert satisfied(wish, fact, machine.fact), (wish, fact, machine.fact)
        assert plan(wish, machine.fact, machine.now) is None
        cases += 1
    print(f"{cases} cases")


def test_a_plan_cut_in_any_step_reaches_the_wish_from_there() -> None:
    cases = 0
    for wish, fact, deaf in itertools.product(wishes(), facts(), (False, True)):
        steps = Simulated(wish, fact, deaf=deaf).run()
        for cut_step, cut_part in itertools.product(range(steps), (0, 1)):
            machine = Simulated(wish, fact, deaf=deaf)
            machine.run(cut_step, cut_part)
            assert satisfied(wish, fact, machine.fact), (wish, fact, cut_step, cut_part, machine.fact)
            cases += 1
    print(f"{cases} cases")


def test_a_wish_that_changes_after_any_step_is_reached_too() -> None:
    for first, second, fact in itertools.product(wishes(), wishes(), facts()):
        machine = Simulated(first, fact)
        step = plan(first, fact, NOW)
        if step is None or first.deleting:
            continue
        machine.machine_part(step)
        machine.note_part(step)
        between = machine.fact
        machine.wish = second
        machine.run()
        assert satisfied(second, between, machine.fact), (first, second, fact, machine.fact)


def test_nothing_is_started_while_something_is_missing() -> None:
    for fact in facts():
        wish = Wish(
            deleting=False, power="running", boot_serial=1, restart="always", shutdown_timeout_s=0,
            volumes=VOLUMES, ports=PORTS, missing="root",
        )  # fmt: skip
        step = plan(wish, fact, NOW)
        assert step is None or step.verb in ("resume", "reset")


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0), (1, 0), (2, 10), (3, 20), (4, 40), (6, 160), (7, BACKOFF_MAX_S), (5000, BACKOFF_MAX_S)],
)
def test_the_pause_between_restarts_doubles_up_to_five_minutes(failures: int, seconds: float) -> None:
    assert backoff_s(failures) == seconds


def test_a_vm_that_keeps_failing_waits_out_its_pause_and_then_starts() -> None:
    wish = next(each for each in wishes() if each.power == "running" and each.restart == "on-failure")
    fact = Fact(state="stopped", exit_reason="killed", exit_at=NOW - 3, failures=2)
    assert plan(wish, fact, NOW) == Step(verb="wait", after_s=7.0)
    assert plan(wish, fact, NOW + 7) == Step(verb="start")


def test_a_guest_that_does_not_hear_is_ended_after_its_time() -> None:
    wish = next(each for each in wishes() if each.power == "stopped" and not each.deleting)
    fact = Fact(state="running", shutdown_asked_at=NOW)
    assert plan(wish, fact, NOW + 4) == Step(verb="wait", after_s=1.0)
    assert plan(wish, fact, NOW + 5) == Step(verb="shutdown")
    pressed = replace(fact, shutdown_pressed_at=NOW + 28)
    assert plan(wish, pressed, NOW + 29) == Step(verb="wait", after_s=1.0)
    assert plan(wish, fact, NOW + 30) == Step(verb="power_off")
    assert plan(replace(wish, shutdown_timeout_s=0), Fact(state="running"), NOW) == Step(verb="power_off")
