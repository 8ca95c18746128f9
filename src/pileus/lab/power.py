"""Ends processes for sure, and finds those of a host: by its network, by its agent's children, by its machines' locks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pileus.drivers.host.ovs.namespace import FOLDER
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.folder import MachineFolder, machines_of
from pileus.drivers.host.qemu.procfs import ProcessId, open_pidfd, read_stat
from pileus.kernel.errors import Rejected

KILL_TIMEOUT_S = 15.0
LOOK_EVERY_S = 0.02


def inside(namespaces: Iterable[str]) -> set[ProcessId]:
    """Return every process whose network is one of the namespaces."""
    places = set()
    for name in namespaces:
        with contextlib.suppress(OSError):  # a name that lost its mount has nobody inside
            stat = os.stat(FOLDER / name)
            places.add((stat.st_dev, stat.st_ino))
    found = set()
    for pid in _pids():
        with contextlib.suppress(OSError):  # ended meanwhile
            stat = os.stat(f"/proc/{pid}/ns/net")
            if (stat.st_dev, stat.st_ino) in places:
                found.update(_living(pid))
    return found


def below(process: ProcessId) -> set[ProcessId]:
    """Return a process and all its descendants; none when it is gone."""
    if not is_alive(process):
        return set()
    found, todo = {process}, [process.pid]
    while todo:
        with contextlib.suppress(OSError):  # ended meanwhile
            pid = todo.pop()
            for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                found.update(_living(int(word)))
                todo.append(int(word))
    return found


def machines(paths: HostPaths) -> set[ProcessId]:
    """Return the QEMU process of every machine of a host that runs."""
    folders = [MachineFolder(paths, machine) for machine in machines_of(paths)]
    recorded = [folder.recorded_pid() for folder in folders if folder.is_locked()]
    return {process for process in recorded if process is not None and is_alive(process)}


async def kill(find: Callable[[], set[ProcessId]]) -> int:
    """Kill what ``find`` finds until it finds nothing, and return how many that were. Raises: Rejected."""
    killed: set[ProcessId] = set()
    end = time.monotonic() + KILL_TIMEOUT_S
    while found := await asyncio.to_thread(find):
        if time.monotonic() > end:
            numbers = ", ".join(str(process.pid) for process in found)
            raise Rejected(f"processes of the lab do not end when they are killed: {numbers}")
        killed |= found
        for process in found:
            send(process, signal.SIGKILL)
        await asyncio.sleep(LOOK_EVERY_S)
    return len(killed)


def send(process: ProcessId, number: signal.Signals) -> None:
    """Send a signal to exactly this process; it is gone: nothing."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


async def ended(processes: Iterable[ProcessId], timeout_s: float) -> bool:
    """Wait for the end of processes, and tell whether all did within the time."""
    end = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(LOOK_EVERY_S)
    return True


def is_alive(process: ProcessId) -> bool:
    """Tell whether exactly this process runs."""
    return process in _living(process.pid)


def _living(pid: int) -> list[ProcessId]:
    """Return the process that has the number, in a list; a zombie is none."""
    stat = read_stat(pid)
    return [] if stat is None else [stat.identity]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
