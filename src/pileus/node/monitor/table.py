"""The appliance state table: what is known of each appliance, whatever the order in which it was told. Pure.

Reports count by when they were made; of two of the same moment, the one whose content sorts higher. What is late says
nothing of now, but it may say since when something is as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pileus.node.monitor.contents import NODES, Content, Report, is_clean, is_number, read_status
from pileus.node.monitor.model import Appliance, Settings
from pileus.node.monitor.spans import Span
from pileus.node.monitor.standing import Standing

TOLD_AGAIN_S = 300.0
"""Counters of I/O, and when the appliance was heard, change all the time: they alone are written not more often."""

TELL_PAUSE_S = 1.0
"""An appliance that changes all the time is not written more often, but for what is done about it."""

_STATES = ("running", "paused", "stopped", "hung", "silent", "unknown")
_NOTHING = Content({}, {}, 0)


class Watched:
    """One appliance."""

    __slots__ = (
        "_base", "_booted", "_first_at", "_is_dated", "_missed_at", "_restored", "_status", "_told", "_traffic", "_wrong",
        "appliance", "at", "boot_id", "boots", "content", "has_failed", "hash", "heard_at", "is_changed", "is_heard",
        "lost_at", "misses", "node", "origin", "refused", "standing", "told_at", "version",
    )  # fmt: skip

    def __init__(self, appliance: Appliance) -> None:
        self.standing = Standing({})
        self.told_at = 0.0
        self._told = ""
        self._traffic = Span((0, 0, 0), 0.0, 0.0)
        self._base = Span("unknown", 0.0, 0.0)
        self._booted = Span(0, 0.0, 0.0)
        self.at = 0.0
        self.origin, self.node, self.boot_id, self.hash, self.version = "", "absent", "", "", ""
        self.boots = self.misses = self.refused = self._wrong = 0
        self.heard_at = 0.0
        self._missed_at = -1.0
        self.content = _NOTHING
        self.lost_at: float | None = None
        self.begin(appliance)

    def begin(self, appliance: Appliance) -> None:
        """Go on as its row says, if it has one; what was known and is not in the row is forgotten then."""
        self.appliance = appliance
        self.is_changed = self.has_failed = False
        self._status: dict[Any, Any] | None = None
        self.is_heard = False
        """Since this engine has it; before, nothing is done about it."""
        self._restored = "unknown"
        self._first_at = 0.0
        self._is_dated = False
        """A report of this engine's said when the node was heard."""
        if appliance.resume is not None:
            self._restore(appliance.resume)

    @property
    def is_watching(self) -> bool:
        """Whether what is said of it can be acted on: it was heard, or it is known that it is not."""
        return self.is_heard or self.lost_at is not None

    def state(self, settings: Settings) -> str:
        """Return its execution's state."""
        if self.lost_at is not None:
            return "unknown"
        if not self.is_heard:
            return self._restored
        hung_since = self._traffic.at - settings.hung_s
        if self.heard_at <= hung_since and self.may_hang and self.quiet_since <= hung_since:
            return "hung"
        return str(self._base.value)

    @property
    def may_hang(self) -> bool:
        """Whether silence would mean something: a node that has lived, as far as is known."""
        return self._base.value in ("running", "silent") and self.node in ("ready", "silent") and self.heard_at > 0

    @property
    def quiet_since(self) -> float:
        """The last sign of life: of its node, by I/O, or its start. What is not dated counts from the engine's first report."""
        heard_at = self.heard_at if self._is_dated else max(self.heard_at, self._first_at)
        return max(self._traffic.since, self._booted.since, heard_at)

    def hear(self, report: Report, settings: Settings) -> bool:
        """Take a report; return whether it is the newest."""
        is_silent = report.node in ("quarantined", "silent") or _was_quiet(report, settings)
        base = "silent" if is_silent and report.state == "running" else report.state
        self._count(report)
        if report.heard_at > 0:
            self._is_dated = True
            self.heard_at = max(self.heard_at, report.heard_at)
        self._first_at = min(self._first_at or report.at, report.at)
        if report.at < self.at or (report.at == self.at and not self._is_higher(report, base)):
            self._base.late(base, report.at)
            self._booted.late(report.boots, report.at)
            return False
        if not self.at:
            self._base, self._booted = Span(base, report.at, report.at), Span(report.boots, report.at, report.at)
        self._base.newest(base, report.at)
        self._booted.newest(report.boots, report.at)
        before = self._words
        self.at, self.origin, self.node = report.at, report.origin, report.node
        self.boots, self.boot_id, self.hash, self.version = report.boots, report.boot_id, report.hash, report.version
        self._wrong = report.wrong
        self._take(report.status)
        self.is_changed = self.is_changed or self._words != before
        self.is_heard = True
        if report.at >= self._missed_at:
            self.misses = 0
            if self.lost_at is not None:
                self._base.late(None, self.lost_at)
                self.lost_at = None
        return True

    def refuse(self) -> None:
        """Take that a report was none."""
        self.refused += 1
        self.is_changed = self.is_changed or self.refused == 1

    def miss(self, now: float, settings: Settings) -> None:
        """Take that a poll had no answer."""
        self.misses += 1
        self._missed_at = max(self._missed_at, now)
        if self.misses >= settings.misses and self.lost_at is None:
            self.lost_at = now

    def row(self, state: str) -> dict[str, Any]:
        """Return the row, which is the caller's to keep, but not to change."""
        content, traffic = self.content, self._traffic.value
        return {
            "vm": self.appliance.vm,
            "epoch": self.appliance.epoch,
            "at": self.at,
            "origin": self.origin,
            "execution": {
                "state": state,
                "node": self.node,
                "boots": self.boots,
                "boot_id": self.boot_id,
                "misses": self.misses,
                "since": self._since(state),
                "heard_at": self.heard_at,
            },
            "configuration": {"hash": self.hash, "version": self.version},
            "io": {
                "disk_bytes": traffic[1],
                "net_bytes": traffic[2],
                "idle_s": max(0, int(self._traffic.at - self._traffic.since)),
            },
            "applications": content.applications,
            "other": {**content.other, "ignored": self._ignored},
            "standing": self.standing.copied(),
        }

    def has_news(self, state: str, now: float) -> bool:
        """Return whether the row is another than the one that was told last."""
        return state != self._told or self.is_changed or self.standing.is_changed or now >= self.told_at + TOLD_AGAIN_S

    def tell(self, state: str, now: float) -> dict[str, Any]:
        """Return the row, which is taken as written now."""
        self._told, self.told_at, self.is_changed, self.standing.is_changed = state, now, False, False
        return self.row(state)

    @property
    def _words(self) -> tuple[object, ...]:
        return self.node, self.boots, self.boot_id, self.hash, self.version, self._ignored > 0

    @property
    def _ignored(self) -> int:
        return self.content.left_out + self._wrong + self.refused

    def _since(self, state: str) -> float:
        if self.lost_at is not None:
            return self.lost_at
        if state == "hung" and self._base.value != "hung" and self.is_heard:
            return self.quiet_since
        return self._base.since

    def _count(self, report: Report) -> None:
        """Take its counters, which not every report has."""
        if report.traffic is None:
            return
        traffic, known = (report.boots, *report.traffic), self._traffic
        if not known.at:
            self._traffic = Span(traffic, report.at, report.at)
        elif (report.at, traffic) > (known.at, known.value):
            known.newest(traffic, report.at)
        else:
            known.late(traffic, report.at)

    def _take(self, status: dict[Any, Any]) -> None:
        self.has_failed = False
        if self._status is not None and status == self._status:
            return
        content = read_status(status)
        if content != self.content:
            self.has_failed = _has_failed(self.content.applications, content.applications)
            self.content, self.is_changed = content, True
        # Only what was kept whole is small enough to be held for comparing.
        self._status = status if not content.left_out else None

    def _is_higher(self, report: Report, base: str) -> bool:
        """Return whether the report of the same moment sorts higher than what is there."""
        if not self.is_heard:
            return True
        content = read_status(report.status)
        new = (base, report.node, report.boots, report.boot_id, report.hash, report.version, report.origin)
        old = (self._base.value, self.node, self.boots, self.boot_id, self.hash, self.version, self.origin)
        return (new, _text(content)) > (old, _text(self.content))

    def _restore(self, row: Mapping[str, Any]) -> None:
        """Take what the row says; what is wrong in it is as if it were not there."""
        execution, configuration, io = (_object(row, name) for name in ("execution", "configuration", "io"))
        self.at = _number(row, "at", 0.0)
        state = _word(execution, "state")
        self._restored = state if state in _STATES else "unknown"
        node = _word(execution, "node")
        self.heard_at = _number(execution, "heard_at", 0.0)
        likely = "silent" if state == "silent" else "ready" if self.heard_at else "absent"
        self.node = node if node in NODES else likely
        self.boots, self.boot_id = _total(execution, "boots"), _word(execution, "boot_id")
        self.hash, self.version = _word(configuration, "hash"), _word(configuration, "version")
        self.origin = _word(row, "origin")
        self.misses, self.lost_at, self._missed_at = 0, None, -1.0
        self._wrong = self.refused = 0
        self.told_at = self.at
        self.content = read_status({**_object(row, "other"), "applications": _object(row, "applications")})
        base = "silent" if state == "hung" and self.node == "silent" else self._restored
        self._base = Span(base, min(_number(execution, "since", self.at), self.at), self.at)
        traffic = (self.boots, *(_total(io, name) for name in ("disk_bytes", "net_bytes")))
        self._booted = Span(self.boots, 0.0, self.at)
        self._traffic = Span(traffic, max(0.0, self.at - _number(io, "idle_s", 0.0)), self.at)
        self.standing = Standing(_object(row, "standing"))
        self._told = self._restored


