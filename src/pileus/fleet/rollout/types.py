"""A rollout: a new package or configuration for many nodes, wave after wave, behind a gate, with a result per node."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import AccountRef, ManagerRef, NodeRef, PackageRef
from pileus.kernel.kind import Column, Kind, Resource

NODES_MAX = 2000
Phase = Literal["running", "paused", "stopped", "rolling-back", "done", "rolled-back"]
"""``stopped``: at a gate, as ``on_failure: pause`` has it. ``paused``: as wished."""


class RolloutDesired(Struct, frozen=True, kw_only=True):
    """What changes, where, and how carefully. Nodes: those of the manager that match every given word."""

    manager: Annotated[ManagerRef, Meta(description="Whose nodes.")]
    package: Annotated[PackageRef, Meta(description="New package of the nodes; empty: they keep theirs.")] = ""
    document: Annotated[
        dict[str, dict[str, Any]],
        Meta(description="Change of each node's document: section, key, new entry; null takes an entry out."),
    ] = {}
    accounts: Annotated[tuple[AccountRef, ...], Meta(description="Only nodes of these accounts.")] = ()
    labels: Annotated[dict[str, str], Meta(description="Only nodes with these labels.")] = {}
    nodes: Annotated[tuple[NodeRef, ...], Meta(max_length=NODES_MAX, description="Only these nodes.")] = ()
    waves: Annotated[
        tuple[int, ...],
        Meta(
            min_length=1, max_length=20, description="Nodes changed by the end of each wave, in percent; ends with 100."
        ),
    ] = (5, 25, 100)
    failures_max: Annotated[int, Meta(ge=0, description="Failed nodes over which the gate of a wave stays shut.")] = 0
    settle_s: Annotated[int, Meta(ge=0, le=86_400, description="How long a wave must stay healthy, in seconds.")] = 10
    timeout_s: Annotated[int, Meta(ge=1, le=86_400, description="How long one node may take, in seconds.")] = 600
    on_failure: Annotated[Literal["roll-back", "pause"], Meta(description="What happens when the gate stays shut.")] = (
        "roll-back"
    )
    state: Annotated[Literal["running", "paused", "rolled-back"], Meta(description="Pause, go on, or go back.")] = (
        "running"
    )
    attempt: Annotated[
        int, Meta(ge=0, description="Raising it goes on after a failure: what failed is tried again.")
    ] = 0


class RolloutAssigned(Struct, frozen=True, kw_only=True):
    """The nodes of each wave, decided at the start, and how far it is."""

    manager: str
    package: str = ""
    """Id of the new package."""
    waves: tuple[tuple[str, ...], ...] = ()
    wave: int = 0
    phase: Phase = "running"
    turn: Literal["forward", "back"] = "forward"
    cause: Literal["", "wish", "failure"] = ""
    """Why it turned back."""
    attempt: int = 0
    healthy_since: float = 0.0
    """Unix seconds since when the wave is healthy; 0: it is not yet."""


State = Literal["waiting", "changing", "done", "failed", "rolling-back", "rolled-back", "skipped", "gone"]
"""``skipped``: not changed, or left as it is, for the reason in ``message``. ``gone``: the node was deleted."""


class RolloutResult(Struct, frozen=True, kw_only=True):
    """One node's part."""

    node: str
    name: str
    account: str
    wave: int
    state: State = "waiting"
    since: float = 0.0
    """Unix seconds since when."""
    failure: str = ""
    """Why it failed; kept when it is rolled back."""
    message: str = ""


class RolloutObserved(Struct, frozen=True, kw_only=True):
    """How far it is."""

    phase: Phase = "running"
    wave: int = 0
    waves: int = 0
    done: int = 0
    failed: int = 0
    """Nodes that failed in this attempt, rolled back or not."""
    total: int = 0
    results: tuple[RolloutResult, ...] = ()
    message: str = ""


CHANGED: frozenset[State] = frozenset({"changing", "done"})
OVER: frozenset[Phase] = frozenset({"done", "rolled-back"})
"""Phases in which a rollout holds its nodes no more: another one may change them."""

HELD = "rollout"
"""Claims: id of a node -> id of the rollout that is at work on it."""


def _ready(resource: Resource) -> Condition:
    desired: RolloutDesired = resource.desired
    observed: RolloutObserved | None = resource.observed
    if observed is None:
        return unready("Starting", "nothing is changed yet")
    changed = f"{observed.done} of {observed.total} nodes are changed"
    if _begins(resource):
        return unready("Starting", f"its new wish is not looked at yet; {changed}")
    if observed.phase == "done":
        return ready("Done", f"{changed}, {observed.failed} failed" if observed.failed else changed)
    if observed.phase == "rolled-back":
        as_wished = desired.state == "rolled-back"
        return ready("RolledBack", observed.message) if as_wished else unready("RolledBack", observed.message)
    reason = {"stopped": "Stopped", "paused": "Paused", "rolling-back": "RollingBack"}.get(observed.phase, "Running")
    words = f"wave {observed.wave + 1} of {observed.waves}, {changed}"
    return unready(reason, f"{words}; {observed.message}" if observed.message else words)


def _begins(resource: Resource) -> bool:
    """Tell whether the wish leads elsewhere than it went, and its controller has not seen that."""
    desired: RolloutDesired = resource.desired
    assigned: RolloutAssigned = resource.assigned
    if desired.state == "rolled-back":
        return assigned.turn == "forward"
    is_again = desired.attempt > assigned.attempt
    return is_again or (desired.state == "running" and assigned.turn == "back" and assigned.cause == "wish")


KIND = Kind(
    name="fleet.rollout",
    summary="A new package or configuration for many nodes: waves, a gate, pause, going back, a result per node.",
    desired=RolloutDesired,
    assigned=RolloutAssigned,
    observed=RolloutObserved,
    ready=_ready,
    scope="either",
    managed="hidden",
    immutable=frozenset({"manager", "package", "document", "accounts", "labels", "nodes", "waves"}),
    columns=(
        Column("MANAGER", "desired.manager"),
        Column("PHASE", "observed.phase"),
        Column("DONE", "observed.done"),
        Column("FAILED", "observed.failed"),
        Column("TOTAL", "observed.total"),
    ),
)
