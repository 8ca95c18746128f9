"""What is asked of a node that has only QEMU's guest agent, and what it answers: JSON both. Pure.

A request is a step or a list of steps: ``{"write": {"path": …, "content_base64": …}}`` or ``{"run": {"command": …,
"values": {…}}}``. They are done in order, up to the first that fails.
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
from pileus.drivers.host.guest.qga_allowed import Allowed, Command, argv

STEPS_MAX = 64
OUTPUT_BYTES_MAX = 64 << 10
"""Of each stream of each command; what comes after is left out, and the answer says so."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class WriteStep(Struct, frozen=True, kw_only=True):
    """Write a file, whole or not at all."""

    path: str
    mode: str
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


class StepResult(Struct, frozen=True, kw_only=True):
    """``done``; ``failed``: refused, or an exit code other than 0; ``unknown``: the guest died in the middle, and the

    command may have done all, some or nothing; ``expired``, ``skipped``: not done.
    """

    step: str
    """Such as ``write /etc/x`` or ``run load``."""
    result: Literal["done", "failed", "unknown", "expired", "skipped"]
    exit_code: int | None = None
    output: str = ""
    error_output: str = ""
    truncated: bool = False


class Request(Struct, frozen=True, kw_only=True):
    """A request as it is carried out. ``sequence`` grows from one request of a node to the next."""

    id: str
    sequence: int
    digest: str
    """Of the payload: the same request never means two things."""
    steps: tuple[Step, ...]
    deadline: float
    """Unix seconds. No step begins after it."""


class _Write(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    content_base64: str


class _Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    command: str
    values: dict[str, str] = {}


class _Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    write: _Write | None = None
    run: _Run | None = None


def read_request(id_: str, sequence: int, payload: bytes, deadline: float, allowed: Allowed) -> Request:
    """Return the request, every step of it allowed. Raises DriverError (BadRequest, NotAllowed)."""
    if not _ID.fullmatch(id_) or sequence < 0:
        raise DriverError("BadRequest", f"{id_[:80]!r} and {sequence} are no id and sequence of a request")
    try:
        said = msgspec.json.decode(payload, type=_Step | list[_Step])
    except (ValueError, RecursionError) as wrong:
        raise DriverError("BadRequest", f"the request is no list of steps: {wrong}") from wrong
    steps = said if isinstance(said, list) else [said]
    if not 1 <= len(steps) <= STEPS_MAX:
        raise DriverError("BadRequest", f"a request has 1 to {STEPS_MAX} steps, not {len(steps)}")
    return Request(
        id=id_,
        sequence=sequence,
        digest=hashlib.sha256(payload).hexdigest(),
        steps=tuple(_step(step, allowed) for step in steps),
        deadline=deadline,
    )


def answer(results: tuple[StepResult, ...]) -> bytes:
    """Return what the one who asked gets: how it went as a whole, and step by step."""
    whole = next((one.result for one in results if one.result != "done"), "done")
    return msgspec.json.encode({"result": whole, "steps": results})


def _step(said: _Step, allowed: Allowed) -> Step:
    if said.write is not None and said.run is None:
        file = allowed.file(said.write.path)
        return write_step(file.path, file.mode, _decoded(said.write))
    if said.run is not None and said.write is None:
        return run_step(allowed.command(said.run.command), said.run.values)
    raise DriverError("BadRequest", "a step is either {'write': …} or {'run': …}")


def write_step(path: str, mode: str, content: bytes) -> WriteStep:
    """Return the step that puts ``content`` there."""
    return WriteStep(path=path, mode=mode, content=content, digest=hashlib.sha256(content).hexdigest())


def run_step(command: Command, values: Mapping[str, str]) -> RunStep:
    """Return the step that runs the command. Raises DriverError (NotAllowed)."""
    line = tuple(argv(command, values))
    return RunStep(command=command.name, argv=line, timeout_s=command.timeout_s, repeatable=command.repeatable)


def _decoded(write: _Write) -> bytes:
    try:
        return binascii.a2b_base64(write.content_base64, strict_mode=True)
    except ValueError as wrong:
        raise DriverError("BadRequest", f"the content of {write.path[:200]!r} is no base64") from wrong
