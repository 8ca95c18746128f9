"""What is asked of a node that has only QEMU's guest agent, and what it answers: JSON both. Pure.

A request is a step or a list of steps: ``{"write": {"path": …, "content_base64": …}}`` or ``{"run": {"command": …,
"values": {…}}}``. They are done in order, up to the first that fails; the answer says of each how it went.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import PAYLOAD_BYTES_MAX, GuestAnswer, GuestRequest
from pileus.drivers.host.guest.qga_allowed import Allowed, Command, argv

STEPS_MAX = 64

OUTPUT_BYTES_MAX = 64 << 10
"""Of all commands of a request, in equal parts; what comes after is left out, and the answer says so."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WriteStep(Struct, frozen=True, kw_only=True):
    """Write a file, whole or not at all."""

    path: str
    content: bytes
    digest: str
    """SHA-256, hexadecimal."""


class RunStep(Struct, frozen=True, kw_only=True):
    """Run a command."""

    command: str
    argv: tuple[str, ...]
    timeout_s: int
    repeatable: bool


Step = WriteStep | RunStep

Ending = Literal["done", "failed", "unknown", "expired", "withdrawn", "skipped"]
"""``failed``: the guest could not write the file, or the command's exit code is not 0. ``unknown``: the guest died while

the command ran, which may have done all, some or nothing. The last three: it was not begun.
"""


class StepResult(Struct, frozen=True, kw_only=True):
    """How a step ended. ``step``: such as ``write /etc/x`` or ``run load``."""

    step: str
    result: Ending
    exit_code: int | None = None
    output: str = ""
    error_output: str = ""
    truncated: bool = False


class Order(Struct, frozen=True, kw_only=True):
    """A request as it is carried out. ``digest``: of its payload; one request never means two things.

    Without steps and digest: it is withdrawn by its id.
    """

    id: str
    sequence: int
    digest: str
    deadline: float
    steps: tuple[Step, ...]
    withdrawn: bool = False


class _Write(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    content_base64: str


class _Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    command: str
    values: dict[str, str] = {}


class _Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    write: _Write | None = None
    run: _Run | None = None


def read_request(request: GuestRequest, allowed: Allowed) -> Order:
    """Return what is to be done, every step of it allowed. Raises DriverError (BadRequest, NotAllowed)."""
    if not _ID.fullmatch(request.id) or request.sequence < 0 or len(request.payload) > PAYLOAD_BYTES_MAX:
        raise DriverError("BadRequest", f"{request.id[:80]!r} is no id of a request, or the request is too long")
    if request.withdrawn and not request.payload:
        return Order(id=request.id, sequence=request.sequence, digest="", deadline=request.deadline, steps=())
    try:
        said = msgspec.json.decode(request.payload, type=_Step | list[_Step])
    except (ValueError, RecursionError) as wrong:
        raise DriverError("BadRequest", f"the request is no list of steps: {wrong}") from wrong
    steps = said if isinstance(said, list) else [said]
    if not 1 <= len(steps) <= STEPS_MAX:
        raise DriverError("BadRequest", f"a request has 1 to {STEPS_MAX} steps, not {len(steps)}")
    return Order(
        id=request.id,
        sequence=request.sequence,
        digest=hashlib.sha256(request.payload).hexdigest(),
        deadline=request.deadline,
        steps=tuple(_step(step, allowed) for step in steps),
        withdrawn=request.withdrawn,
    )


def write_step(path: str, content: bytes) -> WriteStep:
    """Return the step that puts ``content`` there."""
    return WriteStep(path=path, content=content, digest=hashlib.sha256(content).hexdigest())


def run_step(command: Command, values: Mapping[str, str]) -> RunStep:
    """Return the step that runs the command. Raises DriverError (NotAllowed)."""
    line = argv(command, values)
    return RunStep(command=command.name, argv=line, timeout_s=command.timeout_s, repeatable=command.repeatable)


def step_name(step: Step) -> str:
    """Return how an answer names the step."""
    return f"run {step.command}" if isinstance(step, RunStep) else f"write {step.path}"


def answer(results: tuple[StepResult, ...]) -> GuestAnswer:
    """Return what the one who asked gets: how it went as a whole, and step by step.

    A request that changed something is ``applied``, with a step that failed too; the answer says which. Without any
    step it was withdrawn.
    """
    if not results:
        return GuestAnswer(state="withdrawn")
    whole: Ending = next((one.result for one in results if one.result != "done"), "done")
    text = msgspec.json.encode({"result": whole, "steps": results})
    if whole in ("unknown", "expired", "withdrawn"):
        return GuestAnswer(state=whole, answer=text)
    return GuestAnswer(state="applied", answer=text)


def _step(said: _Step, allowed: Allowed) -> Step:
    if said.write is not None and said.run is None:
        return write_step(allowed.file(said.write.path), _decoded(said.write))
    if said.run is not None and said.write is None:
        return run_step(allowed.command(said.run.command), said.run.values)
    raise DriverError("BadRequest", "a step is either {'write': …} or {'run': …}")


def _decoded(write: _Write) -> bytes:
    try:
        return binascii.a2b_base64(write.content_base64, strict_mode=True)
    except ValueError as wrong:
        raise DriverError("BadRequest", f"the content of {write.path[:200]!r} is no base64") from wrong
