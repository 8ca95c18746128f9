"""What stands: which policies hold for one appliance, since when, and what was done about it. Pure.

A policy that begins to hold for a subject is an incident, and so is a restart that is counted while it holds. An incident
is acted on once at most, the first at once, the next ones after a pause that doubles while they follow each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pileus.node.monitor.conditions import Clause, Verdict, combined, truth
from pileus.node.monitor.fields import MISSING, names, value
from pileus.node.monitor.model import FOR_S_MAX, Policy

ENTRIES_MAX = 96
"""Of one appliance; names of subjects are its own words."""

FORGOTTEN = "/"
"""Key of the entry that has the highest number of an incident which is gone from the row."""

BACKOFF_FIRST_S, BACKOFF_MAX_S = 10.0, 300.0
FOLLOWS_S = 600.0
"""Incidents follow each other when there is less between an action and the next incident."""

_SEEN_MAX = 200


class Judged(NamedTuple):
    """What became of a policy: actions to do, and when to look again though nothing is heard."""

    actions: list[dict[str, Any]]
    again_at: float


class Standing:
    """The entries of one appliance, as its row has them."""

    __slots__ = ("_entries", "_floor", "is_changed")

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.is_changed = False
        self._entries: dict[str, dict[str, Any]] = {}
        for key, fields in stored.items():
            if isinstance(fields, dict) and isinstance(key, str) and len(self._entries) <= ENTRIES_MAX:
                self._entries[key] = _restored(fields)
        self._floor: int = self._entries.pop(FORGOTTEN, _restored({}))["incident"]

    @property
    def is_waiting(self) -> bool:
        """Whether something stands that was not acted on."""
        return any(
            entry["since"] is not None and entry["incident"] > entry["acted"] for entry in self._entries.values()
        )

    def copied(self) -> dict[str, Any]:
        """Return the entries as a row has them."""
        copied: dict[str, Any] = {
            key: {**entry, "counters": list(entry["counters"]), "clauses": dict(entry["clauses"])}
            for key, entry in self._entries.items()
        }
        return {**copied, FORGOTTEN: {"incident": self._floor}} if self._floor else copied

    def acted(self, action: Mapping[str, Any]) -> None:
        """Note an action that was stored."""
        key = f"{action['policy']}/{action['subject']}"
        entry = self._entries.setdefault(key, _restored({}))
        if action["incident"] > entry["acted"]:
            entry.update(incident=max(entry["incident"], action["incident"]), acted=action["incident"])
            entry.update(since=entry["since"] or action["at"], counters=list(action["counters"]))
            _note_pause(entry, action["at"], 0.0)
            self.is_changed = True

    def keep(self, policies: Mapping[str, Policy]) -> None:
        """Forget the entries of all other policies."""
        for key in [key for key in self._entries if key.partition("/")[0] not in policies]:
            self._forget(key)

    def judge(self, policy: Policy, row: Mapping[str, Any], now: float) -> Judged:
        """Return what follows from the policy for the row, which has the rights to it."""
        actions: list[dict[str, Any]] = []
        again_at = math.inf
        for subject, clauses in _cases(policy, row, self._entries):
            action, due = self._judge_case(_Case(policy, subject, clauses, row, now))
            again_at = min(again_at, due)
            if action is not None:
                actions.append(action)
        return Judged(actions, again_at)

    def _judge_case(self, case: _Case) -> tuple[dict[str, Any] | None, float]:
        key = f"{case.policy.id}/{case.subject}"
        entry = self._entries.get(key)
        timers = entry["clauses"] if entry is not None else {}
        verdicts, since, again_at = case.verdicts(timers)
        verdict = combined(case.policy.match, verdicts)
        if entry is None:
            if not verdict and not since:
                return None, again_at
            entry = self._entry(key)
            if entry is None:
                return None, again_at
        if entry["clauses"] != since:
            entry["clauses"], self.is_changed = since, True
        if verdict is None:
            return None, again_at
        if not verdict:
            self._close(key, entry)
            return None, again_at
        if self._open(entry, case):
            due = entry["acted_at"] + max(entry["gap_s"], case.policy.cooldown_s) if entry["acted"] else case.now
            if due <= case.now:
                return self._act(entry, case, verdicts), again_at
            again_at = min(again_at, due)
        return None, again_at

    def _open(self, entry: dict[str, Any], case: _Case) -> bool:
        """Count an incident if this is one; return whether there is one to act on."""
        counters = case.counters(entry["counters"])
        has_risen = any(new > old for new, old in zip(counters, entry["counters"], strict=True))
        if entry["since"] is None or has_risen:
            entry["since"] = entry["since"] or case.now
            entry["incident"] += 1
            self.is_changed = True
        if counters != entry["counters"]:
            entry["counters"], self.is_changed = counters, True
        return bool(entry["incident"] > entry["acted"])

    def _act(self, entry: dict[str, Any], case: _Case, verdicts: list[Verdict]) -> dict[str, Any]:
        policy, incident = case.policy, entry["incident"]
        entry["acted"] = incident
        _note_pause(entry, case.now, policy.cooldown_s)
        self.is_changed = True
        vm = case.row["vm"]
        clauses = [case.seen(clause) for clause, verdict in zip(case.clauses, verdicts, strict=True) if verdict]
        return {
            "key": f"{policy.id}/{vm}/{case.subject}/{incident}",
            "vm": vm,
            "epoch": case.row["epoch"],
            "policy": policy.id,
            "name": policy.name,
            "subject": case.subject,
            "incident": incident,
            "cause": {"text": _text(clauses), "clauses": clauses},
            "acts": [dict(act) for act in policy.acts],
            "mode": policy.mode,
            "counters": list(entry["counters"]),
            "at": case.now,
        }

    def _close(self, key: str, entry: dict[str, Any]) -> None:
        if entry["since"] is not None:
            entry["since"], self.is_changed = None, True
        if not entry["incident"] and not entry["clauses"]:
            del self._entries[key]

    def _entry(self, key: str) -> dict[str, Any] | None:
        """Return a new entry; None when too much stands already. What is over longest makes room."""
        if len(self._entries) >= ENTRIES_MAX:
            over = [each for each, entry in self._entries.items() if entry["since"] is None and not entry["clauses"]]
            if not over:
                return None
            self._forget(min(over, key=lambda each: self._entries[each]["acted_at"]))
        entry = _restored({})
        # Numbers of what was forgotten are never given again: they are in the keys of actions.
        entry["incident"] = entry["acted"] = self._floor
        self._entries[key] = entry
        return entry

    def _forget(self, key: str) -> None:
        self._floor = max(self._floor, self._entries.pop(key)["incident"])
        self.is_changed = True


class _Case(NamedTuple):
    """A policy for one subject; without a name to bind, the subject is empty."""

    policy: Policy
    subject: str
    clauses: tuple[Clause, ...]
    row: Mapping[str, Any]
    now: float

    def verdicts(self, timers: Mapping[str, float]) -> tuple[list[Verdict], dict[str, float], float]:
        """Return what each clause says, since when those that must last are true, and when they have lasted."""
        verdicts: list[Verdict] = []
        since: dict[str, float] = {}
        again_at = math.inf
        for clause in self.clauses:
            verdict = truth(clause, self.row, self.subject)
            if clause.for_s and verdict is not False:
                began = timers.get(clause.id, self.now if verdict else None)
                if began is not None:
                    since[clause.id] = began
                if verdict and began is not None and self.now < began + clause.for_s:
                    again_at = min(again_at, began + clause.for_s)
                    verdict = False
            verdicts.append(verdict)
        return verdicts, since, again_at

    def counters(self, before: list[int]) -> list[int]:
        """Return boots and the subject's exits; what is not said is as before."""
        applications = self.row["applications"]
        exits = applications[self.subject].get("exits") if self.subject in applications else None
        return [self.row["execution"]["boots"], before[1] if exits is None else exits]

    def seen(self, clause: Clause) -> dict[str, Any]:
        """Return the clause with what the row has."""
        found = value(self.row, clause.field, self.subject)
        text = None if found is MISSING else found
        if len(json.dumps(text)) > _SEEN_MAX:
            text = json.dumps(text)[:_SEEN_MAX]
        return {
            "field": clause.field.named(self.subject),
            "operator": clause.operator,
            "value": clause.value,
            "seen": text,
        }


