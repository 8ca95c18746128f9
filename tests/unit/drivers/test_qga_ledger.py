"""Requests of a guest with QEMU's agent: the host may die before and after everything, and the guest, and go on."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestAnswer
from pileus.drivers.host.guest.qga_carry import carry_out
from pileus.drivers.host.guest.qga_ledger import KEPT, Ledger, Trace, next_act
from pileus.drivers.host.guest.qga_request import Order, RunStep, Step, StepResult, WriteStep, step_name, write_step

RULES = write_step("/etc/rules", b"new")
LOAD = RunStep(command="load", argv=("/bin/load",), timeout_s=60, repeatable=False)
AGAIN = RunStep(command="again", argv=("/bin/again",), timeout_s=60, repeatable=True)
FAIL = RunStep(command="fail", argv=("/bin/fail",), timeout_s=60, repeatable=False)

STEPS: dict[str, tuple[Step, ...]] = {
    "write": (RULES,),
    "run": (LOAD,),
    "write, run": (RULES, LOAD),
    "run, repeatable, write": (LOAD, AGAIN, RULES),
    "fail, run": (FAIL, LOAD),
}


class Cut(Exception):
    """The host's end of the channel is gone."""


class Guest:
    """A guest's disk and programs, and a host that dies at its n-th touch: before it took effect, in it, or after."""

    def __init__(self, cut_at: int = 0, where: str = "") -> None:
        self.kept = b"[]"
        self.files: dict[str, bytes] = {}
        self.marks: dict[tuple[int, int], str] = {}
        self.ran: Counter[str] = Counter()
        self.touches = 0
        self.cut_at, self.where = cut_at, where

    def boot(self) -> None:
        """End and start the guest: a command that ran is lost."""
        self.marks = {key: "lost" if mark == "running" else mark for key, mark in self.marks.items()}

    def end_commands(self) -> None:
        """Let commands that run end well."""
        self.marks = {key: "ended" if mark == "running" else mark for key, mark in self.marks.items()}

    def _touch(self, where: str) -> None:
        if where == "before":
            self.touches += 1
        if (self.touches, where) == (self.cut_at, self.where):
            raise Cut

    async def load(self) -> Ledger:
        self._touch("before")
        return msgspec.json.decode(self.kept, type=Ledger)

    async def save(self, ledger: Ledger) -> None:
        self._touch("before")
        self.kept = msgspec.json.encode(ledger)
        self._touch("after")

    async def clear(self, order: Order) -> None:
        self._touch("before")
        self.marks = {key: mark for key, mark in self.marks.items() if key[0] == order.sequence}
        self._touch("after")

    async def look(self, order: Order, number: int) -> Trace:
        self._touch("before")
        step = order.steps[number]
        if isinstance(step, WriteStep):
            return "ended" if self.files.get(step.path) == step.content else "absent"
        return self.marks.get((order.sequence, number), "absent")  # type: ignore[return-value]

    async def do(self, order: Order, number: int) -> StepResult | None:
        self._touch("before")
        step = order.steps[number]
        if isinstance(step, WriteStep):
            self.files[step.path] = step.content
        elif (order.sequence, number) not in self.marks:
            self.marks[order.sequence, number] = "running"
            self.ran[step.command] += 1
            self._touch("within")
            self.marks[order.sequence, number] = "ended"
        self._touch("after")
        return None

    async def collect(self, order: Order, number: int) -> StepResult:
        self._touch("before")
        step = order.steps[number]
        if isinstance(step, RunStep):
            code = 1 if step.command == "fail" else 0
            return StepResult(step=step_name(step), result="failed" if code else "done", exit_code=code)
        return StepResult(step=step_name(step), result="done")

    async def forget(self, order: Order, number: int) -> None:
        self._touch("before")
        self.marks.pop((order.sequence, number), None)
        self._touch("after")


def order(steps: tuple[Step, ...], sequence: int = 1, **fields: object) -> Order:
    made = Order(id=f"r{sequence}", sequence=sequence, digest=f"d{sequence}", deadline=math.inf, steps=steps)
    return msgspec.structs.replace(made, **fields)


def carry(guest: Guest, asked: Order, now: float = 0.0) -> GuestAnswer:
    return asyncio.run(carry_out(guest, asked, lambda: now))


def endings(answer: GuestAnswer) -> list[str]:
    return [one["result"] for one in msgspec.json.decode(answer.answer)["steps"]]


def undisturbed(steps: tuple[Step, ...]) -> tuple[list[str], int]:
    guest = Guest()
    return endings(carry(guest, order(steps))), guest.touches


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dies", ["host", "guest"])
def test_whoever_dies_wherever_each_step_is_done_once_and_answered_the_same(name: str, dies: str) -> None:
    steps = STEPS[name]
    expected, touches = undisturbed(steps)
    cuts = 0
    for at, where in itertools.product(range(1, touches + 1), ("before", "within", "after")):
        guest, asked = Guest(at, where), order(steps)
        try:
            carry(guest, asked)
            continue
        except Cut:
            cuts += 1
        guest.boot() if dies == "guest" else guest.end_commands()
        answer = carry(guest, asked)
        assert carry(guest, asked) == answer, "however often it is asked"
        assert all(guest.ran[step.command] <= 1 for step in (LOAD, FAIL)), "never twice"
        found = endings(answer)
        if dies == "guest" and where == "within" and "unknown" in found:
            assert answer.state == "unknown"
            assert set(found[found.index("unknown") + 1 :]) <= {"skipped"}
        else:
            assert found == expected, (at, where)
        if found == ["done"] * len(steps) and RULES in steps:
            assert guest.files == {"/etc/rules": b"new"}
    assert cuts >= touches


