"""Starts a QEMU process that owns nothing: its own user, no capability, an empty network, and only handed descriptors.

The process is started through a shell that first writes down which process it is and then becomes QEMU, so that
there is no moment in which QEMU runs and nobody can know its pid.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from pileus.drivers.host.errors import DriverError, MissingTool

FIRST_UID, UID_COUNT = 200_000, 50_000
"""Users of machines; above what distributions give to people and services."""

_LAUNCH = 'ulimit -c 0; IFS= read -r s </proc/$$/stat; printf "%s\\n" "$s" >"$0"; exec "$@"'


class Descriptors:
    """Descriptors on their way into a new process; ours are closed at the end of the ``with`` block."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)

    def keep(self, fd: int) -> int:
        """Hand over ``fd``, which must be closed by nobody else."""
        self.fds.append(fd)
        return fd

    def open(self, path: str | Path, flags: int) -> int:
        """Open a file for the new process. Raises OSError."""
        return self.keep(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def listen(self, path: Path) -> int:
        """Return a listening unix socket at ``path``; who connects now is served as soon as QEMU is up."""
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(4)
            return self.keep(listener.detach())


def claim_uid(folder: Path) -> tuple[int, int]:
    """Return a user id that no other machine on this computer runs as, and the locked descriptor that claims it.

    The claim lasts as long as any process has the descriptor. Raises DriverError (NoUser) when all are taken.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for uid in range(FIRST_UID, FIRST_UID + UID_COUNT):
        fd = os.open(folder / str(uid), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return uid, fd
    raise DriverError("NoUser", f"all {UID_COUNT} user ids for machines are taken on this computer")


def kvm_groups() -> tuple[int, ...] | None:
    """Return the groups that a machine's user needs to open /dev/kvm; None when no group would do."""
    try:
        device = os.stat("/dev/kvm")
    except OSError:
        return None
    if device.st_mode & 0o006 == 0o006:
        return ()
    return (device.st_gid,) if device.st_mode & 0o060 == 0o060 and device.st_gid != 0 else None


def jail(uid: int, groups: Sequence[int] = ()) -> list[str]:
    """Return the command that becomes, after it dropped everything, the command that follows it. Needs root."""
    if os.geteuid() != 0:
        return []
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not installed; install the package util-linux")
    members = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ["unshare", "--net", "--ipc", "--", "setpriv", f"--reuid={uid}", f"--regid={uid}", members,
            "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]  # fmt: skip


def spawn(argv: Sequence[str], fds: Sequence[int], pid_file: Path, log: Path) -> int:
    """Start ``argv`` in a session of its own with only ``fds`` (same numbers) and return its pid.

    Output goes to ``log``; ``pid_file`` gets the process's line of /proc/PID/stat. Raises OSError.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # dup2 onto the same number clears close-on-exec in the child only (posix_spawn_file_actions_adddup2, glibc 2.29).
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in fds]
    return os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _LAUNCH, str(pid_file), *argv],
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP),
    )


def _inheritable() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue  # the descriptor of the listing itself
    return found
