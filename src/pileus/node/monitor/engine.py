"""The engine: hears of appliances, keeps their rows, and says what is to be polled, written and done. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pileus.node.monitor.contents import read_report
from pileus.node.monitor.model import Appliance, Document, Policy, Settings, read, read_appliances
from pileus.node.monitor.schedule import AGAIN_S, Agenda, Schedule
from pileus.node.monitor.table import TELL_PAUSE_S, TOLD_AGAIN_S, Watched


class Work(NamedTuple):
    """What is due. What is in it is said once; rows and actions are the caller's to keep, but not to change."""

    polls: list[str]
    """Appliances to poll; each answer is heard, or missed."""
    states: list[dict[str, Any]]
    """Rows that changed. A row says of its actions in ``actions`` that they were acted on: store both at once."""
    actions: list[dict[str, Any]]
    next_at: float
    """When there is more, if nothing is heard before; infinity for never."""


class Engine:
    """See the package for the shapes of everything."""

    def __init__(self) -> None:
        self.ignored = 0
        """Reports that were none, or of appliances that are not watched."""
        self._document = Document(Settings(), {}, {})
        self._watched: dict[str, Watched] = {}
        self._policies: dict[str, tuple[Policy, ...]] = {}
        self._schedule = Schedule(self._document.settings)
        self._timers = Agenda()
        self._fresh: dict[str, None] = {}
        self._dirty: dict[str, None] = {}
        self._reads_io = False

    def configure(self, document: Mapping[str, Any]) -> None:
        """Watch what the document says from now on. Raises ValueError that begins with the path of what is wrong; then
        nothing changed."""
        new, old = read(document), self._document
        self._document = new
        for vm in old.appliances.keys() - new.appliances.keys():
            self._end(vm)
        clauses = [clause for policy in new.policies.values() for clause in policy.plain + policy.starred]
        self._reads_io = any(
            clause.field.section == "io" or clause.field.parts[-1] in ("misses", "heard_at") for clause in clauses
        )
        is_other = new.policies != old.policies
        for vm, appliance in new.appliances.items():
            self._take(vm, appliance, old.appliances.get(vm), is_other)
        if is_other:
            for watched in self._watched.values():
                watched.standing.keep(new.policies)
        if new.settings != old.settings:
            self._schedule = Schedule(new.settings)
            self._fresh.update(dict.fromkeys(new.appliances))
            self._dirty.update(dict.fromkeys(new.appliances))

    def amend(self, part: Mapping[str, Any]) -> None:
        """Watch the ``appliances`` of the part, too, or as they are said now, and those of ``gone`` no more; all else stays.
        Raises ValueError; then nothing changed."""
        known = self._document.appliances
        gone = part.get("gone", [])
        if not isinstance(gone, list):
            raise ValueError("gone: this is no list")
        for vm, appliance in read_appliances(part, len(known)).items():
            before, known[vm] = known.get(vm), appliance
            self._take(vm, appliance, before, False)
        for vm in gone:
            if isinstance(vm, str) and known.pop(vm, None) is not None:
                self._end(vm)

    def hear(self, report: Mapping[str, Any], now: float) -> None:
        """Take what was reported, whatever it is."""
        vm = report.get("vm") if isinstance(report, dict) else None
        watched = self._watched.get(vm) if isinstance(vm, str) else None
        if watched is None:
            self.ignored += 1
            return
        name, settings = watched.appliance.vm, self._document.settings
        found = read_report(report, now)
        if found is None:
            self.ignored += 1
            watched.refuse()
            self._dirty[name] = None
            return
        if found.origin == "fault":
            self._schedule.hasten(name, now)
        state, was_watching = watched.state(settings), watched.is_watching
        is_newest = watched.hear(found, settings)
        before, state = state, watched.state(settings)
        if not is_newest and state == before:
            return
        has_news = watched.is_changed or state != before or not was_watching
        if has_news or self._reads_io or now >= watched.told_at + TOLD_AGAIN_S:
            self._dirty[name] = None
        self._look_again(watched, state, before, now)

    def miss(self, vm: str, now: float) -> None:
        """Take that a poll had no answer."""
        watched = self._watched.get(vm)
        if watched is not None:
            was_lost = watched.lost_at is not None
            watched.miss(now, self._document.settings)
            if self._reads_io or was_lost != (watched.lost_at is not None):
                self._dirty[vm] = None

    def work(self, now: float) -> Work:
        """Return what is due."""
        if self._fresh:
            self._place(now)
        for vm in self._timers.take(now):
            self._dirty[vm] = None
        states: list[dict[str, Any]] = []
        actions: list[dict[str, Any]] = []
        dirty, self._dirty = self._dirty, {}
        for vm in dirty:
            watched = self._watched[vm]
            state = watched.state(self._document.settings)
            if watched.is_watching:
                wanted = self._judged(watched, state, now)
                actions += wanted
                if wanted or (watched.has_news(state, now) and now >= watched.told_at + TELL_PAUSE_S):
                    states.append(watched.tell(state, now))
                elif watched.has_news(state, now):
                    self._timers.sooner(vm, watched.told_at + TELL_PAUSE_S)
        polls = self._schedule.take(now)
        return Work(polls, states, actions, min(self._schedule.next_at, self._timers.next_at))

    def rows(self) -> list[dict[str, Any]]:
        """Return the whole table as it is now."""
        settings = self._document.settings
        return [watched.row(watched.state(settings)) for watched in self._watched.values()]

    def _judged(self, watched: Watched, state: str, now: float) -> list[dict[str, Any]]:
        policies = self._policies[watched.appliance.vm]
        if not policies:
            return []
        row = watched.row(state)
        actions: list[dict[str, Any]] = []
        again_at = math.inf
        for policy in policies:
            judged = watched.standing.judge(policy, row, now)
            actions += judged.actions
            again_at = min(again_at, judged.again_at)
        if again_at < math.inf:
            self._timers.sooner(watched.appliance.vm, again_at)
        return actions

    def _look_again(self, watched: Watched, state: str, before: str, now: float) -> None:
        """Poll sooner when a push says that something failed, and when silence will have lasted long enough."""
        vm, settings = watched.appliance.vm, self._document.settings
        if watched.origin == "push" and (watched.has_failed or (state != before and state in ("hung", "silent"))):
            self._schedule.hasten(vm, now)
        if watched.may_hang and state != "hung" and watched.heard_at < watched.at - settings.hung_s / 2:
            due = watched.quiet_since + settings.hung_s
            self._schedule.hasten(vm, due if due > now else now + AGAIN_S)

    def _take(self, vm: str, appliance: Appliance, before: Appliance | None, is_other: bool) -> None:
        """Watch it as it is said. ``is_other``: the policies are others than before."""
        self._begin(vm, appliance)
        if is_other or before is None or appliance.labels != before.labels:
            self._policies[vm] = _policies_of(appliance, self._document.policies)
            self._dirty[vm] = None

    def _begin(self, vm: str, appliance: Appliance) -> None:
        watched = self._watched.get(vm)
        if watched is None:
            watched = self._watched[vm] = Watched(appliance)
        elif watched.appliance.epoch != appliance.epoch and appliance.resume is not None:
            watched.begin(appliance)
        else:
            watched.appliance = appliance
            return
        watched.standing.keep(self._document.policies)
        self._fresh[vm] = None

    def _end(self, vm: str) -> None:
        del self._watched[vm]
        del self._policies[vm]
        self._fresh.pop(vm, None)
        self._dirty.pop(vm, None)
        self._timers.remove(vm)
        self._schedule.end(vm)

    def _place(self, now: float) -> None:
        fresh, self._fresh = self._fresh, {}
        self._schedule.begin(fresh, now)
        for vm in fresh:
            if self._watched[vm].standing.is_waiting:
                self._schedule.hasten(vm, now)


def _policies_of(appliance: Appliance, policies: Mapping[str, Policy]) -> tuple[Policy, ...]:
    labels = appliance.labels.items()
    return tuple(policy for policy in policies.values() if policy.labels.items() <= labels)
