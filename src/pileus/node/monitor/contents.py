"""Reports as they come from outside: nothing in them is believed to be what it should be. What is wrong is left out and
counted; nothing raises. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeGuard

APPLICATIONS_MAX = 64
CONTENT_BYTES_MAX = 40 << 10
"""Of a row's applications and of its other words, as JSON, in all; with what stands a row stays under 64 KiB."""

NAME_MAX, WORD_MAX = 63, 64
"""Characters of names, which may become the subject of an action, and of words such as a hash."""

DEPTH_MAX = 6
LIST_MAX = 256
AHEAD_S = 60.0
"""A report that was made later than this in the future is none; it would hide all that come after it."""

ORIGINS = ("push", "poll", "host", "fault")
STATES = ("running", "paused", "stopped", "hung", "unknown")
NODES = ("absent", "silent", "ready", "quarantined")

_INT_MAX = (1 << 63) - 1
_TEXT_MAX = 1024
_APPLICATION_TEXTS = {"state": 32, "version": 64, "code": 64}
_ENTRY_BYTES = 16
"""What an entry costs beside its key and value, at most."""


class Report(NamedTuple):
    """One report. ``wrong``: how much of its fields was none; ``status`` is still as it came."""

    at: float
    origin: str
    state: str
    node: str
    boots: int
    boot_id: str
    traffic: tuple[int, int] | None
    """Bytes of disks, bytes sent by NICs; None when it says nothing of them."""
    heard_at: float
    """0: never."""
    hash: str
    version: str
    status: dict[Any, Any]
    wrong: int


class Content(NamedTuple):
    """What a row keeps of a status. ``left_out``: how many entries and texts are not there, or not whole."""

    applications: dict[str, dict[str, Any]]
    other: dict[str, Any]
    left_out: int


def read_report(report: Mapping[str, Any], now: float) -> Report | None:
    """Return the report; None when it cannot be told when it was made, or of what."""
    at, vitals = report.get("at"), report.get("vitals")
    if not is_number(at) or not isinstance(vitals, dict) or not 0 < at <= now + AHEAD_S:
        return None
    fields = _Fields(vitals)
    heard_s = fields.heard_s()
    has_counters = "disk_bytes" in vitals or "net_bytes" in vitals
    origin, status = report.get("origin"), vitals.get("status", {})
    if not isinstance(status, dict):
        status, fields.wrong = {}, fields.wrong + 1
    if not isinstance(origin, str) or origin not in ORIGINS:
        origin, fields.wrong = "push", fields.wrong + 1
    return Report(
        at=float(at),
        origin=origin,
        state=fields.choice("process", STATES, "unknown"),
        node=fields.choice("node", NODES, "absent"),
        boots=fields.count("boots"),
        boot_id=fields.text("boot_id"),
        traffic=(fields.count("disk_bytes"), fields.count("net_bytes")) if has_counters else None,
        heard_at=0.0 if heard_s < 0 else max(0.0, round(at - heard_s, 3)),
        hash=fields.text("hash"),
        version=fields.text("version"),
        status=status,
        wrong=fields.wrong,
    )


class _Fields:
    """Reads vitals, and counts what is wrong."""

    def __init__(self, fields: dict[Any, Any]) -> None:
        self._fields = fields
        self.wrong = 0

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        word = self._fields.get(name, default)
        if isinstance(word, str) and word in choices:
            return word
        self.wrong += 1
        return default

    def count(self, name: str) -> int:
        number = self._fields.get(name, 0)
        if type(number) is int and 0 <= number <= _INT_MAX:
            return number
        self.wrong += 1
        return 0

    def text(self, name: str) -> str:
        text = self._fields.get(name, "")
        if isinstance(text, str) and len(text) <= WORD_MAX and is_clean(text):
            return text
        self.wrong += 1
        return ""

    def heard_s(self) -> float:
        number = self._fields.get("heard_s", -1.0)
        if is_number(number) and abs(number) <= _INT_MAX:
            return float(number)
        self.wrong += 1
        return -1.0


