"""What to do next for a request, from what the guest keeps of it: each step once, whoever died in between. Pure.

Notes lie in the guest, where the effects are: who reaches it next, from whichever host, finds both or neither. A write
may be done again, so its result is all that is noted. A command marks its beginning in the guest, as its first act and
so that only one can, and its end as its last; begun and not ended, in a guest that booted since, is told as ``unknown``.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.drivers.host.guest.qga_request import Request, RunStep, Step, StepResult


class Record(Struct, frozen=True, kw_only=True):
    """What the guest keeps of its last request."""

    sequence: int
    id: str
    digest: str
    results: tuple[StepResult, ...] = ()


Trace = Literal["", "absent", "running", "ended", "lost"]
"""What was found in the guest of the next step; empty: nobody has looked yet. A file that is as it shall be has ended."""


class Act(Struct, frozen=True, kw_only=True):
    """What to do next.

    ``begin``: keep an empty record of this request instead of the former's · ``look``: find the step's trace ·
    ``do``: write or run the step · ``wait``: somebody's run of it goes on · ``collect``: note how the step ended ·
    ``forget``: remove the marks of a command that may run again · ``note``: keep ``result`` as the step's ·
    ``answer``: all is done · ``refuse``: ``words`` say why.
    """

    act: Literal["begin", "look", "do", "wait", "collect", "forget", "note", "answer", "refuse"]
    step: Step | None = None
    result: StepResult | None = None
    words: str = ""


def next_act(record: Record | None, request: Request, trace: Trace, now: float) -> Act:
    """Return what to do next. ``trace``: of the first step without a result. ``now``: Unix seconds."""
    if record is None or record.sequence < request.sequence:
        return Act(act="begin")
    if record.sequence > request.sequence:
        return Act(act="refuse", words=f"the node is past it: its last request has sequence {record.sequence}")
    if (record.id, record.digest) != (request.id, request.digest):
        return Act(act="refuse", words=f"the node knows another request with sequence {request.sequence}")
    if len(record.results) == len(request.steps):
        return Act(act="answer")
    step = request.steps[len(record.results)]
    if record.results and record.results[-1].result != "done":
        return _note(step, "skipped")
    return _step_act(step, trace, expired=now > request.deadline)


def _step_act(step: Step, trace: Trace, *, expired: bool) -> Act:
    if trace == "":
        return Act(act="look", step=step)
    if trace == "ended":
        return Act(act="collect", step=step)
    if trace == "running":
        return Act(act="wait", step=step)
    if trace == "lost" and (expired or not (isinstance(step, RunStep) and step.repeatable)):
        return _note(step, "unknown")
    if trace == "lost":
        return Act(act="forget", step=step)
    return _note(step, "expired") if expired else Act(act="do", step=step)


def _note(step: Step, result: Literal["unknown", "expired", "skipped"]) -> Act:
    return Act(act="note", step=step, result=StepResult(step=step_name(step), result=result))


def step_name(step: Step) -> str:
    """Return how an answer names the step."""
    return f"run {step.command}" if isinstance(step, RunStep) else f"write {step.path}"
