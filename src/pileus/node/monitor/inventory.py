"""What a monitor's appliance watches, kept on its disk: who starts from a copy of the disk can go on with it.

JSON: ``{"version": 1, "appliances": {vm: {"name", "node", "labels", "row"}}, "policies": {id: {...}}}``, as the document says
them (see the package); ``row`` is what the newest row says of what stands, and in which words of the appliance.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pileus.node.ledger import flush_folder

INVENTORY = Path("/var/lib/pileus/inventory.json")
BYTES_MAX = 8 << 20
"""More is cut: first rows, then appliances, the last ones first."""
EVERY_S = 5.0
"""Between two writes of what changes while it watches; a new document is written at once."""

_OF_ROW = ("standing", "applications", "other")

_FRAME = b'{"version":1,"policies":%b,"appliances":{%b}}'
_ENTRY = b'%b:{"row":%b,%b'


class _Entry(NamedTuple):
    """An appliance, as it is written: only what changes is made into text anew."""

    epoch: object
    words: bytes
    row: bytes


class Inventory:
    """The file. ``problem``: why it could not be written; empty when it was."""

    def __init__(self, file: Path = INVENTORY) -> None:
        self.problem = ""
        self._file = file
        self._entries: dict[str, _Entry] = {}
        self._policies = b"{}"
        self._now = 0.0
        self._written_at = -math.inf
        self._is_changed = False

    def kept(self) -> dict[str, Any] | None:
        """Return what the file says, None when there is none that can be read."""
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def configured(self, document: Mapping[str, Any]) -> None:
        """Take a document that an engine took; it is written at once."""
        before, self._entries = self._entries, {}
        self._take(document.get("appliances", {}), before)
        self._policies = _json(document.get("policies", {}))
        self._is_changed, self._written_at = True, -math.inf

    def amended(self, part: Mapping[str, Any]) -> None:
        """Take what of a document is other now; it is written with the next rows."""
        self._take(part.get("appliances", {}), self._entries)
        for vm in part.get("gone", []):
            self._entries.pop(vm, None)
        self._is_changed = True

    def told(self, rows: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take rows that changed. ``now``: of whoever lets the engine work."""
        self._now = now
        for row in rows:
            known = self._entries.get(row["vm"])
            if known is not None and known.row != (text := _part(row)):
                self._entries[row["vm"]] = known._replace(row=text)
                self._is_changed = True

    def due(self) -> bytes | None:
        """Return what is to be written now; None when nothing changed, or something was written just before."""
        if not self._is_changed or 0 <= self._now - self._written_at < EVERY_S:
            return None
        self._is_changed, self._written_at = False, self._now
        return self._text()

    def write(self, text: bytes) -> None:
        """Write it; a power cut leaves the old file or the new one. What cannot be written is said."""
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(self._file)
            flush_folder(self._file.parent)
        except OSError as failed:
            self.problem = failed.strerror or type(failed).__name__
        else:
            self.problem = ""

    def _take(self, appliances: Mapping[str, Mapping[str, Any]], before: Mapping[str, _Entry]) -> None:
        for vm, fields in appliances.items():
            epoch, known = fields.get("epoch"), before.get(vm)
            words = {"name": fields.get("name", ""), "node": fields.get("node", ""), "labels": fields.get("labels", {})}
            is_newer = known is not None and epoch is not None and known.epoch == epoch
            row = known.row if known is not None and is_newer else _part(fields.get("resume") or {})
            self._entries[vm] = _Entry(epoch, _json(words), row)

    def _text(self) -> bytes:
        """Return all of it, or as much as there is room for."""
        room = BYTES_MAX - len(self._policies) - len(_FRAME)
        kept = {}
        for vm, entry in self._entries.items():
            name = _json(vm)
            room -= len(name) + len(entry.words) + len(_ENTRY)
            if room < 0:
                break
            kept[name] = entry
        texts = []
        for name, entry in kept.items():
            room -= len(entry.row)
            texts.append(_ENTRY % (name, entry.row if room >= 0 else b"{}", entry.words[1:]))
        return _FRAME % (self._policies, b",".join(texts))


def _part(row: Mapping[str, Any]) -> bytes:
    return _json({word: row[word] for word in _OF_ROW if row.get(word)})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
