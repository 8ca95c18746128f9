"""Processes that outlive whoever started them: known by number and start, their end seen at once.

A number alone says nothing, because the kernel gives it again: the start (ticks since boot) tells whose it is, and a
pidfd, once opened, stays with the one process. Source: proc(5), stat, fields 6 and 22; pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

OOM_ADJUSTMENT = 500
"""Of 1000: when memory is short, an application goes before the node does."""

KILL_S = 10.0
"""A process in the middle of a read of a disk that does not answer ends later than that; it is not waited for."""

IDLE_S = 0.1

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, as whom; ``mark``: a variable of its environment by which it is found again."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    folder: Path
    log: Path
    uid: int
    gid: int


class Leader:
    """One process, leader of a session of its own; a child of ours, or taken over."""

    def __init__(self, pid: int, start: str, fd: int, is_child: bool = False) -> None:
        self.pid, self.start, self.fd = pid, start, fd
        self._is_child = is_child

    def has_ended(self, within_s: float = 0.0) -> bool:
        """Return whether it ended, after waiting for that."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def ends_until(self, until: float, idle: Callable[[], None]) -> bool:
        """Return whether it ended by then, a time of ``time.monotonic``; ``idle`` is called now and then."""
        while not self.has_ended(min(IDLE_S, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            idle()
        return True

    def tell(self, number: signal.Signals) -> None:
        """Send its group a signal, unless it ended."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def bury(self) -> str:
        """End what it left in its group, let go of it, and return how it ended: ``exit 1``, ``signal 9``, ``unknown``."""
        code = "unknown"
        if not self.has_ended(KILL_S):
            self.tell(signal.SIGKILL)
        elif self._is_child:
            # Until it is waited for, its number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            code = f"exit {ended}" if ended >= 0 else f"signal {-ended}"
        else:
            end_session(self.pid)
        self.forget()
        return code

    def forget(self) -> None:
        """Let go of it; it goes on."""
        os.close(self.fd)
        self.fd = -1


def start(launch: Launch) -> Leader:
    """Start it. Raises: OSError, ValueError (a word that no program can be given)."""
    fd = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    is_other = launch.uid != os.geteuid()
    try:
        child = subprocess.Popen(
            launch.argv, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, cwd=launch.folder, env=launch.environment,
            start_new_session=True, user=launch.uid if is_other else None, group=launch.gid if is_other else None,
            extra_groups=[] if is_other else None, umask=0o022,
        )  # fmt: skip
    except subprocess.SubprocessError as failed:
        raise OSError(f"it may not run as its user: {failed}") from failed
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        (_PROC / str(child.pid) / "oom_score_adj").write_text(str(OOM_ADJUSTMENT))
    # It is not waited for yet, so the number is its own, ended or not. We wait for it, and not Popen.
    child.returncode = 0
    return Leader(child.pid, start_of(child.pid), os.pidfd_open(child.pid), is_child=True)


def take_over(pid: int, start: str) -> Leader | None:
    """Return the process of a former run, if it is still the same."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    # What is looked at now is what the descriptor is of: a number is not given again before that.
    if start and start_of(pid) == start and not _is_zombie(pid):
        return Leader(pid, start, fd)
    os.close(fd)
    return None


def find(variable: str) -> Leader | None:
    """Return the leader of a session that has this in its environment, such as ``A=1``."""
    for pid, fields in _processes_with({variable}):
        if int(fields[3]) == pid and fields[0] != "Z":
            return take_over(pid, fields[19])
    return None


def end_all(variables: Collection[str]) -> None:
    """End every process that has one of these in its environment."""
    for pid, fields in _processes_with(variables) if variables else ():
        _kill(pid, fields[19])


def end(processes: Iterable[tuple[Leader, float]], idle: Callable[[], None]) -> None:
    """End processes, each given its seconds to end by itself; they may be suspended. ``idle``: called meanwhile.

    Who is killed then has not ended yet when this returns: ``bury`` waits for that.
    """
    began = time.monotonic()
    left = list(processes)
    for process, _ in left:
        process.tell(signal.SIGTERM)
        process.tell(signal.SIGCONT)
    for process, patience_s in sorted(left, key=lambda one: one[1]):
        if not process.ends_until(began + patience_s, idle):
            process.tell(signal.SIGKILL)


def end_session(number: int) -> None:
    """End what is left of a session whose leader is gone: the number is not given again before."""
    for pid, fields in _processes():
        if int(fields[3]) == number and pid != number:
            _kill(pid, fields[19])


def end_of_user(uid: int) -> None:
    """End every process of a user."""
    for pid, fields in _processes():
        with contextlib.suppress(OSError):
            if (_PROC / str(pid)).stat().st_uid == uid:
                _kill(pid, fields[19])


def start_of(pid: int) -> str:
    """Return the start of a process, ended or not, in ticks since boot; empty when there is none."""
    fields = _fields(pid)
    return fields[19] if fields else ""


def _is_zombie(pid: int) -> bool:
    fields = _fields(pid)
    return not fields or fields[0] == "Z"


def _kill(pid: int, start: str) -> None:
    process = take_over(pid, start)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.fd, signal.SIGKILL)
        process.forget()


def _processes_with(variables: Collection[str]) -> Iterable[tuple[int, list[str]]]:
    wanted = {variable.encode() for variable in variables}
    for pid, fields in _processes():
        with contextlib.suppress(OSError):
            if wanted.intersection((_PROC / str(pid) / "environ").read_bytes().split(b"\0")):
                yield pid, fields


def _processes() -> Iterable[tuple[int, list[str]]]:
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (fields := _fields(int(entry))):
            yield int(entry), fields


def _fields(pid: int) -> list[str]:
    """Return the fields of the process from its state on; none when there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
