"""What a document of the role says, read once and checked whole: everything after this trusts it. Pure.

``Change`` is what a request changed of an entry: it holds until the document says something else of that entry.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pileus.node.document import Document
from pileus.node.role import RoleRefused
from pileus.node.router.words import Entry

APPLICATIONS_MAX = 64
USERS_MAX = 128
REGISTRATIONS_MAX = 128
FILES_MAX = 64
FILES_CHARACTERS_MAX = 256 << 10
"""Of one application: for settings and scripts; programs belong in an image."""

STOP_S_MAX = 30
SETTLE_S_MAX = 30

SECTIONS = {"applications": APPLICATIONS_MAX, "users": USERS_MAX, "registrations": REGISTRATIONS_MAX}

Wanted = Literal["running", "suspended", "stopped"]

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
USER = re.compile(r"[a-z][a-z0-9-]{0,30}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
_TEXT = re.compile(r"[^\x00\ud800-\udfff]*")
_ARGUMENT = re.compile(r"[^\x00\ud800-\udfff]{0,8192}")
_PROGRAM = re.compile(r"[^\x00-\x1f\ud800-\udfff]{1,4096}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,7}")
_VARIABLE = re.compile(r"(?!PILEUS_)[A-Za-z_][A-Za-z0-9_]{0,63}")
_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" [A-Za-z0-9+/]{16,2000}={0,3}( [A-Za-z0-9@._-]{1,100})?"
)
_RIGHT = re.compile(r"all|(/(?!\.)[A-Za-z0-9._-]{1,100}){1,16}")
_SHELL = re.compile(r"(/(?!\.)[A-Za-z0-9._-]{1,100}){1,8}")
_TOKEN = re.compile(r"[\x20-\x7e]{0,4096}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")

_FIELDS = {
    "applications": {"command", "version", "restart", "environment", "stop_s", "settle_s", "user", "files"},
    "users": {"keys", "rights", "shell"},
    "registrations": {"until", "token", "revoked"},
}


class Application(NamedTuple):
    """A program that runs as the leader of a session of its own.

    ``settle_s``: an update whose program ends within it has failed. ``fields``: the entry as it was written.
    """

    name: str
    command: tuple[str, ...]
    version: str
    restart: str
    environment: tuple[tuple[str, str], ...]
    stop_s: float
    settle_s: float
    user: str
    files: tuple[tuple[str, str], ...]
    fields: dict[str, Any]
    wanted: Wanted = "running"

    @property
    def launch(self) -> str:
        """Return what makes a new process necessary when it changes."""
        return digest([self.command, self.version, self.environment, self.user, self.files])


class User(NamedTuple):
    """An account of the machine; ``rights``: what it may run as root, ``all`` or programs."""

    name: str
    keys: tuple[str, ...]
    rights: tuple[str, ...]
    shell: str


class Registration(NamedTuple):
    """A lease; ``until``: Unix seconds."""

    name: str
    until: float
    is_revoked: bool


class Config(NamedTuple):
    """A whole document, with what requests changed of it."""

    applications: dict[str, Application]
    users: dict[str, User]
    registrations: dict[str, Registration]


@dataclass(slots=True)
class Change:
    """What a request made of one entry. ``of``: the digest of the document's entry, "" for none.

    ``fields``: in place of the document's; ``is_removed``: there shall be none. ``failed``: why the last update was taken
    back. ``asked``: the last request that restarted the application.
    """

    of: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    is_removed: bool = False
    wanted: Wanted = "running"
    failed: str = ""
    asked: str = ""


Changes = dict[str, dict[str, Change]]
"""Section -> name -> change."""


def digest(value: object) -> str:
    """Return a word that stands for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(document: Document, section: str, name: str) -> str:
    """Return the digest of a document's entry; empty when there is none."""
    entries = document.get(section, {})
    return digest(entries[name]) if name in entries else ""


def current(document: Document, changes: Changes) -> Changes:
    """Return the changes that still hold over the document."""
    return {
        section: {name: one for name, one in changes.get(section, {}).items() if one.of == digest_of(document, section, name)}
        for section in SECTIONS
    }  # fmt: skip