def test_a_command_that_died_with_its_guest_is_told_as_unknown_unless_it_may_run_again() -> None:
    for step, state in ((LOAD, "unknown"), (AGAIN, "applied")):
        guest = Guest(*_touch_of_the_run(step))
        with pytest.raises(Cut):
            carry(guest, order((step,)))
        guest.boot()
        answer = carry(guest, order((step,)))
        assert answer.state == state
        assert guest.ran[step.command] == (1 if state == "unknown" else 2)


def _touch_of_the_run(step: RunStep) -> tuple[int, str]:
    for at in itertools.count(1):
        guest = Guest(at, "within")
        try:
            carry(guest, order((step,)))
        except Cut:
            return at, "within"
    raise AssertionError


def test_a_command_that_still_runs_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(*_touch_of_the_run(LOAD))
    with pytest.raises(Cut):
        carry(guest, order((LOAD,)))

    async def pause(seconds: float) -> None:
        guest.end_commands()

    monkeypatch.setattr("asyncio.sleep", pause)
    assert endings(carry(guest, order((LOAD,)))) == ["done"]
    assert guest.ran["load"] == 1


def test_a_command_that_never_ends_does_not_hold_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(*_touch_of_the_run(LOAD))
    with pytest.raises(Cut):
        carry(guest, order((LOAD,)))

    async def pause(seconds: float) -> None:
        return

    monkeypatch.setattr("asyncio.sleep", pause)
    with pytest.raises(DriverError) as caught:
        carry(guest, order((LOAD,)))
    assert caught.value.reason == "NodeBusy"
    guest.end_commands()
    assert endings(carry(guest, order((LOAD,)))) == ["done"]


def test_after_a_step_that_failed_the_rest_is_not_done() -> None:
    guest = Guest()
    answer = carry(guest, order((FAIL, LOAD, RULES)))
    assert (answer.state, endings(answer)) == ("applied", ["failed", "skipped", "skipped"])
    assert msgspec.json.decode(answer.answer)["result"] == "failed"
    assert guest.files == {}


def test_nothing_begins_after_the_deadline_and_what_began_goes_on() -> None:
    guest = Guest()
    late = carry(guest, order((RULES, LOAD), deadline=5.0), now=6.0)
    assert (late.state, endings(late)) == ("expired", ["expired", "skipped"])
    assert guest.files == {}
    begun = Guest(*_touch_of_the_run(LOAD))
    with pytest.raises(Cut):
        carry(begun, order((LOAD, RULES), deadline=5.0), now=4.0)
    begun.end_commands()
    answer = carry(begun, order((LOAD, RULES), deadline=5.0), now=6.0)
    assert (answer.state, endings(answer)) == ("applied", ["done", "done"])


@pytest.mark.parametrize("with_payload", [True, False])
def test_a_request_that_is_withdrawn_is_not_begun_and_never_will_be(with_payload: bool) -> None:
    guest = Guest()
    whole = order((LOAD,))
    gone = msgspec.structs.replace(whole, withdrawn=True)
    if not with_payload:
        gone = msgspec.structs.replace(gone, digest="", steps=())
    assert carry(guest, gone).state == "withdrawn"
    assert carry(guest, whole).state == "withdrawn"
    assert guest.ran["load"] == 0
    done = Guest()
    carry(done, whole)
    assert carry(done, gone).state == "applied"


def test_the_last_requests_are_remembered_and_older_ones_never_done_again() -> None:
    guest = Guest()
    for sequence in range(1, KEPT + 3):
        carry(guest, order((LOAD,), sequence))
    ran = guest.ran["load"]
    assert carry(guest, order((LOAD,), 2)).state == "unknown"
    assert carry(guest, order((LOAD,), 3)).state == "applied"
    assert guest.ran["load"] == ran
    assert carry(guest, order((RULES,), 3, digest="other")).state == "refused"
    assert carry(guest, order((LOAD,), 3, id="other")).state == "refused"


def test_a_guest_whose_notes_contradict_each_other_does_not_hold_the_host() -> None:
    class Liar(Guest):
        async def look(self, order: Order, number: int) -> Trace:
            return "absent"

    with pytest.raises(DriverError) as caught:
        carry(Liar(), order((LOAD,)))
    assert caught.value.reason == "NodeHostile"


@pytest.mark.parametrize("trace", ["", "absent", "running", "ended", "lost"])
def test_without_a_record_nothing_is_done_before_one_is_kept(trace: Trace) -> None:
    assert next_act((), order((LOAD,)), trace, 0.0).act == "begin"
