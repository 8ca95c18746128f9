"""What to do next for a request, from what the guest keeps of it: each step once, whoever died in between. Pure.

Notes lie in the guest, where the effects are: who reaches it next, from whichever host, finds both or neither. A write
may be done again, so its result is all that is noted. A command marks its beginning in the guest, as its first act and
so that only one can, and its end as its last; begun and not ended, in a guest that booted since, is told as ``unknown``.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.drivers.host.guest.qga_request import Ending, Order, RunStep, Step, StepResult, step_name

KEPT = 8
"""How many requests a guest remembers: who asked may have died before it passed on the answer."""


class Record(Struct, frozen=True, kw_only=True):
    """What the guest keeps of a request. ``steps``: how many it has."""

    sequence: int
    id: str
    digest: str
    steps: int
    results: tuple[StepResult, ...] = ()

    def with_result(self, result: StepResult) -> Record:
        """Return the record with one more result."""
        return Record(
            sequence=self.sequence,
            id=self.id,
            digest=self.digest,
            steps=self.steps,
            results=(*self.results, result),
        )


Ledger = tuple[Record, ...]
"""By sequence. Only the last one may lack results; one before it that does will never have them."""

Trace = Literal["", "absent", "running", "ended", "lost"]
"""What was found in the guest of the next step; empty: nobody has looked yet. A file that is as it shall be has ended."""


class Act(Struct, frozen=True, kw_only=True):
    """What to do next.

    ``begin``: add a record of this request · ``look``: find the step's trace · ``do``: write or run the step · ``wait``:
    somebody's run of it goes on · ``collect``: note how the step ended · ``forget``: remove the marks of a command that
    may run again · ``note``: keep ``result`` as the step's · ``answer``: all is done · ``forgotten``: it was
    begun once, and does not go on · ``differs``: it knows another request of this sequence.
    """

    act: Literal["begin", "look", "do", "wait", "collect", "forget", "note", "answer", "forgotten", "differs"]
    step: Step | None = None
    result: StepResult | None = None


def known(ledger: Ledger, order: Order) -> Record | None:
    """Return the record of the request's sequence."""
    return next((one for one in ledger if one.sequence == order.sequence), None)


def next_act(ledger: Ledger, order: Order, trace: Trace, now: float) -> Act:
    """Return what to do next. ``trace``: of the first step without a result. ``now``: Unix seconds."""
    record = known(ledger, order)
    last = ledger[-1].sequence if ledger else -1
    if record is None:
        return Act(act="begin" if order.sequence > last else "forgotten")
    if record.id != order.id or (record.digest != order.digest and record.digest and order.digest):
        return Act(act="differs")
    if len(record.results) == record.steps:
        return Act(act="answer")
    if record.sequence != last or not order.steps:
        return Act(act="forgotten")
    step = order.steps[len(record.results)]
    if record.results:
        return _note(step, "skipped") if record.results[-1].result != "done" else _step_act(step, trace, "")
    return _step_act(step, trace, "withdrawn" if order.withdrawn else "expired" if now > order.deadline else "")


def _step_act(step: Step, trace: Trace, not_now: Literal["", "withdrawn", "expired"]) -> Act:
    """``not_now``: why it may not begin; a request of which a step was done goes on to its end."""
    if trace == "":
        return Act(act="look", step=step)
    if trace == "ended":
        return Act(act="collect", step=step)
    if trace == "running":
        return Act(act="wait", step=step)
    if trace == "lost":
        again = isinstance(step, RunStep) and step.repeatable and not not_now
        return Act(act="forget", step=step) if again else _note(step, "unknown")
    return _note(step, not_now) if not_now else Act(act="do", step=step)


def _note(step: Step, result: Ending) -> Act:
    return Act(act="note", step=step, result=StepResult(step=step_name(step), result=result))
