"""The role ``applications``: makes the appliance run what its document says, and does what is asked of it meanwhile.

A request is one JSON object, ``{"do": DEED, ...}``; its answer ``{"state": ...}``. What it changes of an entry holds until
the document says something else of that entry.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pileus.node.applications import logs
from pileus.node.applications.accounts import Accounts
from pileus.node.applications.kept import Kept, Note
from pileus.node.applications.leases import Leases
from pileus.node.applications.model import (
    Application,
    Change,
    Changes,
    Config,
    Wanted,
    current,
    digest_of,
    read,
    read_application,
)
from pileus.node.applications.supervisor import Setback, Supervisor
from pileus.node.document import Document
from pileus.node.role import RoleRefused
from pileus.node.scanning import ScanRefused, scan_inside

FOLDER = "var/lib/pileus/applications"
READING = frozenset({"log", "scan"})
"""Deeds that mend nothing."""

UPDATED = ("version", "command", "environment", "files", "user", "restart", "stop_s", "settle_s")
"""What an update may give of an entry, the version always."""

_NONE = Config({}, {}, {})
_WANTED: dict[str, Wanted] = {"suspend": "suspended", "terminate": "stopped"}

Fields = dict[str, Any]


class Applications:
    """The role over the machine below ``root``, another one for tests."""

    def __init__(self, root: Path = Path("/"), boot_id: str = "", leases: Leases | None = None) -> None:
        folder = root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        boot = boot_id or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._kept = Kept(folder / "state.json", boot)
        self._accounts = Accounts(root, self._kept.uids)
        self._supervisor = Supervisor(folder, self._kept, self._accounts)
        self._leases = leases or Leases()
        self._document: Document = {}
        self._is_new = True
        """Whether no document came yet to whoever runs now: then nobody knows what ran before."""
        self._refused: tuple[Document | None, str] = None, ""
        self._tell: Callable[[Fields], None] = _nobody
        self._config = _NONE
        self._deeds: dict[str, Callable[[str, Fields], Fields]] = {
            **dict.fromkeys(("start", "restart", "suspend", "resume", "terminate"), self._drive),
            "update": self._update,
            "log": self._log,
            "user": self._user,
            "registration": self._registration,
            "scan": self._scan,
        }

    def wake_fd(self) -> int:
        """Return a descriptor that is readable when an application ended."""
        return self._supervisor.wake.fileno()

    def on_news(self, tell: Callable[[Fields], None]) -> None:
        """Tell of ends also while a scan, or the end of another application, takes long."""
        self._tell = tell
        self._supervisor.idle = lambda: tell(self.status())

    def apply(self, document: Document) -> None:
        """Run what the document says; when an update fails, run what ran before. Raises RoleRefused.

        A document that was refused for that is not tried again before another one came, or something was mended by a request.
        """
        if document == self._refused[0]:
            raise RoleRefused(self._refused[1])
        changes = current(document, self._kept.changes)
        before = self._document, self._kept.changes, self._config
        failed = self._become(document, changes, read(document, changes))
        if failed and not self._is_new:
            # What a full disk keeps from being written now is so all the same, and is written with the next note.
            with contextlib.suppress(OSError):
                self._become(*before)
            words = "; ".join(f"{name}: {setback.words}" for name, setback in failed.items())
            self._refused = document, f"updates failed, what ran before runs on: {words}"
            raise RoleRefused(self._refused[1])
        if failed:
            self._take_back(failed)
        self._is_new = False
        self._refused = None, ""

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Do one deed. Raises RoleRefused."""
        try:
            asked = json.loads(payload)
        except (ValueError, RecursionError) as wrong:
            raise RoleRefused(f"the request is no JSON: {wrong}") from wrong
        if not isinstance(asked, dict):
            raise RoleRefused("the request is no JSON object")
        deed = self._deeds.get(str(asked.get("do")))
        if deed is None:
            raise RoleRefused(f"there is nothing like {str(asked.get('do'))[:60]!r}; there is {', '.join(self._deeds)}")
        answer = deed(id, asked)
        if asked["do"] not in READING:
            self._refused = None, ""
        self._kept.save()
        return json.dumps(answer).encode()

    def tick(self) -> None:
        """See what ended, start again what shall run always."""
        self._supervisor.look(self._config.applications)

    def status(self) -> Fields:
        """Return the applications, users and registrations; nothing that changes while nothing happens."""
        return {
            "role": "applications",
            "applications": {name: self._told(one) for name, one in self._config.applications.items()},
            "users": sorted(self._config.users),
            "registrations": self._leases.states(self._config.registrations),
        }

    def close(self) -> None:
        """Let go of everything; the applications go on. Only tests end a role."""
        self._supervisor.close()

    def _told(self, application: Application) -> Fields:
        name = application.name
        note = self._kept.notes.get(name) or Note()
        said: Fields = {
            "state": note.state,
            "version": note.version if self._supervisor.has(name) else application.version,
            "exits": note.exits,
            "code": note.code,
            "since": note.since,
        }
        change = self._kept.changes["applications"].get(name)
        if change is not None and change.failed:
            said["update"] = change.failed
        return said

    def _become(self, document: Document, changes: Changes, config: Config) -> dict[str, Setback]:
        """Be as the document says; return which updates failed. Raises RoleRefused, and nothing changed."""
        self._accounts.check(config.users)
        # Who goes does so after the applications that ran as them.
        self._accounts.make({**self._config.users, **config.users})
        self._config, self._document, self._kept.changes = config, document, changes
        failed = self._supervisor.converge(config.applications)
        if not failed:
            self._accounts.make(config.users)
            self._kept.save()
        return failed

    def _take_back(self, failed: dict[str, Setback]) -> None:
        """Let the applications whose update failed be as they were."""
        changes = self._kept.changes["applications"]
        for name, setback in failed.items():
            fields = setback.before if self._can_be(name, setback.before) else {}
            changes[name] = replace(self._change("applications", name), fields=fields, failed=setback.words)
        self._config = read(self._document, self._kept.changes)
        self._supervisor.converge(self._config.applications)
        self._kept.save()

    def _can_be(self, name: str, fields: Fields) -> bool:
        """Tell whether the user that an application ran as is still there."""
        return read_application(name, fields).user in ("", "nobody", *self._config.users)

    def _drive(self, id: str, asked: Fields) -> Fields:
        application, change = self._named(asked)
        name, deed = application.name, asked["do"]
        self._supervisor.see_ends()
        if deed in ("suspend", "resume") and self._kept.notes[name].state not in ("running", "suspended"):
            raise RoleRefused(f"the application {name} does not run; it is {self._kept.notes[name].state}")
        if deed == "restart" and change.asked != id:
            self._supervisor.end([name])
        wanted = _WANTED.get(deed, "running")
        made = replace(change, wanted=wanted, asked=id if deed == "restart" else change.asked)
        self._kept.changes["applications"][name] = made
        self._config = read(self._document, self._kept.changes)
        if deed == "terminate":
            self._supervisor.end([name])
        elif deed == "suspend":
            self._supervisor.suspend(name)
        else:
            self._supervisor.start(self._config.applications[name])
        return self._answer(name)

    def _update(self, id: str, asked: Fields) -> Fields:
        """Let a new version take over; when it fails, the old one runs on. Raises RoleRefused."""
        application, change = self._named(asked)
        name = application.name
        if "version" not in asked:
            raise RoleRefused("an update says its version")
        fields = {**application.fields, **{key: asked[key] for key in UPDATED if key in asked}}
        before = self._kept.changes
        changed = {**before["applications"], name: replace(change, fields=fields, failed="")}
        config = read(self._document, {**before, "applications": changed})
        self._kept.changes, self._config = {**before, "applications": changed}, config
        failed = self._supervisor.converge(config.applications, name)
        if failed:
            self._take_back(failed)
            raise RoleRefused(
                f"the update of {name} failed, {application.version or 'the old one'} runs on: {failed[name].words}"
            )
        return {**self._answer(name), "version": self._told(config.applications[name])["version"]}

    def _log(self, id: str, asked: Fields) -> Fields:
        application, _ = self._named(asked)
        lines = asked.get("lines", 100)
        if not isinstance(lines, int) or not 0 < lines <= logs.LINES_MAX:
            raise RoleRefused(f"lines are 1 to {logs.LINES_MAX}")
        return {**self._answer(application.name), "log": logs.tail(self._supervisor.log(application.name), lines)}

    def _user(self, id: str, asked: Fields) -> Fields:
        name = self._name(asked, "name")
        if asked.get("remove") is True:
            users = [one.user for one in self._config.applications.values()]
            if name in users:
                raise RoleRefused(f"an application runs as the user {name!r}")
            self._change_entry("users", name, None)
            return {"state": "absent"}
        now = self._config.users.get(name)
        known = {"keys": list(now.keys), "rights": list(now.rights), "shell": now.shell} if now else {}
        given = {key: value for key, value in asked.items() if key not in ("do", "name", "remove")}
        self._change_entry("users", name, {**known, **given})
        return {"state": "present"}

    def _registration(self, id: str, asked: Fields) -> Fields:
        name = self._name(asked, "name")
        change = self._kept.changes["registrations"].get(name)
        entry = change.fields if change and change.fields else self._document.get("registrations", {}).get(name)
        if entry is None:
            raise RoleRefused(f"there is no registration {name!r}")
        if asked.get("revoke") is True:
            self._change_entry("registrations", name, {**entry, "revoked": True})
        elif self._config.registrations[name].is_revoked:
            raise RoleRefused(f"the registration {name} was revoked; only a new document brings it back")
        else:
            self._change_entry("registrations", name, {**entry, "until": asked.get("renew")})
        return {"state": self._leases.states(self._config.registrations)[name]}

    def _scan(self, id: str, asked: Fields) -> Fields:
        """Look for signatures in this machine; what ends meanwhile is started again as ever."""
        options = {key: asked[key] for key in ("paths", "memory", "time_s") if key in asked}
        try:
            return scan_inside(asked.get("rules", ""), idle=self._go_on, **options)
        except ScanRefused as refused:
            raise RoleRefused(refused.message) from refused

    def _go_on(self) -> None:
        """Look after the applications in the middle of something else."""
        self.tick()
        self._tell(self.status())

    def _change_entry(self, section: str, name: str, fields: Fields | None) -> None:
        """Let the entry be these fields, or not be at all. Raises RoleRefused, and nothing changed."""
        change = replace(self._change(section, name), fields=fields or {}, is_removed=fields is None)
        if fields == {}:
            # An empty entry is one, too.
            change = replace(change, fields={"keys": []})
        changes = {**self._kept.changes, section: {**self._kept.changes[section], name: change}}
        config = read(self._document, changes)
        self._accounts.check(config.users)
        self._accounts.make(config.users)
        self._config, self._kept.changes = config, changes

    def _change(self, section: str, name: str) -> Change:
        known = self._kept.changes[section].get(name)
        return known or Change(of=digest_of(self._document, section, name))

    def _named(self, asked: Fields) -> tuple[Application, Change]:
        name = self._name(asked, "application")
        if name not in self._config.applications:
            raise RoleRefused(f"there is no application {name[:70]!r}")
        return self._config.applications[name], self._change("applications", name)

    @staticmethod
    def _name(asked: Fields, key: str) -> str:
        name = asked.get(key)
        if not isinstance(name, str):
            raise RoleRefused(f"{key} is missing")
        return name

    def _answer(self, name: str) -> Fields:
        return {"state": self._kept.notes[name].state}


def _nobody(status: Fields) -> None:
    """Nobody wants to know."""
