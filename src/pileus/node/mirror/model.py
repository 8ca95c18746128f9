"""What a decapsulator's document says: read strictly. Pure."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pileus.node.document import Document
from pileus.node.mirror import SESSIONS_MAX
from pileus.node.mirror.wire import SLOT_MASK
from pileus.node.role import RoleRefused
from pileus.node.router.words import ID, MAC, Entry

LINKS = ("tunnel", "sniffers")
STORE_MIB_MAX = 1 << 16

_KEY = re.compile(r"[0-3][0-9a-f]{14}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
_ENDS_AT_MAX = 1e11


class Foreign(NamedTuple):
    """A session whose source is no tap of Pileus."""

    erspan: int
    """Session ID."""
    type: int


class Wanted(NamedTuple):
    """One session."""

    id: str
    key: int
    source: str
    to: str
    store_bytes: int = 0
    name: str = ""
    ends_at: float = 0.0
    foreign: Foreign | None = None

    @property
    def slot(self) -> int:
        """Where the data path has it."""
        return self.key & SLOT_MASK

    @property
    def way(self) -> tuple[object, ...]:
        """What makes it another session when it changes."""
        return (self.key, self.source, self.to, self.foreign)


class Config(NamedTuple):
    """The whole document. ``links``: name -> MAC."""

    links: dict[str, str]
    sessions: dict[str, Wanted]


def read(document: Document) -> Config:
    """Return what the document says. Raises: RoleRefused naming the entry."""
    for section in document:
        if section not in ("links", "sessions", "foreign"):
            raise RoleRefused(f"a decapsulator has no section {section[:60]!r}")
    links = {name: _link(name, fields) for name, fields in document.get("links", {}).items()}
    entries = document.get("sessions", {})
    if len(entries) > SESSIONS_MAX:
        raise RoleRefused(f"{len(entries)} sessions are more than the {SESSIONS_MAX} that one decapsulator has")
    foreign = {id: Entry(f"foreign {id[:60]!r}", fields) for id, fields in document.get("foreign", {}).items()}
    sessions = {id: _session(id, Entry(f"session {id[:60]!r}", fields), foreign) for id, fields in entries.items()}
    for id in foreign:
        if id not in sessions:
            raise RoleRefused(f"foreign {id[:60]!r}: there is no session with this id")
    _check_apart(sessions)
    return Config(links, sessions)


def _link(name: str, fields: object) -> str:
    if name not in LINKS:
        raise RoleRefused(f"a decapsulator has no link {name[:60]!r}")
    return Entry(f"link {name!r}", fields).word("mac", MAC)


def _session(id: str, entry: Entry, foreign: dict[str, Entry]) -> Wanted:
    if ID.fullmatch(id) is None:
        raise RoleRefused(f"{entry.where}: that is no id")
    to = entry.choice("to", "sniffers", "store")
    found = Wanted(
        id=id,
        key=int(entry.word("key", _KEY), 16),
        source=entry.address("source"),
        to=to,
        store_bytes=entry.number("store_mib", 1, STORE_MIB_MAX) << 20 if to == "store" else 0,
        name=entry.word("name", _NAME, ""),
        ends_at=entry.moment("ends_at", _ENDS_AT_MAX),
    )
    if id not in foreign:
        return found
    other = foreign[id]
    if other.address("source") != found.source or other.number("slot", 0, SLOT_MASK) != found.slot:
        raise RoleRefused(f"{other.where}: source or slot is another than the session's")
    return found._replace(foreign=Foreign(other.number("erspan", 0, 1023), other.number("type", 2, 3)))


def _check_apart(sessions: dict[str, Wanted]) -> None:
    slots: dict[int, str] = {}
    foreign: dict[Any, str] = {}
    for id, session in sorted(sessions.items()):
        same = slots.setdefault(session.slot, id)
        if session.foreign is not None and same == id:
            same = foreign.setdefault((session.source, session.foreign), id)
        if same != id:
            raise RoleRefused(f"sessions {same[:60]!r} and {id[:60]!r} cannot be told apart")
