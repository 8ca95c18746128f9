"""Carries out a request in a guest, whoever died while carrying it out before. Knows no agent."""

from __future__ import annotations

import asyncio
from typing import Protocol

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.qga_ledger import Act, Record, Trace, next_act
from pileus.drivers.host.guest.qga_request import Request, RunStep, Step, StepResult
from pileus.kernel.clock import Clock

_WAIT_S, _WAIT_S_MAX = 0.1, 2.0

STEP_GRACE_S = 30.0
"""How much longer than its time a command may take to begin, to end and to be noted."""


class Notes(Protocol):
    """What a guest keeps of requests, and what can be done in it. Raises: DriverError, then nothing is known."""

    async def load(self) -> Record | None:
        """Return the record of the last request."""

    async def save(self, record: Record) -> None:
        """Keep the record: whole or not at all, and over a power cut."""

    async def clear(self, request: Request) -> None:
        """Remove the marks of all other requests."""

    async def look(self, request: Request, number: int, step: Step) -> Trace:
        """Return what is found of the step."""

    async def do(self, request: Request, number: int, step: Step) -> StepResult | None:
        """Write the file, or run the command and return when it ended; None: look how it went."""

    async def collect(self, request: Request, number: int, step: Step) -> StepResult:
        """Return how the step ended."""

    async def forget(self, request: Request, number: int) -> None:
        """Remove the marks of the step."""


async def carry_out(notes: Notes, request: Request, clock: Clock) -> tuple[StepResult, ...]:
    """Return the results of all steps. Raises: DriverError (RequestRefused, and those of the notes)."""
    record, trace = await notes.load(), _UNKNOWN
    waits = _Waits()
    while True:
        act = next_act(record, request, trace, clock())
        if act.act == "refuse":
            raise DriverError("RequestRefused", act.words)
        if act.act == "answer":
            assert record is not None
            return record.results
        if act.act == "wait":
            await waits.one(act.step)
        trace = _UNKNOWN
        if act.act == "look":
            assert record is not None
            assert act.step is not None
            trace = await notes.look(request, len(record.results), act.step)
        elif act.act != "wait":
            record = await _follow(notes, request, record, act)


_UNKNOWN: Trace = ""


async def _follow(notes: Notes, request: Request, record: Record | None, act: Act) -> Record:
    """Do what ``act`` says and return the record as it is then."""
    if act.act == "begin":
        await notes.clear(request)
        record = Record(sequence=request.sequence, id=request.id, digest=request.digest)
        await notes.save(record)
        return record
    assert record is not None
    assert act.step is not None
    number, result = len(record.results), act.result
    if act.act == "forget":
        await notes.forget(request, number)
    elif act.act == "do":
        result = await notes.do(request, number, act.step)
    elif act.act == "collect":
        result = await notes.collect(request, number, act.step)
    if result is None:
        return record
    record = Record(sequence=record.sequence, id=record.id, digest=record.digest, results=(*record.results, result))
    await notes.save(record)
    return record


class _Waits:
    """Waits for somebody else's run, not for ever."""

    def __init__(self) -> None:
        self._pause_s = _WAIT_S
        self._waited_s = 0.0

    async def one(self, step: Step | None) -> None:
        assert isinstance(step, RunStep)
        if self._waited_s > step.timeout_s + STEP_GRACE_S:
            raise DriverError("NodeSilent", f"command {step.command} still runs in the guest; it is asked again later")
        await asyncio.sleep(self._pause_s)
        self._waited_s += self._pause_s
        self._pause_s = min(2 * self._pause_s, _WAIT_S_MAX)
