"""Runs test suites and ends with the closing line of each: those with real VMs beside those without, so that two cores
are never idle while a guest boots."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
REAL = ("vm", "guides")
"""Suites that mostly wait for guests; they run beside the rest."""

_printing = threading.Lock()


def run(suite: str) -> bool:
    """Return whether the suite passed; what it printed comes in one piece, with its closing line and time."""
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "--durations-min=1", str(TESTS / suite)]
    started = time.monotonic()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False
    )
    last = next((line.strip("= ") for line in reversed(done.stdout.splitlines()) if line.strip()), "it printed nothing")
    with _printing:
        print(
            f"--- {suite}\n{done.stdout}suite {suite}: {last}, {time.monotonic() - started:.0f} s with start",
            flush=True,
        )
    return done.returncode == 0


def lane(suites: Sequence[str]) -> list[str]:
    """Run suites one after the other, also after one failed, and return those that failed."""
    return [suite for suite in suites if not run(suite)]


def main(suites: Sequence[str]) -> int:
    """Run every suite and return the exit code."""
    lanes = ([suite for suite in suites if suite in REAL], [suite for suite in suites if suite not in REAL])
    with ThreadPoolExecutor(len(lanes)) as threads:
        failed = [suite for found in threads.map(lane, lanes) for suite in found]
    print(f"suites: {len(suites) - len(failed)} passed" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