def read(document: Document, changes: Changes) -> Config:
    """Return what the document says, with the changes that hold. Raises RoleRefused."""
    for section in document:
        if section not in SECTIONS:
            raise RoleRefused(f"the section {section[:60]!r} means nothing to the role applications")
    entries = {section: _entries(document, changes, section) for section in SECTIONS}
    users = {name: read_user(name, fields) for name, fields in entries["users"].items()}
    applications: dict[str, Application] = {}
    for name, fields in entries["applications"].items():
        made = applications[name] = read_application(name, fields)
        if made.user not in ("", "nobody", *users):
            raise RoleRefused(f"applications {name!r}: there is no user {made.user!r}")
        change = changes.get("applications", {}).get(name)
        if change is not None:
            applications[name] = made._replace(wanted=change.wanted)
    registrations = {name: read_registration(name, fields) for name, fields in entries["registrations"].items()}
    return Config(applications, users, registrations)


def read_application(name: str, fields: dict[str, Any]) -> Application:
    """Return an application. Raises RoleRefused."""
    entry = _entry("applications", name, NAME, fields)
    command = entry.words("command", _ARGUMENT)
    if not command or _PROGRAM.fullmatch(command[0]) is None:
        raise entry.refused("command", fields.get("command"))
    user = entry.word("user", USER, "")
    files = _pairs(entry, fields, "files", _FILE)
    if len(files) > FILES_MAX or sum(len(text) for _, text in files) > FILES_CHARACTERS_MAX:
        raise RoleRefused(f"{entry.where}: more than {FILES_MAX} files, or {FILES_CHARACTERS_MAX} characters in them")
    if fields.get("restart", "no") not in ("no", "always"):
        raise entry.refused("restart", fields["restart"])
    return Application(
        name=name,
        command=command,
        version=entry.word("version", VERSION, ""),
        restart=str(fields.get("restart", "no")),
        environment=_pairs(entry, fields, "environment", _VARIABLE),
        stop_s=entry.number("stop_s", 0, STOP_S_MAX, 5),
        settle_s=entry.number("settle_s", 0, SETTLE_S_MAX, 1),
        user=user,
        files=files,
        fields=fields,
    )


def read_user(name: str, fields: dict[str, Any]) -> User:
    """Return a user. Raises RoleRefused."""
    entry = _entry("users", name, USER, fields)
    keys, rights = entry.words("keys", _KEY), entry.words("rights", _RIGHT)
    return User(name, keys, rights, entry.word("shell", _SHELL, "/bin/sh"))


def read_registration(name: str, fields: dict[str, Any]) -> Registration:
    """Return a registration. Raises RoleRefused."""
    entry = _entry("registrations", name, NAME, fields)
    entry.word("token", _TOKEN, "")
    return Registration(name, _moment(entry, entry.word("until", _TIME)), entry.is_set("revoked"))


def _entries(document: Document, changes: Changes, section: str) -> dict[str, dict[str, Any]]:
    entries = dict(document.get(section, {}))
    for name, change in changes.get(section, {}).items():
        if change.is_removed:
            entries.pop(name, None)
        elif change.fields:
            entries[name] = change.fields
    if len(entries) > SECTIONS[section]:
        raise RoleRefused(f"more than {SECTIONS[section]} {section}")
    return entries


def _entry(section: str, name: str, pattern: re.Pattern[str], fields: object) -> Entry:
    where = f"{section} {name[:70]!r}"
    if pattern.fullmatch(name) is None:
        raise RoleRefused(f"{where}: that is no name")
    entry = Entry(where, fields)
    assert isinstance(fields, dict)
    for key in fields:
        if key not in _FIELDS[section]:
            raise RoleRefused(f"{where}: the field {key[:60]!r} means nothing")
    return entry


def _pairs(entry: Entry, fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> tuple[tuple[str, str], ...]:
    found = fields.get(name, {})
    if not isinstance(found, dict):
        raise entry.refused(name, found)
    for key, value in found.items():
        if pattern.fullmatch(key) is None:
            raise entry.refused(name, key)
        if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
            raise entry.refused(f"{name} {key}", value)
    return tuple(sorted(found.items()))


def _moment(entry: Entry, text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError) as wrong:
        raise entry.refused("until", text) from wrong
