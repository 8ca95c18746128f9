"""The machine's users as the document says: lines of the account files, keys and rights; nothing else of these is touched.

A user's keys lie where only root writes (``/etc/ssh/authorized_keys.d/NAME``); rights are lines for sudo. An image that
has neither sshd nor sudo has them for nothing. A user's number is never another's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from pileus.node.applications import processes
from pileus.node.applications.kept import put
from pileus.node.applications.model import User
from pileus.node.role import RoleRefused

FIRST_UID = 20_000
LAST_UID = 29_999
"""Users with these numbers are the role's."""

_SSHD = b"# Keys are what the role's document says.\nAuthorizedKeysFile /etc/ssh/authorized_keys.d/%u\n"


class Accounts:
    """The users below ``root``; ``uids`` has the number of everybody who ever was one, and is added to."""

    def __init__(self, root: Path, uids: dict[str, int]) -> None:
        self._etc = root / "etc"
        self._home = root / "home"
        self._uids = uids

    def check(self, users: Mapping[str, User]) -> None:
        """Raises: RoleRefused for a name that is a user or group of the image."""
        for file in ("passwd", "group"):
            for name, number in self._lines(file):
                if name in users and not FIRST_UID <= number <= LAST_UID:
                    raise RoleRefused(f"users {name!r}: the machine has a user or group of that name")

    def make(self, users: Mapping[str, User]) -> None:
        """Let there be these users, and no others of ours. Processes of one that goes are ended. Raises: OSError."""
        gone = {name: number for name, number in self._lines("passwd") if _is_ours(number) and name not in users}
        for name in users:
            if name not in self._uids:
                self._uids[name] = max([FIRST_UID - 1, *self._uids.values()]) + 1
        if not users and not gone:
            return
        self._write_keys(users, gone)
        self._write_rights(users)
        ours = [(user, self._uids[name]) for name, user in sorted(users.items())]
        self._write("group", [f"{user.name}:x:{uid}:" for user, uid in ours])
        self._write("shadow", [f"{user.name}:*:19000:0:99999:7:::" for user, _ in ours])
        self._write("passwd", [f"{user.name}:x:{uid}:{uid}::/home/{user.name}:{user.shell}" for user, uid in ours])
        for number in gone.values():
            processes.end_of_user(number)
        for user, uid in ours:
            self._make_home(user.name, uid)

    def numbers(self, name: str) -> tuple[int, int]:
        """Return the number and group of a user, "" for who we are. Raises: OSError when there is none."""
        if name == "":
            return os.geteuid(), os.getegid()
        if name in self._uids:
            return self._uids[name], self._uids[name]
        for line in self._text("passwd").splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2]), int(fields[3])
        raise OSError(f"there is no user {name!r}")

    def _write_keys(self, users: Mapping[str, User], gone: Iterable[str]) -> None:
        folder = self._etc / "ssh/authorized_keys.d"
        folder.mkdir(parents=True, exist_ok=True)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for name, user in users.items():
            _put(folder / name, "".join(f"{key}\n" for key in user.keys).encode(), 0o644)
        settings = self._etc / "ssh/sshd_config.d"
        if settings.is_dir():
            _put(settings / "pileus.conf", _SSHD, 0o644)

    def _write_rights(self, users: Mapping[str, User]) -> None:
        lines = [
            f"{name} ALL=(root) NOPASSWD: {', '.join('ALL' if right == 'all' else right for right in user.rights)}\n"
            for name, user in sorted(users.items())
            if user.rights
        ]
        folder = self._etc / "sudoers.d"
        file = folder / "pileus-applications"
        if lines:
            folder.mkdir(mode=0o750, exist_ok=True)
            _put(file, "".join(lines).encode(), 0o440)
        else:
            file.unlink(missing_ok=True)

    def _write(self, name: str, lines: list[str]) -> None:
        """Replace our lines of an account file."""
        ours = set(self._uids)
        others = [line for line in self._text(name).splitlines() if line.partition(":")[0] not in ours]
        file = self._etc / name
        mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
        _put(file, "".join(f"{line}\n" for line in [*others, *lines]).encode(), mode)

    def _make_home(self, name: str, uid: int) -> None:
        home = self._home / name
        if not home.exists():
            self._home.mkdir(exist_ok=True)
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)

    def _lines(self, name: str) -> Iterable[tuple[str, int]]:
        for line in self._text(name).splitlines():
            fields = line.split(":")
            if len(fields) > 2 and fields[2].isdecimal():
                yield fields[0], int(fields[2])

    def _text(self, name: str) -> str:
        try:
            return (self._etc / name).read_text()
        except FileNotFoundError:
            return ""


def _is_ours(number: int) -> bool:
    return FIRST_UID <= number <= LAST_UID


def _put(file: Path, text: bytes, mode: int) -> None:
    """Replace a file, if that changes it."""
    if not file.exists() or file.read_bytes() != text:
        put(file, text, mode)
