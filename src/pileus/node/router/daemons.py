"""Programs that run as long as they are wanted: started again when they end, taken over from a former run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RUN = Path("/run/pileus")
PAUSE_S = 1.0
"""Between two starts, so that one that cannot run does not take the whole machine."""

STOP_S = 2.0
"""What a program may need to end by itself."""


class Daemon:
    """One program, in the foreground of its own session; its process is known by its number and start."""

    def __init__(self, name: str, argv: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.starts = 0
        """How often it was started here."""
        self._argv = list(argv)
        self._clock = clock
        self._note = RUN / f"{name}.pid"
        self._child: subprocess.Popen[bytes] | None = None
        self._started: float | None = None

    @property
    def pid(self) -> int:
        """Return its process, 0 when it does not run."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        if self._child is not None:
            return self._child.pid
        return self._taken_over()

    def start(self) -> None:
        """Start it unless it runs, or was started just now. Raises OSError."""
        now = self._clock()
        if self.pid or (self._started is not None and now - self._started < PAUSE_S):
            return
        self._started = now
        RUN.mkdir(exist_ok=True)
        with (RUN / f"{self.name}.log").open("wb") as log:
            self._child = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        self.starts += 1
        self._note.write_text(f"{self._child.pid} {_start_of(self._child.pid)}")

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it, if it runs; returns when it is gone."""
        self.tell(signal.SIGTERM)
        end = self._clock() + STOP_S
        while self.pid and self._clock() < end:
            time.sleep(0.02)
        self.tell(signal.SIGKILL)
        while self.pid:
            time.sleep(0.02)
        self._started = None
        self._note.unlink(missing_ok=True)

    def _taken_over(self) -> int:
        try:
            pid, start = self._note.read_text().split()
            return int(pid) if start == _start_of(int(pid)) else 0
        except (OSError, ValueError):
            return 0


def _start_of(pid: int) -> str:
    """Return the start of the process in ticks since boot, empty when it has ended. Source: proc(5), stat, field 22."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
