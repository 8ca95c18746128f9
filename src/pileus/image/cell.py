"""Goes into new namespaces, builds a root folder that holds only what it was told, drops every right, runs the command.

It knows no image. Standard library only, started with ``python -I -S`` and one JSON argument (``Plan``). Not
unshare(1): that of util-linux 2.38 loses how a killed command ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import TypedDict

SYSTEM_FOLDERS = ("usr", "lib", "lib64", "bin")
"""Programs and libraries, read-only; where the distribution merged /usr, all but the first are links into it."""

DEVICES = ("null", "urandom")

# <sys/mount.h>, <linux/prctl.h>, <linux/sched.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38

CAPABILITY_MAX = 64
"""Capability sets are 64 bits wide (capabilities(7))."""

NAMESPACES = {
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}

LIMITS = {
    "memory_bytes": resource.RLIMIT_AS,
    "cpu_s": resource.RLIMIT_CPU,
    "file_bytes": resource.RLIMIT_FSIZE,
    "files": resource.RLIMIT_NOFILE,
    "core_bytes": resource.RLIMIT_CORE,
}


class Plan(TypedDict):
    """``root``: an empty folder to mount over. ``files``: [path outside, name inside, "ro" or "rw"].

    ``limits``: a number for each key of ``LIMITS``. ``user``: user and group id of the command.
    """

    root: str
    files: list[tuple[str, str, str]]
    limits: dict[str, int]
    user: int
    command: list[str]


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: bytes | int | None) -> None:
    """Call the C library. Raises OSError."""
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
    if getattr(_libc, name)(*words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _bind(outside: str, inside: str, flags: int) -> None:
    """Show ``outside`` at ``inside``; flags take effect only when a bind mount is mounted again (mount(2))."""
    _call("mount", outside.encode(), inside.encode(), None, MS_BIND, None)
    _call("mount", None, inside.encode(), None, MS_BIND | MS_REMOUNT | flags, None)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def _build(plan: Plan) -> None:
    """Fill the root folder and close it for writing."""
    root = plan["root"]
    _call("mount", b"cell", root.encode(), b"tmpfs", MS_NOSUID, b"size=64k,mode=0755")
    for name in SYSTEM_FOLDERS:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}")
            _bind(f"/{name}", f"{root}/{name}", MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.mkdir(f"{root}/dev")
    for name in DEVICES:
        _touch(f"{root}/dev/{name}")
        _bind(f"/dev/{name}", f"{root}/dev/{name}", MS_NOSUID | MS_NOEXEC)
    for outside, name, mode in plan["files"]:
        _touch(f"{root}/{name}")
        _bind(outside, f"{root}/{name}", MS_NOSUID | MS_NODEV | MS_NOEXEC | (MS_RDONLY if mode == "ro" else 0))
    _call("mount", None, root.encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None)


def _enter(root: str) -> None:
    """Make ``root`` the root folder and let the old one go: pivot_root(2), "pivot_root(., .)"."""
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _drop(user: int, limits: dict[str, int]) -> None:
    """Give up root, every capability for ever, and all that is over the limits."""
    for name, value in limits.items():
        resource.setrlimit(LIMITS[name], (value, value))
    for capability in range(CAPABILITY_MAX):
        # EINVAL: a capability that this kernel does not have.
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Once more: the change of user cleared it (prctl(2)).
    _die_with_parent()


def _die_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _become(plan: Plan) -> None:
    """Become the command, as the first process of the PID namespace. Raises OSError."""
    _die_with_parent()
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    _build(plan)
    _enter(plan["root"])
    _drop(plan["user"], plan["limits"])
    environment = {"LANG": "C", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    os.execvpe(plan["command"][0], plan["command"], environment)  # noqa: S606 (no shell is what is wanted)


def confine(root: str, user: int, limits: dict[str, int], work: Callable[[], int]) -> int:
    """Return what ``work`` does where there is no file at all, or 128 and the signal that killed it. Raises OSError.

    It keeps the descriptors that are open now and the modules that are loaded; ``root`` is an empty folder.
    """

    def enter() -> None:
        _die_with_parent()
        _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        _call("mount", b"cell", root.encode(), b"tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, b"size=4k")
        _enter(root)
        _drop(user, limits)
        os._exit(work())

    return _apart(enter)


def main() -> int:
    """Return the command's exit code, or 128 and the signal that killed it, as a shell would. Raises OSError."""
    plan: Plan = json.loads(sys.argv[1])
    return _apart(lambda: _become(plan))


def _apart(become: Callable[[], None]) -> int:
    """Return how a child with namespaces of its own ended. Raises OSError."""
    _call("unshare", sum(NAMESPACES.values()))
    child = os.fork()
    if child == 0:
        become()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        sys.stderr.write(f"ended by signal {-code}\n")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
