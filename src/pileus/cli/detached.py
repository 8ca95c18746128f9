"""Commands that go on by themselves once what they start is ready."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click


def run_detached(words: Sequence[str], log: Path, ready: str, timeout_s: float = math.inf) -> int | None:
    """Run ``pileus`` with ``words`` in the background, and tell what it says until a line begins with ``ready``.

    Return None then, or its exit code when it ended before; one that is late is ended. Its errors go to the end of ``log``,
    whose folder is made.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.touch(mode=0o600)
    with log.open("ab") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "pileus.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            text=True,
        )
    assert child.stdout is not None
    end = time.monotonic() + timeout_s
    for line in child.stdout:
        click.echo(line.rstrip())
        if line.startswith(ready):
            return None
        if time.monotonic() > end:
            child.terminate()
            break
    return child.wait()
