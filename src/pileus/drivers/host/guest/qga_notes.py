"""The notes of requests in a guest that has only QEMU's guest agent: files of a folder, and the files of a package."""

from __future__ import annotations

import hashlib
import re

import msgspec

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest import qga_scripts as scripts
from pileus.drivers.host.guest.qga import AgentRefused, ExecStatus, GuestAgent
from pileus.drivers.host.guest.qga_carry import STEP_GRACE_S
from pileus.drivers.host.guest.qga_ledger import Ledger, Trace
from pileus.drivers.host.guest.qga_request import OUTPUT_BYTES_MAX, Order, RunStep, StepResult, WriteStep, step_name

LEDGER_BYTES_MAX = 4 << 20
"""Above what eight requests with the longest outputs take, each character of them in three bytes."""

SCRIPT_TIMEOUT_S = 60.0
"""The slowest thing that our scripts do is to write everything to the disk."""

_EXIT_BYTES_MAX = 16
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class AgentNotes:
    """Notes below ``folder`` of the guest; see ``Notes``."""

    def __init__(self, agent: GuestAgent, folder: str) -> None:
        self._agent = agent
        self._folder = folder

    async def load(self) -> Ledger:
        """Return what is kept. Raises: DriverError (NotesLost)."""
        await self._must("the guest has no place for notes", scripts.OPEN, self._folder)
        text, whole = await self._agent.read(self._ledger, LEDGER_BYTES_MAX)
        if not text:
            return ()
        try:
            if whole:
                return msgspec.json.decode(text, type=Ledger)
        except (ValueError, RecursionError):
            pass
        # What it says may have been done already: to begin anew would do it twice.
        raise DriverError("NotesLost", f"{self._ledger} in the guest is damaged; look at what was done, and remove it")

    async def save(self, ledger: Ledger) -> None:
        """Keep it."""
        await self._put(self._ledger, msgspec.json.encode(ledger))

    async def clear(self, order: Order) -> None:
        """Remove the marks of all other requests. Raises: DriverError (NodeBusy)."""
        status = await self._script(scripts.KEEP, self._folder, _name(order))
        if status.exitcode == scripts.STILL_RUNS:
            raise DriverError("NodeBusy", "a command of an earlier request still runs in the guest")
        _require(status, "the guest's notes cannot be cleared")

    async def look(self, order: Order, number: int) -> Trace:
        """Return what is found of the step. Raises: DriverError (NodeHostile)."""
        step = order.steps[number]
        if isinstance(step, WriteStep):
            return "ended" if await self._is_same(step) else "absent"
        said = await self._script(scripts.LOOK, self._marks(order), str(number))
        for trace in _TRACES:
            if self._agent.text(said) == trace:
                return trace
        raise DriverError("NodeHostile", "the guest does not say how a command is")

    async def do(self, order: Order, number: int) -> StepResult | None:
        """Write the file, or run the command. Raises: DriverError (NodeFailed)."""
        step = order.steps[number]
        if isinstance(step, WriteStep):
            try:
                await self._put(step.path, step.content)
            except (AgentRefused, NotKept) as error:
                return StepResult(step=step_name(step), result="failed", error_output=error.message)
            return None
        marks = (self._marks(order), str(number), str(step.timeout_s))
        argv = (scripts.SHELL, "-c", scripts.RUN, "pileus", *marks, *step.argv)
        _require(await self._agent.run(argv, step.timeout_s + STEP_GRACE_S), "the guest cannot note what it runs")
        return None

    async def collect(self, order: Order, number: int) -> StepResult:
        """Return how the step ended. Raises: DriverError (NodeHostile)."""
        step = order.steps[number]
        if not isinstance(step, RunStep):
            return StepResult(step=step_name(step), result="done")
        marks = f"{self._marks(order)}/{number}"
        code, _ = await self._agent.read(f"{marks}.exit", _EXIT_BYTES_MAX)
        if not code.strip().isdigit():
            raise DriverError("NodeHostile", "the guest does not say how a command ended")
        limit = OUTPUT_BYTES_MAX // (2 * len(order.steps))
        output, whole = await self._agent.read(f"{marks}.out", limit)
        errors, all_errors = await self._agent.read(f"{marks}.err", limit)
        return StepResult(
            step=step_name(step),
            result="done" if int(code) == 0 else "failed",
            exit_code=int(code),
            output=_shown(output),
            error_output=_shown(errors),
            truncated=not (whole and all_errors),
        )

    async def forget(self, order: Order, number: int) -> None:
        """Remove the marks of the step."""
        await self._must("a mark in the guest cannot be removed", scripts.FORGET, self._marks(order), str(number))

    @property
    def _ledger(self) -> str:
        return f"{self._folder}/ledger"

    def _marks(self, order: Order) -> str:
        return f"{self._folder}/{_name(order)}"

    async def _is_same(self, step: WriteStep) -> bool:
        return (await self._script(scripts.SAME, step.path, step.digest)).exitcode == 0

    async def _put(self, path: str, content: bytes) -> None:
        """Write the file, whole or not at all. Raises: DriverError (NodeFailed), AgentRefused."""
        draft, digest = f"{path}.pileus-new", hashlib.sha256(content).hexdigest()
        await self._must(f"{path} cannot be written in the guest", scripts.DRAFT, draft, path)
        await self._agent.write(draft, content)
        await self._must(f"the guest did not keep what was sent for {path}", scripts.PUT, draft, path, digest)

    async def _must(self, otherwise: str, script: str, *arguments: str) -> None:
        _require(await self._script(script, *arguments), otherwise)

    async def _script(self, script: str, *arguments: str) -> ExecStatus:
        return await self._agent.run((scripts.SHELL, "-c", script, "pileus", *arguments), SCRIPT_TIMEOUT_S)


class NotKept(DriverError):
    """The guest could not do what every guest must: it is full, read-only, or lacks a program."""

    def __init__(self, message: str) -> None:
        super().__init__("NodeFailed", message)


_TRACES: tuple[Trace, ...] = ("absent", "running", "ended", "lost")


def _require(status: ExecStatus, otherwise: str) -> None:
    if status.exitcode != 0:
        raise NotKept(otherwise)


def _shown(output: bytes) -> str:
    """Return text that is at most three times as long, in JSON too."""
    return _CONTROL.sub("\ufffd", output.decode(errors="replace"))


def _name(order: Order) -> str:
    return f"{order.sequence}-{order.id}"