def _cases(
    policy: Policy, row: Mapping[str, Any], entries: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Clause, ...]]]:
    """Yield subjects with the clauses that are judged for them. Clauses without a name to bind are of every subject if all
    must hold, and have a subject of their own if any does."""
    if not policy.starred:
        yield "", policy.plain
        return
    shared = policy.plain if policy.match == "all" else ()
    if policy.match == "any" and policy.plain:
        yield "", policy.plain
    subjects = dict.fromkeys(name for clause in policy.starred for name in names(row, clause.field))
    # What stands for a name that is gone is judged too: it does not hold any more.
    mark = f"{policy.id}/"
    subjects.update(dict.fromkeys(key[len(mark) :] for key in entries if key.startswith(mark) and key != mark))
    for subject in subjects:
        yield subject, shared + policy.starred


def _note_pause(entry: dict[str, Any], now: float, cooldown_s: float) -> None:
    first_s = max(BACKOFF_FIRST_S, cooldown_s)
    follows = entry["acted_at"] and now - entry["acted_at"] <= FOLLOWS_S
    longest_s = max(BACKOFF_MAX_S, cooldown_s)
    entry["gap_s"] = min(max(entry["gap_s"] * 2, first_s), longest_s) if follows else first_s
    entry["acted_at"] = now


def _text(clauses: list[dict[str, Any]]) -> str:
    said = []
    for clause in clauses:
        wanted = "" if clause["value"] is None else f" {json.dumps(clause['value'])}"
        said.append(
            f"{json.dumps(clause['field'])[1:-1]} {clause['operator']}{wanted} (it is {json.dumps(clause['seen'])})"
        )
    return " and ".join(said)[:2000]


def _restored(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry; what is wrong in the stored one is as if it were not there."""
    since = fields.get("since")
    counters = fields.get("counters")
    clauses = fields.get("clauses")
    are_counters = isinstance(counters, list) and len(counters) == 2 and all(type(each) is int for each in counters)
    return {
        "since": _positive(since) or None,
        "incident": int(_positive(fields.get("incident"))),
        "acted": int(_positive(fields.get("acted"))),
        "acted_at": _positive(fields.get("acted_at")),
        "gap_s": min(_positive(fields.get("gap_s")), FOR_S_MAX),
        "counters": list(counters) if are_counters and isinstance(counters, list) else [0, 0],
        "clauses": {key: _positive(at) for key, at in clauses.items() if _positive(at)}
        if isinstance(clauses, dict)
        else {},
    }


def _positive(number: object) -> float:
    return number if isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < 1e18 else 0.0
