"""What sessions counted before this program, or its data path, began anew: a session's counts go on, in one boot.

What came after the last note was counted by nobody and is lost by its numbers: a second's packets at most.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pileus.node.mirror.model import Wanted
from pileus.node.mirror.sessions import Counts

FILE = Path("/run/pileus/mirror-counts.json")
"""It is gone with the boot, as are the counts: the host knows boots apart."""

_FIELDS = 8
"""Of an entry, as in the status: key, received, bytes, first, highest, truncated, forwarded, dropped."""


class Noted:
    """Sessions' entries by id, kept in ``file``."""

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        self._earlier: dict[str, list[Any]] = _read(file)
        self._written: dict[str, list[Any]] | None = None

    def counts(self, wanted: Wanted, now: Counts) -> Counts:
        """Return the session's counts: those of earlier, and those of now."""
        earlier = self._of(wanted)
        if earlier is None:
            return now
        _, received, length, first, highest, truncated, forwarded, _ = earlier
        return Counts(
            received + now.received, length + now.bytes, first if received else now.first, max(highest, now.highest),
            truncated + now.truncated, forwarded + now.forwarded,
        )  # fmt: skip

    def dropped(self, wanted: Wanted) -> int:
        """Return how many packets its queue had no room for earlier."""
        earlier = self._of(wanted)
        return 0 if earlier is None else int(earlier[7])

    def restart(self, id: str, entry: list[Any]) -> None:
        """Have what the session's status says now as its earlier counts: its data path begins anew."""
        self._earlier[id] = entry

    def forget(self, id: str) -> None:
        """The session is gone."""
        self._earlier.pop(id, None)

    def write(self, sessions: dict[str, list[Any]]) -> None:
        """Note what the status says, when it changed. A note that cannot be written is only missed by the next program."""
        if sessions == self._written or (not sessions and self._written is None):
            return
        self._written = sessions
        draft = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(sessions))
            os.replace(draft, self._file)

    def _of(self, wanted: Wanted) -> list[Any] | None:
        earlier = self._earlier.get(wanted.id)
        return earlier if earlier is not None and earlier[0] == key_text(wanted.key) else None


def key_text(key: int) -> str:
    """Return a key as documents and the status have it."""
    return f"{key:015x}"


def _read(file: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {id: entry for id, entry in found.items() if len(entry) == _FIELDS} if isinstance(found, dict) else {}
