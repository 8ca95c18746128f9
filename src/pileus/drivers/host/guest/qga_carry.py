"""Carries out a request in a guest, whoever died while carrying it out before. Knows no agent."""

from __future__ import annotations

import asyncio
from typing import Protocol

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestAnswer
from pileus.drivers.host.guest.qga_ledger import KEPT, Act, Ledger, Record, Trace, known, next_act
from pileus.drivers.host.guest.qga_request import Order, RunStep, StepResult, answer, step_name
from pileus.kernel.clock import Clock

_WAIT_S, _WAIT_S_MAX = 0.1, 2.0
_ACTS_MAX = 8
"""For one step, waits aside: an honest guest needs at most six."""

STEP_GRACE_S = 30.0
"""How much longer than its time a command may take to begin, to end and to be noted."""


class Notes(Protocol):
    """What a guest keeps of requests, and what can be done in it. Raises: DriverError, then nothing is known."""

    async def load(self) -> Ledger:
        """Return what is kept."""

    async def save(self, ledger: Ledger) -> None:
        """Keep it: whole or not at all, and over a power cut."""

    async def clear(self, order: Order) -> None:
        """Remove the marks of all other requests. Raises: DriverError (NodeBusy: a command of one still runs)."""

    async def look(self, order: Order, number: int) -> Trace:
        """Return what is found of the step."""

    async def do(self, order: Order, number: int) -> StepResult | None:
        """Write the file, or run the command and return when it ended; None: look how it went."""

    async def collect(self, order: Order, number: int) -> StepResult:
        """Return how the step ended."""

    async def forget(self, order: Order, number: int) -> None:
        """Remove the marks of the step."""


async def carry_out(notes: Notes, order: Order, clock: Clock) -> GuestAnswer:
    """Return how it ended, as often as it is asked. Raises: DriverError, after which it can be asked again."""
    ledger = await notes.load()
    trace: Trace = ""
    for _ in range(_ACTS_MAX * (len(order.steps) + 1)):
        act = next_act(ledger, order, trace, clock())
        record = known(ledger, order)
        number = len(record.results) if record is not None else 0
        trace = ""
        if act.act == "differs":
            return GuestAnswer(state="refused", answer=b"the node knows another request of this sequence")
        if act.act == "forgotten":
            return GuestAnswer(state="unknown", answer=b"it was begun once; the node did not note how it ended")
        if act.act == "answer":
            return answer(record.results if record is not None else ())
        if act.act == "look":
            trace = await notes.look(order, number)
        elif act.act == "wait":
            trace = await _other_than_running(notes, order, number)
        elif act.act == "begin":
            await notes.clear(order)
            fresh = Record(sequence=order.sequence, id=order.id, digest=order.digest, steps=len(order.steps))
            ledger = (*ledger, fresh)[-KEPT:]
            await notes.save(ledger)
        elif (result := await _follow(notes, order, number, act)) is not None and record is not None:
            ledger = (*ledger[:-1], record.with_result(result))
            await notes.save(ledger)
    raise DriverError("NodeHostile", "what the guest notes of a request contradicts itself")


async def _follow(notes: Notes, order: Order, number: int, act: Act) -> StepResult | None:
    """Do what ``act`` says of the step, and return its result when it has one."""
    if act.act == "forget":
        await notes.forget(order, number)
    elif act.act == "do":
        return await notes.do(order, number)
    elif act.act == "collect":
        return await notes.collect(order, number)
    return act.result


async def _other_than_running(notes: Notes, order: Order, number: int) -> Trace:
    """Wait for somebody else's run of the step, not for ever, and return its trace then. Raises: DriverError (NodeBusy)."""
    step = order.steps[number]
    left_s = STEP_GRACE_S + (step.timeout_s if isinstance(step, RunStep) else 0)
    pause_s = _WAIT_S
    while (trace := await notes.look(order, number)) == "running":
        if left_s < 0:
            raise DriverError("NodeBusy", f"{step_name(step)}: it still runs in the guest")
        await asyncio.sleep(pause_s)
        left_s -= pause_s
        pause_s = min(2 * pause_s, _WAIT_S_MAX)
    return trace