def is_number(value: object) -> TypeGuard[float]:
    """Return whether it is a number, which may be infinite or none by the standard of floats."""
    return type(value) is float or type(value) is int


def is_clean(text: str) -> bool:
    """Return whether every database takes the text: no NUL, no half of a pair of surrogates."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text))


def read_status(status: dict[Any, Any]) -> Content:
    """Return what is kept of a status; the same for the same status."""
    room = _Room()
    applications = room.applications(status.get("applications", {}))
    rest = ((key, value) for key, value in status.items() if key not in ("applications", "ignored"))
    other = room.entries(rest, len(status), 1)
    return Content(applications, other, room.left_out)


class _Out:
    """The type of ``_OUT``."""


_OUT = _Out()


class _Room:
    """Keeps what has room, in the order in which it comes."""

    def __init__(self) -> None:
        self.left_out = 0
        self._bytes = CONTENT_BYTES_MAX

    def applications(self, found: object) -> dict[str, dict[str, Any]]:
        if not isinstance(found, dict):
            self.left_out += 1
            return {}
        kept: dict[str, dict[str, Any]] = {}
        for name, fields in islice(found.items(), APPLICATIONS_MAX):
            if not self._is_name(name) or not isinstance(fields, dict) or not self._takes(name):
                self.left_out += 1
                continue
            kept[name] = self._application(fields)
        self.left_out += max(0, len(found) - APPLICATIONS_MAX)
        return kept

    def entries(self, found: Any, count: int, depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in islice(found, LIST_MAX):
            if not self._is_name(key) or not self._takes(key):
                self.left_out += 1
            elif not isinstance(each := self._value(value, depth + 1), _Out):
                kept[key] = each
        self.left_out += max(0, count - LIST_MAX)
        return kept

    def _application(self, fields: dict[Any, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, most in _APPLICATION_TEXTS.items():
            text = fields.get(key)
            if isinstance(text, str) and len(text) <= most and is_clean(text) and self._takes(text):
                kept[key] = text
        exits = fields.get("exits")
        if type(exits) is int and 0 <= exits <= _INT_MAX:
            kept["exits"] = exits
        since = fields.get("since")
        if is_number(since) and 0 <= since <= _INT_MAX:
            kept["since"] = since
        self.left_out += len(fields) - len(kept)
        self._bytes -= 100
        return kept

    def _value(self, value: object, depth: int) -> Any:
        """Return what is kept of it, _OUT for nothing."""
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value if self._has(8) else self._nothing(_OUT)
        if isinstance(value, int | float):
            return value if abs(value) <= _INT_MAX and self._has(24) else self._nothing(_OUT)
        if depth > DEPTH_MAX:
            return self._nothing(_OUT)
        if isinstance(value, dict):
            return self.entries(iter(value.items()), len(value), depth) if self._has(2) else self._nothing(_OUT)
        if isinstance(value, list) and self._has(2):
            self.left_out += max(0, len(value) - LIST_MAX)
            kept = [self._value(each, depth + 1) for each in islice(value, LIST_MAX)]
            return [each for each in kept if not isinstance(each, _Out)]
        return self._nothing(_OUT)

    def _text(self, text: str) -> Any:
        if len(text) > _TEXT_MAX:
            self.left_out += 1
            text = text[:_TEXT_MAX]
        return text if is_clean(text) and self._takes(text) else self._nothing(_OUT)

    def _is_name(self, name: object) -> bool:
        return isinstance(name, str) and 0 < len(name) <= NAME_MAX and is_clean(name)

    def _takes(self, text: str) -> bool:
        return self._has(len(json.dumps(text)) + _ENTRY_BYTES)

    def _has(self, bytes: int) -> bool:
        self._bytes -= bytes
        return self._bytes >= 0

    def _nothing(self, instead: Any) -> Any:
        self.left_out += 1
        return instead
