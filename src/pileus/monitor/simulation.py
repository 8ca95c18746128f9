"""What policies would have done over the past that a history tells of, with what the caps would have held. Pure.

The past stays as it was: nothing comes of an action here, and what was done in truth is in the states. Each state is judged
as an engine judges its row, and each action as the cloud does before it writes it; only how many hosts were silent is not
known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pileus.monitor.action import plan
from pileus.monitor.monitor.plan import FLEET_S, recent
from pileus.monitor.monitor.types import MonitorDesired
from pileus.monitor.policy.types import PolicyDesired
from pileus.monitor.state.types import StateObserved
from pileus.node.monitor.model import Policy, read
from pileus.node.monitor.schedule import Agenda
from pileus.node.monitor.standing import Standing

Verdict = Literal["do", "observe", "held"]


class Moment(Struct, frozen=True):
    """A row of the state table as it was written then; None: the appliance is not watched any more. Unix seconds."""

    at: float
    vm: str
    name: str
    row: StateObserved | None


class Rules(Struct, frozen=True, kw_only=True):
    """``policies``: by id, as if all were enforced; ``read``: the same as the engine reads them. ``labels``: of VMs, by id."""

    monitor: MonitorDesired
    policies: Mapping[str, PolicyDesired]
    read: Mapping[str, Policy]
    labels: Mapping[str, Mapping[str, str]] = {}


class Would(Struct, kw_only=True):
    """An action that would have been asked for. ``done_at``: when it would have been done; None: never.

    ``why``: what held it at first, if something did; ``ended``: why it was never done.
    """

    at: float
    vm: str
    name: str
    policy: str
    subject: str
    incident: int
    do: tuple[str, ...]
    cause: str
    done_at: float | None = None
    why: str = ""
    ended: str = ""


class Simulated(Struct, kw_only=True):
    """What came of it. ``began`` and ``ended``: Unix seconds, 0: nothing is known since then; ``states``: how many were judged.

    ``unwritten``: actions that the cloud would not even have written, because too many of one appliance were held in an hour.
    """

    began: float
    ended: float
    states: int
    appliances: int
    unwritten: int
    actions: list[Would]


class _Appliance(Struct, kw_only=True):
    """One of the past, as the simulation has it now."""

    name: str
    row: dict[str, Any]
    policies: tuple[str, ...]
    standing: Standing
    acted: tuple[float, ...] = ()
    hour: int = 0
    undone: int = 0


def engine_policies(policies: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Policy]:
    """Return policies as the engine reads them. Raises: ValueError with the path of what is wrong."""
    return read({"settings": {}, "appliances": {}, "policies": dict(policies)}).policies


def simulate(rules: Rules, past: Iterable[Moment], since: float = -math.inf, until: float = -math.inf) -> Simulated:
    """Return what would have been done from ``since`` on, had the policies been there; before it, states are only known.

    ``past``: in its order. ``until``: when it is known to have ended; left out: at its last moment. What stood already at
    ``since`` counts as a new policy finds it.
    """
    going = _Going(rules, since)
    for moment in past:
        going.take(moment)
    return going.ended(until)


class _Going:
    """The simulation on its way."""

    def __init__(self, rules: Rules, since: float) -> None:
        self._rules, self._since = rules, since
        self._appliances: dict[str, _Appliance] = {}
        self._timers, self._lifts = Agenda(), Agenda()
        """When clauses will have lasted, by VM; when caps let more pass, by the number of the held action."""
        self._whole: tuple[tuple[str, float], ...] = ()
        self._now = 0.0
        self._first_at: float | None = None
        self._has_begun = False
        self._judged: set[str] = set()
        self._result = Simulated(began=0.0, ended=0.0, states=0, appliances=0, unwritten=0, actions=[])

    def take(self, moment: Moment) -> None:
        """Let time pass until then, and take what was written."""
        at = max(moment.at, self._now)
        self._first_at = at if self._first_at is None else self._first_at
        if at >= self._since:
            self._begin(at)
            self._pass(at)
        self._now = at
        if moment.row is None:
            self._appliances.pop(moment.vm, None)
            self._timers.remove(moment.vm)
            return
        known = self._appliances.get(moment.vm)
        row = {**msgspec.to_builtins(moment.row), "vm": moment.vm}
        if known is None:
            known = self._appliances[moment.vm] = self._new(moment, row)
        known.row, known.name = row, moment.name
        if self._has_begun:
            self._result.states += 1
            self._judge(moment.vm)

    def ended(self, until: float) -> Simulated:
        """Return the whole."""
        if until >= self._since and until > self._now:
            self._begin(until)
            self._pass(until)
        for action in self._result.actions:
            if action.done_at is None and not action.ended:
                action.ended = "still held at the end"
        self._result.ended = self._now
        self._result.appliances = len(self._judged)
        return self._result

    def _new(self, moment: Moment, row: dict[str, Any]) -> _Appliance:
        labels = self._rules.labels.get(moment.vm, {}).items()
        policies = tuple(id for id, policy in self._rules.read.items() if policy.labels.items() <= labels)
        return _Appliance(name=moment.name, row=row, policies=policies, standing=Standing({}))

    def _begin(self, at: float) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        self._now = self._result.began = max(self._since, at if self._first_at is None else self._first_at)
        for vm in list(self._appliances):
            self._judge(vm)

    def _pass(self, until: float) -> None:
        """Do what is due before ``until``."""
        while (due := min(self._timers.next_at, self._lifts.next_at)) < until:
            self._now = max(self._now, due)
            for vm in self._timers.take(due):
                self._judge(vm)
            for number in self._lifts.take(due):
                self._reconsider(int(number))
        self._now = until

    def _judge(self, vm: str) -> None:
        appliance = self._appliances[vm]
        self._judged.add(vm)
        for id in appliance.policies:
            judged = appliance.standing.judge(self._rules.read[id], appliance.row, self._now)
            for action in judged.actions:
                self._propose(appliance, action)
            if judged.again_at < math.inf:
                self._timers.sooner(vm, judged.again_at)

    def _propose(self, appliance: _Appliance, action: Mapping[str, Any]) -> None:
        policy = self._rules.policies[action["policy"]]
        word, why = self._verdict(appliance, action["vm"], policy)
        if word != "do" and not self._may_note(appliance):
            self._result.unwritten += 1
            return
        would = Would(
            at=self._now,
            vm=action["vm"],
            name=appliance.name,
            policy=action["policy"],
            subject=action["subject"],
            incident=action["incident"],
            do=tuple(act.do for act in policy.do),
            cause=action["cause"]["text"],
            why=why,
        )
        self._result.actions.append(would)
        if word == "do":
            self._done(would, appliance, policy)
        else:
            self._wait(len(self._result.actions) - 1, appliance)

    def _verdict(self, appliance: _Appliance, vm: str, policy: PolicyDesired) -> tuple[Verdict, str]:
        monitor = self._rules.monitor
        return plan.verdict(
            plan.Proposal(
                vm=vm,
                do=policy.do,
                policy_mode="enforce",
                monitor_mode="enforce",
                acted=plan.in_hour(appliance.acted, self._now),
                per_hour=monitor.actions_per_hour,
                acted_whole=frozenset(vm for vm, _ in recent(self._whole, self._now)),
                appliances=len(self._appliances),
                fleet_percent=monitor.fleet_percent,
            )
        )

    def _done(self, would: Would, appliance: _Appliance, policy: PolicyDesired) -> None:
        would.done_at = self._now
        appliance.acted = (*plan.in_hour(appliance.acted, self._now), self._now)
        if plan.is_whole(policy.do):
            self._whole = (*recent(self._whole, self._now), (would.vm, self._now))

    def _may_note(self, appliance: _Appliance) -> bool:
        """Return whether there is room for an action that is held in this hour, and count it then."""
        undone = plan.undone_in_hour(appliance.hour, appliance.undone, self._now)
        if undone >= plan.UNDONE_MAX:
            return False
        appliance.hour, appliance.undone = int(self._now // plan.HOUR_S), undone + 1
        return True

    def _wait(self, number: int, appliance: _Appliance) -> None:
        """Look at a held action again when the next action before it counts no more, at one of the cloud's looks."""
        counted = [at + plan.HOUR_S for at in appliance.acted] + [at + FLEET_S for _, at in self._whole]
        lifted = min((at for at in counted if at > self._now), default=math.inf)
        if lifted < math.inf:
            asked = self._result.actions[number].at
            self._lifts.put(str(number), asked + plan.HELD_S * math.ceil((lifted - asked) / plan.HELD_S))

    def _reconsider(self, number: int) -> None:
        would = self._result.actions[number]
        appliance = self._appliances.get(would.vm)
        if appliance is None or not _stands(appliance.standing, would):
            would.ended = "it passed without it"
            return
        policy = self._rules.policies[would.policy]
        word, _ = self._verdict(appliance, would.vm, policy)
        if word == "do":
            self._done(would, appliance, policy)
        else:
            self._wait(number, appliance)


def _stands(standing: Standing, would: Would) -> bool:
    return plan.stands(standing.copied().get(f"{would.policy}/{would.subject}"), would.incident)


def caps(actions: Sequence[Would]) -> dict[str, int]:
    """Return how many actions each cap held at first."""
    words = {"actions_per_hour": 0, "fleet_percent": 0}
    for word in words:
        words[word] = sum(1 for each in actions if word in each.why)
    return words
