"""What the role keeps over restarts of the node and of the machine: one small file, replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pileus.node.applications.model import SECTIONS, Change, Changes

State = Literal["running", "failed", "stopped", "suspended", "starting"]


@dataclass(slots=True)
class Note:
    """What is known of one application. ``since``: Unix seconds of the state; ``exits``: ends nobody asked for.

    ``mark``: in the environment of its process, noted before that begins; ``pid`` and ``start`` after. ``fields``: the
    entry it was started with, ``launch`` what of that makes a new process necessary.
    """

    state: State = "starting"
    code: str = ""
    since: int = 0
    exits: int = 0
    pid: int = 0
    start: str = ""
    mark: str = ""
    launch: str = ""
    version: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


class Kept:
    """``notes`` by application, ``changes`` by section and name, ``uids`` by user (also of those that are gone)."""

    def __init__(self, file: Path, boot_id: str) -> None:
        """A file of another boot says nothing of processes; one that is damaged says nothing at all."""
        self.notes: dict[str, Note] = {}
        self.changes: Changes = {section: {} for section in SECTIONS}
        self.uids: dict[str, int] = {}
        self._file = file
        self._boot_id = boot_id
        self._written = b""
        try:
            self._take(json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self.notes, self.changes, self.uids = {}, {section: {} for section in SECTIONS}, {}

    def save(self) -> None:
        """Write it down, so that a power cut leaves the old file or the new one. Raises: OSError."""
        text = json.dumps({
            "boot": self._boot_id,
            "notes": {name: asdict(note) for name, note in self.notes.items()},
            "changes": {
                section: {name: asdict(one) for name, one in changes.items()} for section, changes in self.changes.items()
            },
            "uids": self.uids,
        }).encode()  # fmt: skip
        if text == self._written:
            return
        put(self._file, text, 0o600)
        self._written = text

    def _take(self, found: dict[str, Any]) -> None:
        same_boot = found["boot"] == self._boot_id
        for name, fields in found["notes"].items():
            note = Note(**fields)
            self.notes[name] = note if same_boot else Note(exits=note.exits, code=note.code, since=note.since)
        for section in SECTIONS:
            self.changes[section] = {name: Change(**fields) for name, fields in found["changes"][section].items()}
        self.uids = {str(name): int(uid) for name, uid in found["uids"].items()}


def put(file: Path, text: bytes, mode: int) -> None:
    """Replace a file whole; its former owner stays its owner. Raises: OSError."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as out:
        out.write(text)
        if file.exists():
            owner = file.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        os.fchmod(fd, mode)
        out.flush()
        os.fsync(fd)
    draft.replace(file)
