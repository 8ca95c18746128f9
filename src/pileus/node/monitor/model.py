"""What an engine's document says: read whole, or refused with the path of what is wrong. Pure."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from pileus.node.monitor.conditions import OPERATORS, Clause
from pileus.node.monitor.fields import Field, read_field

APPLIANCES_MAX = 100_000
POLICIES_MAX = 256
CLAUSES_MAX = 16
ACTS_MAX = 16
ACTS_BYTES_MAX = 16 << 10
LABELS_MAX = 64
VALUES_MAX = 64
TEXT_MAX = 256
FOR_S_MAX = 30 * 86_400.0

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_NUMERIC = ("above", "below")
_VERSIONS = ("older", "newer")
_VALUELESS = ("missing", "present")

T = TypeVar("T")


class Settings(NamedTuple):
    """How appliances are polled, and when silence means something."""

    poll_s: float = 10.0
    jitter: float = 0.2
    """A poll is early by this part of ``poll_s``, or half of it at least: so what a poll tells is also acted on within
    ``poll_s``, and a hang within ``poll_s`` + ``hung_s``."""
    timeout_s: float = 2.0
    """For whoever polls; the engine is told of a poll that had no answer."""
    misses: int = 3
    """Polls without an answer after which an appliance is unknown."""
    seed: int | str = 0
    hung_s: float = 30.0
    """Without a word of the node and without I/O, an appliance is hung."""


class Appliance(NamedTuple):
    """One that is watched. ``resume``: its row as last written, or none."""

    vm: str
    name: str
    account: str
    labels: dict[str, str]
    epoch: int
    resume: Mapping[str, Any] | None


class Policy(NamedTuple):
    """Clauses, and what is done when they hold. ``plain`` and ``starred``: clauses without and with a name to bind."""

    id: str
    name: str
    match: str
    plain: tuple[Clause, ...]
    starred: tuple[Clause, ...]
    acts: tuple[dict[str, Any], ...]
    mode: str
    cooldown_s: float
    labels: dict[str, str]


class Document(NamedTuple):
    """The whole."""

    settings: Settings
    appliances: dict[str, Appliance]
    policies: dict[str, Policy]


def read(document: object) -> Document:
    """Return what the document says. Raises ValueError that begins with the path of what is wrong."""
    whole = _Part("", document)
    return Document(
        settings=_settings(_Part("settings", whole.get("settings", {}))),
        appliances=_each(whole, "appliances", APPLIANCES_MAX, _appliance),
        policies=_each(whole, "policies", POLICIES_MAX, _policy),
    )


def read_appliances(part: object, known: int) -> dict[str, Appliance]:
    """Return the appliances that come to ``known`` others. Raises ValueError."""
    return _each(_Part("", part), "appliances", max(0, APPLIANCES_MAX - known), _appliance)


class _Part:
    """An object of the document, read field by field; every reader raises ValueError naming the path."""

    def __init__(self, path: str, fields: object) -> None:
        self.path = path
        if not isinstance(fields, dict):
            raise ValueError(f"{path or 'the document'}: this is no object")
        self.fields: dict[str, Any] = fields

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)

    def wrong(self, name: str, words: str) -> ValueError:
        return ValueError(f"{self.path}.{name}: {words}" if self.path else f"{name}: {words}")

    def only(self, *names: str) -> None:
        """Refuse what is not understood: it may change what the rest means."""
        for name in self.fields:
            if name not in names:
                raise self.wrong(str(name)[:60], f"there is no such field; there are {', '.join(names)}")

    def text(self, name: str, default: str | None = None) -> str:
        text = self.fields.get(name, default)
        if not isinstance(text, str) or len(text) > TEXT_MAX:
            raise self.wrong(name, f"this is no text of at most {TEXT_MAX} characters")
        return text

    def number(self, name: str, low: float, high: float, default: float) -> float:
        number = self.fields.get(name, default)
        if isinstance(number, int | float) and not isinstance(number, bool) and low <= number <= high:
            return float(number)
        raise self.wrong(name, f"this is no number from {low:g} to {high:g}")

    def whole(self, name: str, low: int, high: int, default: int) -> int:
        number = self.fields.get(name, default)
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise self.wrong(name, f"this is no whole number from {low} to {high}")

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        chosen = self.fields.get(name, default)
        if isinstance(chosen, str) and chosen in choices:
            return chosen
        raise self.wrong(name, f"this is none of {', '.join(choices)}")

    def labels(self, name: str) -> dict[str, str]:
        labels = self.fields.get(name, {})
        if (
            isinstance(labels, dict)
            and len(labels) <= LABELS_MAX
            and all(isinstance(each, str) and len(each) <= TEXT_MAX for pair in labels.items() for each in pair)
        ):
            return dict(labels)
        raise self.wrong(name, f"these are no labels, at most {LABELS_MAX} texts by name")

    def items(self, name: str, most: int) -> list[Any]:
        found = self.fields.get(name)
        if isinstance(found, list) and 1 <= len(found) <= most:
            return found
        raise self.wrong(name, f"this is no list of 1 to {most}")


def _each(whole: _Part, section: str, most: int, read_one: Callable[[str, _Part], T]) -> dict[str, T]:
    entries = whole.get(section, {})
    if not isinstance(entries, dict) or len(entries) > most:
        raise whole.wrong(section, f"this is no object of at most {most} entries")
    found = {}
    for id, fields in entries.items():
        if not isinstance(id, str) or _ID.fullmatch(id) is None:
            raise whole.wrong(f"{section}.{str(id)[:60]}", "this is no id")
        found[id] = read_one(id, _Part(f"{section}.{id}", fields))
    return found


def _settings(part: _Part) -> Settings:
    default = Settings()
    return Settings(
        poll_s=part.number("poll_s", 0.05, 86_400, default.poll_s),
        jitter=part.number("jitter", 0, 0.9, default.jitter),
        timeout_s=part.number("timeout_s", 0.01, 3600, default.timeout_s),
        misses=part.whole("misses", 1, 1000, default.misses),
        seed=part.text("seed")
        if isinstance(part.get("seed"), str)
        else part.whole("seed", -(1 << 63), (1 << 63) - 1, 0),
        hung_s=part.number("hung_s", 0.05, 86_400, default.hung_s),
    )


def _appliance(id: str, part: _Part) -> Appliance:
    resume = part.get("resume")
    if resume is not None and not isinstance(resume, dict):
        raise part.wrong("resume", "this is no object")
    return Appliance(
        vm=id,
        name=part.text("name", ""),
        account=part.text("account", ""),
        labels=part.labels("labels"),
        epoch=part.whole("epoch", 0, (1 << 63) - 1, 0),
        resume=resume or None,
    )


def _policy(id: str, part: _Part) -> Policy:
    part.only("name", "when", "match", "do", "mode", "cooldown_s", "labels")
    clauses = [
        _clause(_Part(f"{part.path}.when[{place}]", fields))
        for place, fields in enumerate(part.items("when", CLAUSES_MAX))
    ]
    return Policy(
        id=id,
        name=part.text("name", ""),
        match=part.choice("match", ("all", "any"), "all"),
        plain=tuple(clause for clause in clauses if clause.field.star < 0),
        starred=tuple(clause for clause in clauses if clause.field.star >= 0),
        acts=_acts(part),
        mode=part.choice("mode", ("observe", "enforce"), "observe"),
        cooldown_s=part.number("cooldown_s", 0, FOR_S_MAX, 0.0),
        labels=part.labels("labels"),
    )


def _acts(part: _Part) -> tuple[dict[str, Any], ...]:
    acts = part.items("do", ACTS_MAX)
    for place, fields in enumerate(acts):
        _Part(f"{part.path}.do[{place}]", fields).text("do")
    try:
        copied: list[dict[str, Any]] = json.loads(text := json.dumps(acts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise part.wrong("do", "this is no JSON") from exc
    if len(text) > ACTS_BYTES_MAX:
        raise part.wrong("do", f"this is more than {ACTS_BYTES_MAX} bytes")
    return tuple(copied)


def _clause(part: _Part) -> Clause:
    part.only("field", "operator", "value", "for_s")
    try:
        field = read_field(part.text("field"))
    except ValueError as exc:
        raise exc if str(exc).startswith(part.path) else part.wrong("field", str(exc)) from exc
    operator = part.choice("operator", OPERATORS)
    for_s = part.number("for_s", 0, FOR_S_MAX, 0.0)
    value = _value(part, operator, field)
    id = f"{zlib.crc32(json.dumps([field.text, operator, value, for_s]).encode()):08x}"
    return Clause(id, field, operator, value, for_s)


def _value(part: _Part, operator: str, field: Field) -> Any:
    value = part.get("value")
    if operator in _VALUELESS:
        if value not in (None, ""):
            raise part.wrong("value", f"{operator} has none")
        return None
    if field.section == "applications" and len(field.parts) == 2 and operator != "contains":
        raise part.wrong("operator", "an application as a whole is missing, present or contains")
    if operator in _NUMERIC:
        return part.number("value", -1e18, 1e18, math.nan)
    if operator in _VERSIONS:
        return part.text("value")
    if operator == "one-of":
        return [_scalar(part, f"value[{place}]", each) for place, each in enumerate(part.items("value", VALUES_MAX))]
    return _scalar(part, "value", value)


def _scalar(part: _Part, name: str, value: object) -> Any:
    is_number = isinstance(value, int | float) and -1e18 <= value <= 1e18
    if is_number or (isinstance(value, str) and len(value) <= TEXT_MAX):
        return value
    raise part.wrong(name, f"this is no text of at most {TEXT_MAX} characters, number, true or false")
