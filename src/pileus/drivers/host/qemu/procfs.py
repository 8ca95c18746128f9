"""What /proc says of a process: which one it is, and what it used. Knows nothing of QEMU."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from msgspec import Struct

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessId(Struct, frozen=True):
    """A process for sure: the kernel gives a number again, but not with the same start time (ticks since boot)."""

    pid: int
    start_ticks: int


class ProcessStat(Struct, frozen=True, kw_only=True):
    """The fields of /proc/PID/stat that matter here. Source: proc(5)."""

    identity: ProcessId
    state: str
    cpu_s: float
    memory_bytes: int


def parse_stat(text: str) -> ProcessStat:
    """Return what a line of /proc/PID/stat says. Raises ValueError when it is not one."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if not head or len(fields) < 22:
        raise ValueError("not a line of /proc/PID/stat")
    return ProcessStat(
        identity=ProcessId(int(head.split(" ", 1)[0]), int(fields[19])),
        state=fields[0],
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        memory_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def read_stat(pid: int) -> ProcessStat | None:
    """Return the process's facts; None when there is none (a zombie is none)."""
    try:
        stat = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, ValueError):
        return None
    return None if stat.state in "ZX" else stat


def identify(pid: int) -> ProcessId | None:
    """Return which process has the number now, a zombie too; None when none has it."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text()).identity
    except (OSError, ValueError):
        return None


def open_pidfd(process: ProcessId) -> int | None:
    """Return a descriptor that becomes readable when exactly this process ends; None when it is gone already."""
    try:
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, PermissionError):
        return None
    # Looked at after opening: if the number was given again in between, the start time differs.
    if identify(process.pid) == process:
        return fd
    os.close(fd)
    return None


@cache
def host_boot() -> str:
    """Return the id of this boot of the host's kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
