"""A role that is a program of the image, in whatever language: how a vendor brings its own software into a node.

The program is ``/usr/lib/pileus/roles/NAME``. It is started for each thing that it shall do, in a folder of its own that
outlives restarts, and says by its exit code how it went::

    NAME apply              the document as JSON at its standard input
    NAME request ID [again] the payload at its standard input, the answer at its standard output
    NAME status             JSON at its standard output
    NAME tick               about every ten seconds

0: done. 3: refused, nothing was changed; the first line at its standard error is for the person who asked. Every other
end is a failure. A program that has no status and no tick refuses those: it is not asked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pileus.node.document import Document
from pileus.node.ledger import ANSWER_BYTES_MAX
from pileus.node.role import RoleRefused

FOLDER = Path("/usr/lib/pileus/roles")
STATE = Path("/var/lib/pileus/roles")

APPLY_S = 100.0
REQUEST_S = 300.0
LOOK_S = 30.0
"""Of status and tick, each: an interpreter takes a second to start under emulation, on a busy machine more."""

LOOK_EVERY_S = 10.0
STATUS_BYTES_MAX = 60 << 10
WORDS_BYTES_MAX = 64 << 10
"""Of standard error; what is longer is read and forgotten, as with every output."""

REFUSED = 3

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ENVIRONMENT = {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "LC_ALL": "C"}
_PIECE_BYTES = 64 << 10


class ProgramFailed(Exception):
    """The program ended otherwise than it should, or did not end in time."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and the beginning of what it said."""

    code: int
    said: bytes
    words: bytes


def find(name: str, folder: Path = FOLDER) -> Path:
    """Return the program of the role. Raises: ValueError when this image does not have it."""
    program = folder / name
    if _NAME.fullmatch(name) is None or not os.access(program, os.X_OK):
        raise ValueError(f"this image has no role {name!r}")
    return program


class ProgramRole:
    """The role that ``program`` plays; ``state`` is its folder."""

    def __init__(self, program: Path, state: Path = STATE) -> None:
        self._program = program
        self._state = state / program.name
        self._state.mkdir(parents=True, exist_ok=True)
        self._look_at = 0.0
        self._lacks: set[str] = set()
        self._status: dict[str, Any] = {}

    def apply(self, document: Document) -> None:
        """Let the program do it. Raises: RoleRefused, ProgramFailed."""
        self._run(["apply"], APPLY_S, json.dumps(document, separators=(",", ":")).encode())
        self._look_at = 0.0

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Let the program do it. Raises: RoleRefused, ProgramFailed."""
        said = self._run(["request", id, *(["again"] if again else [])], REQUEST_S, payload, ANSWER_BYTES_MAX)
        self._look_at = 0.0
        return said

    def tick(self) -> None:
        """Let the program mend what is its own. Raises: ProgramFailed."""
        if time.monotonic() >= self._look_at:
            self._asked("tick")

    def status(self) -> dict[str, Any]:
        """Return what the program says. Raises: ProgramFailed."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            said = self._asked("status")
            self._status = _object(said) if said.strip() else {}
        return self._status

    def _asked(self, verb: str) -> bytes:
        if verb in self._lacks:
            return b""
        try:
            return self._run([verb], LOOK_S, limit=STATUS_BYTES_MAX)
        except RoleRefused:
            self._lacks.add(verb)
            return b""

    def _run(self, words: list[str], timeout_s: float, text: bytes = b"", limit: int = STATUS_BYTES_MAX) -> bytes:
        ran = run([str(self._program), *words], text, self._state, timeout_s, limit)
        first = ran.words.decode(errors="replace").strip().split("\n")[0][:1000]
        if ran.code == REFUSED:
            raise RoleRefused(first or "the program gives no reason")
        if ran.code != 0:
            end = f"signal {-ran.code}" if ran.code < 0 else f"exit code {ran.code}"
            raise ProgramFailed(f"{self._program.name} {words[0]}: {end}: {first}")
        return ran.said


def run(argv: list[str], text: bytes, folder: Path, timeout_s: float, limit: int) -> Ran:
    """Run the program until it ends; what it left running stays. Raises: ProgramFailed (too slow, or not startable)."""
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
            env=_ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    except OSError as failed:
        raise ProgramFailed(f"{argv[0]} cannot be started: {_why(argv[0], failed)}") from failed
    with child:
        try:
            return _attend(child, text, time.monotonic() + timeout_s, limit)
        except TimeoutError:
            raise ProgramFailed(f"{' '.join(argv[:2])} took longer than {timeout_s:g} s and was ended") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def _attend(child: subprocess.Popen[bytes], text: bytes, until: float, limit: int) -> Ran:
    """Write, read and wait, all at once. Raises: TimeoutError."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    caps = {child.stdout: limit, child.stderr: WORDS_BYTES_MAX}
    got: dict[IO[bytes], bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
    unsent = memoryview(text)
    ended = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in (child.stdin, *caps):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_WRITE if pipe is child.stdin else selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while child.poll() is None:
                if time.monotonic() >= until:
                    raise TimeoutError
                for key, _ in selector.select(until - time.monotonic()):
                    if key.fileobj is child.stdin:
                        unsent = _feed(child.stdin, unsent, selector)
                    elif key.fileobj in got:
                        pipe = child.stdout if key.fileobj is child.stdout else child.stderr
                        if _take(pipe, got[pipe], caps[pipe]) == 0:
                            selector.unregister(pipe)
    finally:
        os.close(ended)
    for pipe, found in got.items():
        # What it left running may hold the pipe: what is there is taken, its end is not awaited.
        while _take(pipe, found, caps[pipe]) > 0:
            pass
    return Ran(child.returncode, bytes(got[child.stdout]), bytes(got[child.stderr]))


def _feed(pipe: IO[bytes], unsent: memoryview, selector: selectors.BaseSelector) -> memoryview:
    """Write some, and close the pipe after the last; a program need not read."""
    sent = len(unsent)
    with contextlib.suppress(BrokenPipeError):
        sent = os.write(pipe.fileno(), unsent[:_PIECE_BYTES]) if unsent else 0
    if not unsent[sent:]:
        selector.unregister(pipe)
        pipe.close()
    return unsent[sent:]


def _take(pipe: IO[bytes], found: bytearray, limit: int) -> int:
    """Read some into ``found``, as far as that goes; return how much: 0 at the end, -1 when nothing is there yet."""
    try:
        piece = os.read(pipe.fileno(), _PIECE_BYTES)
    except BlockingIOError:
        return -1
    found += piece[: max(0, limit - len(found))]
    return len(piece)


def _object(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError as wrong:
        raise ProgramFailed(f"its status is no JSON: {wrong}") from wrong
    if not isinstance(found, dict):
        raise ProgramFailed("its status is no JSON object")
    return found


def _why(program: str, failed: OSError) -> str:
    """Return why a program cannot be started; the kernel says of a missing interpreter that the program is missing."""
    if isinstance(failed, FileNotFoundError) and os.path.exists(program):
        return "the interpreter that its first line names is not in the image"
    return failed.strerror or str(failed)
