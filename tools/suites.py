"""Runs test suites one after the other and ends with the closing line of each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"


def run(suite: str) -> tuple[bool, str]:
    """Return whether the suite passed, and its closing line; what it prints is passed through."""
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "--durations-min=1", str(TESTS / suite)]
    last = "it printed nothing"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.strip():
                last = line.strip().strip("= ")
    return child.returncode == 0, last


def main(suites: Sequence[str]) -> int:
    """Run every suite, also after one failed, and return the exit code."""
    results = {}
    for suite in suites:
        print(f"--- {suite}", flush=True)
        started = time.monotonic()
        passed, last = run(suite)
        results[suite] = passed
        print(f"suite {suite}: {last}, {time.monotonic() - started:.0f} s with start", flush=True)
    failed = [suite for suite, passed in results.items() if not passed]
    print(f"suites: {len(results) - len(failed)} passed" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
