"""What becomes of an action, and how its steps go on: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.monitor.action.types import ActionAssigned, ActionObserved, ActionStep
from pileus.monitor.policy.types import WHOLE, PolicyAct

HOUR_S = 3600.0
HELD_S = 10.0
"""How late a held action is done once nothing holds it."""
BREAKER = 0.3
"""Share of silent hosts from which on nothing is done by itself (reliability: monitoring defaults)."""
UNDONE_MAX = 100
"""Actions that are only written, of one appliance in an hour: an appliance can make up incidents as fast as it speaks."""
WHOLE_MIN = 3
"""The cap of the fleet allows so many appliances however few there are: five percent of ten would be none."""


class Proposal(Struct, frozen=True, kw_only=True):
    """What is asked for, and all that may be against it. ``acted``: Unix seconds of actions on the same appliance;
    ``acted_whole``: appliances of the monitor that were acted on as a whole lately. ``silent``: share of hosts.
    """

    vm: str
    do: Sequence[PolicyAct]
    policy_mode: Literal["observe", "enforce"]
    monitor_mode: Literal["observe", "enforce"]
    acted: Sequence[float]
    per_hour: int
    acted_whole: frozenset[str]
    appliances: int
    fleet_percent: int
    silent: float = 0.0


def is_whole(do: Iterable[PolicyAct]) -> bool:
    """Tell whether something is done to the appliance as a whole."""
    return any(each.do in WHOLE for each in do)


def in_hour(acted: Iterable[float], now: float) -> tuple[float, ...]:
    """Return the times that count for the cap of an appliance."""
    return tuple(at for at in acted if now - HOUR_S < at <= now + HOUR_S)


def verdict(proposal: Proposal) -> tuple[Literal["do", "observe", "held"], str]:
    """Return whether it is done, and why not."""
    if proposal.monitor_mode == "observe":
        return "observe", "its monitor observes; set the monitor's mode to enforce to let it act"
    if proposal.policy_mode == "observe":
        return "observe", "its policy observes; set the policy's mode to enforce to let it act"
    if proposal.silent >= BREAKER:
        return "held", f"{proposal.silent:.0%} of the hosts are silent: nothing is done by itself until they are back"
    if len(proposal.acted) >= proposal.per_hour:
        return "held", (
            f"{_several(len(proposal.acted), 'action')} on this appliance within an hour, the most that its monitor's "
            f"actions_per_hour ({proposal.per_hour}) allows; raise that, or act yourself: `pileus create action`"
        )
    if is_whole(proposal.do) and proposal.vm not in proposal.acted_whole:
        most = max(WHOLE_MIN, math.floor(proposal.appliances * proposal.fleet_percent / 100))
        if proposal.fleet_percent == 0 or len(proposal.acted_whole) >= most:
            return "held", (
                f"{_several(len(proposal.acted_whole), 'appliance')} acted on as a whole within ten minutes, the most that "
                f"its monitor's fleet_percent ({proposal.fleet_percent}) allows; raise that, or act yourself: "
                "`pileus create action`"
            )
    return "do", ""


def undone_in_hour(hour: int, undone: int, now: float) -> int:
    """Return how many actions were only written in this hour, of ``undone`` that were in ``hour`` (since 1970)."""
    return undone if hour == int(now // HOUR_S) else 0


def stands(entry: object, incident: int) -> bool:
    """Tell whether the incident is the newest of its kind, and holds still. ``entry``: what stands of that kind."""
    return isinstance(entry, dict) and entry.get("since") is not None and bool(entry.get("incident") == incident)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first_steps(do: Iterable[PolicyAct]) -> tuple[ActionStep, ...]:
    """Return the steps before anything is done."""
    return tuple(ActionStep(do=each.do) for each in do)


def current(steps: Sequence[ActionStep]) -> int:
    """Return the position of the step that is to be done now; as many as there are when nothing is left."""
    for position, step in enumerate(steps):
        if step.state in ("waiting", "doing"):
            return position
    return len(steps)


def with_step(steps: Sequence[ActionStep], position: int, step: ActionStep) -> tuple[ActionStep, ...]:
    """Return the steps with that one; when it failed, nothing that comes after it is done."""
    later = tuple(steps[position + 1 :])
    if step.state == "failed":
        later = tuple(replace(each, state="skipped", message="a step before it failed") for each in later)
    return (*steps[:position], step, *later)


def observed(assigned: ActionAssigned) -> ActionObserved:
    """Return how the action is, as its steps say."""
    if assigned.verdict != "do":
        return ActionObserved(state="observed" if assigned.verdict == "observe" else "held", message=assigned.why)
    failed = next((step for step in assigned.steps if step.state == "failed"), None)
    if failed is not None:
        return ActionObserved(state="failed", message=f"{failed.do}: {failed.message}")
    position = current(assigned.steps)
    if position == len(assigned.steps):
        words = "; ".join(f"{step.do}: {step.message or 'done'}" for step in assigned.steps)
        return ActionObserved(state="done", message=words[:1000])
    step = assigned.steps[position]
    if step.state == "waiting":
        return ActionObserved(state="waiting" if position == 0 else "doing", message=f"next: {step.do}")
    if step.do == "ask":
        return ActionObserved(state="asking", message=step.message or "it waits for an answer: approved=yes or no")
    return ActionObserved(state="doing", message=step.message or f"{step.do} is under way")
