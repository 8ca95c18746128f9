"""Runs one program to its end, with a time-out. It knows neither disks nor images; its caller judges the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from msgspec import Struct

from pileus.drivers.host.errors import DriverError, MissingTool

KEPT_BYTES = 65_536
"""How much of each output is kept (its end): programs that read untrusted files may print without bound."""

PACKAGES = {"qemu-img": "qemu-utils", "setpriv": "util-linux"}
"""The Debian package of each program that a driver runs."""

DIE_WITH_AGENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Put before a command so that the kernel ends it when the agent dies (prctl(2), PR_SET_PDEATHSIG)."""


class Ended(Struct, frozen=True):
    """How a program ended; ``code`` is negative for a signal."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def disk_full(self) -> bool:
        """Whether it failed for want of room; programs say it only in strerror(3)'s words, which LANG=C fixes."""
        return self.code != 0 and (b"No space left on device" in self.stderr or b"Disk quota exceeded" in self.stderr)

    @property
    def last_words(self) -> str:
        """The last line it printed to standard error, or how it ended when it said nothing."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][-500:]
        return f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


def missing(tool: str) -> MissingTool:
    """Return the error that says what to install."""
    return MissingTool(f"the program {tool} is not installed on this host; install the package {PACKAGES[tool]}")


async def run(command: Sequence[str], *, timeout_s: float, on_stdout: Callable[[bytes], None] | None = None) -> Ended:
    """Return how ``command`` ended; when this call is cancelled or late, the program and its children are killed first.

    Raises: MissingTool, DriverError (TimedOut).
    """
    environment = {"LANG": "C", "LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as exc:
        raise missing(command[0]) from exc
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr, code = await asyncio.gather(
                _read(child.stdout, on_stdout), _read(child.stderr, None), child.wait()
            )
    except TimeoutError as exc:
        raise DriverError("TimedOut", f"a disk command did not end within {timeout_s:g} s and was stopped") from exc
    finally:
        if child.returncode is None:
            await _kill(child)
    return Ended(code, stdout, stderr)


async def _read(stream: asyncio.StreamReader | None, notify: Callable[[bytes], None] | None) -> bytes:
    """Return the end of what the stream says."""
    assert stream is not None
    kept = b""
    while chunk := await stream.read(KEPT_BYTES):
        kept = (kept + chunk)[-KEPT_BYTES:]
        if notify is not None:
            notify(chunk)
    return kept


async def _kill(child: asyncio.subprocess.Process) -> None:
    """Kill the whole session of ``child`` and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.communicate()
