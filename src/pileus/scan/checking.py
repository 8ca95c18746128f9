"""Has a set of rules compiled by a process of its own, with limits: a set that explodes ends that process alone.

It needs no jail and no root: what runs there is the compiler, on text, without files or network to ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys

import msgspec
from msgspec import Struct

from pileus.scan.report import printable
from pileus.scan.rules import RULES_BYTES_MAX, Listed, RulesRefused, describe

TIME_S = 10.0
"""A thousand rules take 0.1 s (measured)."""

MEMORY_BYTES = 1024**3
SAID_BYTES_MAX = 16 * 1024**2


class _Answer(Struct, frozen=True, kw_only=True):
    """What the process says: ``listed``, or why the rules are refused."""

    listed: Listed | None = None
    reason: str = ""
    message: str = ""
    line: int = 0


async def check(source: str, *, time_s: float = TIME_S) -> Listed:
    """Return what the rules are.

    Raises: RulesRefused (those of ``rules.describe``; TooCostly for rules that take too long or too much memory).
    """
    content = source.encode(errors="surrogatepass")
    if len(content) > RULES_BYTES_MAX:
        raise RulesRefused("TooLarge", f"the rules have {len(content)} bytes, {RULES_BYTES_MAX} are allowed")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-m", "pileus.scan.checking"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"LANG": "C", "PATH": os.defpath},
    )
    try:
        async with asyncio.timeout(time_s):
            said, _ = await child.communicate(content)
    except TimeoutError:
        raise RulesRefused("TooCostly", f"the rules are not compiled within {time_s:g} s; make them simpler") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGKILL)
            await child.wait()
    return _judged(said)


def _judged(said: bytes) -> Listed:
    """Raises: RulesRefused."""
    try:
        answer = msgspec.json.decode(said[:SAID_BYTES_MAX], type=_Answer)
    except msgspec.DecodeError:
        raise RulesRefused("TooCostly", "the rules take more memory or time than they may; make them simpler") from None
    if answer.listed is None:
        raise RulesRefused(printable(answer.reason), printable(answer.message), answer.line)
    return answer.listed


def main() -> int:
    """Compile what comes in, within limits, and say what it is."""
    for kind, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, int(TIME_S)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    try:
        answer = _Answer(listed=describe(sys.stdin.buffer.read().decode()))
    except UnicodeDecodeError:
        answer = _Answer(reason="NotText", message="the rules are not UTF-8 text")
    except RulesRefused as exc:
        answer = _Answer(reason=exc.reason, message=exc.message, line=exc.line)
    except MemoryError:
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