def with_actions(row: Mapping[str, Any], actions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row as it is after these actions, which were stored while the row was not."""
    standing = Standing(_object(row, "standing"))
    for action in sorted(actions, key=lambda action: int(action["incident"])):
        standing.acted(action)
    return {**row, "standing": standing.copied()}


def _was_quiet(report: Report, settings: Settings) -> bool:
    """Whether the host has not yet called silent what is."""
    return report.node == "ready" and 0 < report.heard_at <= report.at - settings.hung_s


def _has_failed(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> bool:
    """Whether an application failed since, or ended and was started again."""
    for name, fields in new.items():
        before = old.get(name, {})
        is_failed = fields.get("state") == "failed" and before.get("state") != "failed"
        if is_failed or fields.get("exits", 0) > before.get("exits", 0):
            return True
    return False


def _text(content: Content) -> str:
    return json.dumps([content.applications, content.other], sort_keys=True)


def _object(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = row.get(name)
    return found if isinstance(found, dict) else {}


def _word(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    return found if isinstance(found, str) and len(found) <= 64 and is_clean(found) else ""


def _total(row: Mapping[str, Any], name: str) -> int:
    found = row.get(name)
    return found if type(found) is int and found >= 0 else 0


def _number(row: Mapping[str, Any], name: str, default: float) -> float:
    found = row.get(name)
    return float(found) if is_number(found) and 0 <= found < 1e18 else default
