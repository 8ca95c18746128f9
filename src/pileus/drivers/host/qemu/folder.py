"""What the driver remembers of one machine, and the lock that says whether its process lives.

The QEMU process inherits a descriptor of the lock file, locked: as long as it runs, whoever started it and whether or
not that was written down, nobody else gets the lock. So there are never two processes of one machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import Exit, ExitReason, MachineSpec
from pileus.drivers.host.qemu.command import QEMU
from pileus.drivers.host.qemu.procfs import ProcessId, host_boot, parse_stat


class Record(Struct, frozen=True, kw_only=True):
    """``started_at`` is None when no process is expected; ``ending``: why the process is being ended by us.

    ``slots``: PCI slot by device id of what is plugged. ``host_boot``: the boot of the host that the start belongs to.
    """

    spec: MachineSpec | None = None
    boots: int = 0
    started_at: float | None = None
    host_boot: str = ""
    ending: ExitReason | None = None
    exit: Exit | None = None
    slots: dict[str, int] = {}


class MachineFolder:
    """Files of one machine: the record in the state folder; lock, pid, log and sockets in the run folder."""

    def __init__(self, paths: HostPaths, machine: str) -> None:
        self.machine = machine
        self.state = paths.machine(machine)
        self.run = paths.machine_run(machine)
        self.firmware = paths.firmware(machine)
        self.console_log = paths.console_log(machine)
        self.console_socket = paths.console_socket(machine)
        self.channel_socket = paths.channel_socket(machine)
        self.qmp_socket = self.run / "qmp"
        self.pid_file = self.run / "pid"
        self.log = self.run / "qemu.log"
        self._lock = self.run / "lock"
        self._record = self.state / "machine.json"
        self._watched = paths.watched
        self.record = self._load()

    def change(self, **fields: object) -> None:
        """Write the record with ``fields`` replaced, atomically."""
        self.record = replace(self.record, **fields)
        draft = self._record.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(self.record))
        # No fsync: file systems order a rename after the contents; a torn record is read as an empty one.
        draft.replace(self._record)

    def make(self) -> None:
        """Make both folders, open to their owner only."""
        for folder in (self.state, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def take_lock(self) -> int | None:
        """Return a locked descriptor to hand to the new process; None while a process of this machine lives."""
        fd = os.open(self._lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def is_locked(self) -> bool:
        """Whether a process of this machine lives (or is just being started)."""
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def recorded_pid(self) -> ProcessId | None:
        """Return the process that the launcher wrote down before it became QEMU; None when it did not yet."""
        try:
            return parse_stat(self.pid_file.read_text()).identity
        except (OSError, ValueError):
            return None

    def clear_run(self) -> None:
        """Remove what the last process left in the run folder, except the lock."""
        for path in (self.qmp_socket, self.console_socket, self.channel_socket, self.pid_file, self.log):
            path.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Return the last complaint that QEMU printed, without the argument it is about; empty when it said nothing."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        # A hint, such as "Is another process using the image?", follows on a line without the program's name.
        complaints = [line for line in lines if line.startswith(QEMU) and "warning:" not in line]
        line = (complaints or lines or [""])[-1]
        return line.removeprefix(f"{QEMU}: ").rpartition("}: ")[2]

    def note_exit(self, found: Exit) -> None:
        """Write down that the process is gone; what we had announced goes before what was ``found``."""
        if self.record.started_at is None:
            return
        if self.record.ending is not None:
            found = Exit(reason=self.record.ending, at=found.at)
        self.change(started_at=None, ending=None, exit=found)
        self.clear_run()

    def note_lost(self) -> None:
        """Write down the end of a process that ended while no agent looked: it was there when one looked last."""
        message = self.last_words() if self.record.host_boot == host_boot() else "the host was restarted"
        now, seen = time.time(), watched_at(self._watched)
        at = now if seen is None else min(max(seen, self.record.started_at or 0.0), now)
        self.note_exit(Exit(reason="killed", at=at, message=message))

    def remove(self) -> None:
        """Remove both folders."""
        for folder in (self.run, self.state):
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self) -> Record:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return Record()


def note_watched(file: Path) -> None:
    """Note that all machines of the host are in sight now. Raises: OSError.

    Without a sync: a host that loses power may lose some seconds of it.
    """
    file.touch(mode=0o600)
    os.utime(file, (now := time.time(), now))  # the kernel's own time of writing lags by a tick


def watched_at(file: Path) -> float | None:
    """Return when the machines were in sight last (Unix seconds); None when nobody noted it."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def machines_of(paths: HostPaths) -> set[str]:
    """Return the ids of the machines that have a folder."""
    found: set[str] = set()
    for parent in (paths.machine("x").parent, paths.machine_run("x").parent):
        found.update(_folders(parent))
    return found


def _folders(parent: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
