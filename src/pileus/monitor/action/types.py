"""An action on an appliance: written with its cause before it is done, and with its result afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import VmRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.monitor.policy.types import PolicyAct

STEP_S = 60.0
"""How long one step may take before it has failed."""

KEPT_S = 30 * 86_400.0
"""How long an action that is over stays."""


class ActionDesired(Struct, frozen=True, kw_only=True):
    """What is done to which appliance. A person may write one, too; most are a monitor's."""

    vm: Annotated[VmRef, Meta(description="The appliance.")]
    do: Annotated[tuple[PolicyAct, ...], Meta(min_length=1, max_length=8, description="What is done, in order.")]
    reason: Annotated[str, Meta(max_length=500, description="Why, for people.")] = ""
    approved: Annotated[
        Literal["", "yes", "no"], Meta(description="A person's answer to a step that asks; no: the rest is not done.")
    ] = ""


class ActionCause(Struct, frozen=True, kw_only=True):
    """Why it was written. ``clauses``: what was seen, as the watcher had it. ``key``: the action's idempotency key."""

    actor: str
    """``monitor NAME``, or the user's name."""
    monitor: str = ""
    policy: str = ""
    row: str = ""
    """Id of the appliance's row."""
    subject: str = ""
    incident: int = 0
    epoch: int = 0
    key: str = ""
    cause: str = ""
    clauses: tuple[dict[str, Any], ...] = ()
    at: float = 0.0


class ActionStep(Struct, frozen=True, kw_only=True):
    """How far one step is. ``made``: id of what was made for it (a request, a snapshot)."""

    do: str
    state: Literal["waiting", "doing", "done", "failed", "skipped"] = "waiting"
    message: str = ""
    made: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0


class ActionAssigned(Struct, frozen=True, kw_only=True):
    """Its cause, where the appliance is, and what becomes of it.

    ``verdict``: ``do`` it; ``observe``: its policy or monitor only looks; ``held``: a cap or the breaker is against it,
    ``why`` says which, and it is done when that ends, if what it is about stands then.
    """

    zone: str = ""
    vdc: str = ""
    vm: str
    cause: ActionCause
    verdict: Literal["do", "observe", "held"] = "do"
    why: str = ""
    steps: tuple[ActionStep, ...] = ()
    ended_at: float = 0.0


class ActionObserved(Struct, frozen=True, kw_only=True):
    """How it went."""

    state: Literal["waiting", "doing", "asking", "done", "failed", "observed", "held"] = "waiting"
    message: str = ""


OVER = frozenset({"done", "failed", "observed", "held"})


def key_space(monitor: str) -> str:
    """Return the claim space of the idempotency keys of a monitor's actions."""
    return f"monitor/action/{monitor}"


def _ready(resource: Resource) -> Condition:
    observed: ActionObserved | None = resource.observed
    state = observed.state if observed is not None else "waiting"
    message = observed.message if observed is not None else "it is not begun yet"
    if state in ("done", "observed"):
        return ready(state.capitalize(), message)
    return unready(state.capitalize(), message)


KIND = Kind(
    name="monitor.action",
    summary="Something done to an appliance, with its cause and its result.",
    desired=ActionDesired,
    assigned=ActionAssigned,
    observed=ActionObserved,
    ready=_ready,
    name_prefix="a",
    immutable=frozenset({"vm", "do", "reason"}),
    columns=(
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("DO", "desired.do[*].do"),
        Column("STATE", "observed.state"),
        Column("ACTOR", "assigned.cause.actor"),
        Column("CAUSE", "assigned.cause.cause", wide=True),
        Column("RESULT", "observed.message", wide=True),
    ),
)
