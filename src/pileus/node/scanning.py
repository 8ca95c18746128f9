"""Looks for signatures in the machine that it runs in: what runs, what is in memory, what lies in files.

The looking is done by a process of its own (``scanner``), which may be killed: by its limits, by the kernel when memory
is short (it goes first), by a rule that explodes. Then the answer is ``unknown``, never ``clean``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

TIME_S = 60.0
TIME_S_MAX = 240.0
"""A request's role has five minutes."""

GRACE_S = 5.0
IDLE_S = 0.5
FINDINGS_MAX = 200
RULES_BYTES_MAX = 4 << 20
ANSWER_BYTES_MAX = 200 << 10
"""Of findings; an answer to a request is cut at 256 KiB."""

PATHS_MAX = 64
WORDS_MAX = 500
_SAID_BYTES_MAX = 1 << 20
_PIECE_BYTES = 64 << 10

Fields = dict[str, Any]


class ScanRefused(Exception):
    """What was asked for cannot be scanned for: ``message`` is for who asked."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def scan_inside(
    rules_text: str,
    paths: Sequence[str] = ("/",),
    *,
    memory: bool = True,
    time_s: float = TIME_S,
    idle: Callable[[], None] = lambda: None,
) -> Fields:
    """Return what is in this machine: state (clean, found, unknown), findings, what was looked at, and why not all was.

    ``paths``: files and folders, nothing that is linked to; none: no files. ``memory``: also that of what runs.
    ``time_s``: 1 to ``TIME_S_MAX``. ``idle`` is called about twice a second meanwhile. Raises: ScanRefused.
    """
    _check(rules_text, paths, time_s)
    order = {"rules": rules_text, "paths": list(paths), "memory": memory, "time_s": time_s, "without": [os.getpid()]}
    words = [sys.executable, "-I", "-m", "pileus.node.scanner"]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    child = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        said, is_late = _heard(child, json.dumps(order).encode(), time.monotonic() + time_s + GRACE_S, idle)
    finally:
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    return _result(said, "TimedOut" if is_late else "Crashed", code)


def _check(rules_text: str, paths: Sequence[str], time_s: float) -> None:
    """Raises: ScanRefused."""
    if not isinstance(rules_text, str) or not 0 < len(rules_text) <= RULES_BYTES_MAX:
        raise ScanRefused(f"rules are YARA text of at most {RULES_BYTES_MAX} characters")
    if not isinstance(paths, list | tuple) or len(paths) > PATHS_MAX or not all(_is_path(path) for path in paths):
        raise ScanRefused(f"paths are at most {PATHS_MAX} absolute paths")
    if isinstance(time_s, bool) or not isinstance(time_s, int | float) or not 1 <= time_s <= TIME_S_MAX:
        raise ScanRefused(f"time_s is 1 to {TIME_S_MAX:g}")


def _is_path(path: object) -> bool:
    return isinstance(path, str) and path.startswith("/") and "\0" not in path and len(path) <= 4096


def _heard(child: subprocess.Popen[bytes], order: bytes, until: float, idle: Callable[[], None]) -> tuple[bytes, bool]:
    """Return what the process said, and whether it was still at it when its time was over."""
    assert child.stdin is not None
    assert child.stdout is not None
    os.set_blocking(child.stdin.fileno(), False)
    said, left = b"", order
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    poll.register(child.stdin, select.POLLOUT)
    while time.monotonic() < until:
        ready = dict(poll.poll(IDLE_S * 1000))
        idle()
        if left and child.stdin.fileno() in ready:
            try:
                left = left[os.write(child.stdin.fileno(), left[:_PIECE_BYTES]) :]
            except BrokenPipeError:
                left = b""
            if not left:
                poll.unregister(child.stdin)
                child.stdin.close()
        if child.stdout.fileno() in ready:
            more = os.read(child.stdout.fileno(), _PIECE_BYTES)
            if not more:
                return said, False
            said = (said + more)[-_SAID_BYTES_MAX:]
    return said, True


def _result(said: bytes, reason: str, code: int) -> Fields:
    """Return the answer; ``reason`` is for a process that did not say how it ended."""
    findings: list[Fields] = []
    ended: Fields | None = None
    room, left_out = ANSWER_BYTES_MAX, 0
    for line in said.split(b"\n"):
        try:
            one = json.loads(line) if line else {}
        except ValueError:
            continue  # a line that was cut
        if "finding" in one:
            room -= len(line)
            if room >= 0:
                findings.append(one["finding"])
            left_out += room < 0
        ended = one.get("ended", ended)
    if ended is None:
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        words = "it took longer than it may" if reason == "TimedOut" else f"it ended before its end ({how})"
        ended = {"reason": reason, "message": f"the scan is not complete: {words}"}
    state = "found" if findings else "unknown" if ended["reason"] else "clean"
    return {"state": state, **ended, "left_out": ended.get("left_out", 0) + left_out, "findings": findings}
