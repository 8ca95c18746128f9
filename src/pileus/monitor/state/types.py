"""The appliance state table: what a monitor knows of one appliance, from where, and since when."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unknown, unready
from pileus.kernel.kind import Column, Kind, Resource

ExecutionState = Literal["running", "paused", "stopped", "hung", "silent", "unknown"]
"""``silent``: it says nothing, but does I/O. ``unknown``: nothing is known, which is no failure."""


NodeState = Literal["absent", "silent", "ready", "quarantined"]


class StateDesired(Struct, frozen=True, kw_only=True):
    """Which appliance it is of."""

    vm: Annotated[str, Meta(description="Id of the VM.")]


class StateAssigned(Struct, frozen=True, kw_only=True):
    """Who watches it. An action is written only by the watcher that has the epoch: every change of hands raises it."""

    monitor: str
    vm: str
    watcher: str = ""
    epoch: int = 0
    acted: tuple[float, ...] = ()
    """Unix seconds of the actions of the last hour."""
    hour: int = 0
    undone: int = 0
    """Actions that were written in that hour since 1970, and not done."""


class StateExecution(Struct, frozen=True, kw_only=True):
    """Whether it runs. ``misses``: polls in a row without an answer; times are Unix seconds, 0: never."""

    state: ExecutionState = "unknown"
    node: NodeState = "absent"
    """How its host hears what answers in it; ``absent``: nothing does."""
    boots: int = 0
    boot_id: str = ""
    misses: int = 0
    since: float = 0.0
    heard_at: float = 0.0


class StateConfiguration(Struct, frozen=True, kw_only=True):
    """What it runs: hash of its document, version of what answers in it."""

    hash: str = ""
    version: str = ""


class StateIo(Struct, frozen=True, kw_only=True):
    """What it reads, writes, sends and receives, in bytes since its start; ``idle_s`` without any of that, about."""

    disk_bytes: int = 0
    net_bytes: int = 0
    idle_s: float = 0.0


class StateObserved(Struct, frozen=True, kw_only=True):
    """The row, as its watcher wrote it. ``applications`` and ``other`` are the appliance's own words: untrusted."""

    at: float = 0.0
    epoch: int = 0
    origin: Literal["", "push", "poll", "host", "fault"] = ""
    execution: StateExecution = StateExecution()
    configuration: StateConfiguration = StateConfiguration()
    io: StateIo = StateIo()
    applications: dict[str, Any] = {}
    other: dict[str, Any] = {}
    standing: dict[str, Any] = {}
    """What its policies found, so that whoever watches it next knows what was acted on."""
    kept_by: str = ""
    """Of a table in memory: the server in whose memory the rest is, and which alone shows it. Empty: this is all."""


def _ready(resource: Resource) -> Condition:
    assigned: StateAssigned = resource.assigned
    observed: StateObserved | None = resource.observed
    if not assigned.watcher:
        return unknown("NotWatched", "no watcher is at work for it")
    if observed is None or observed.execution.state == "unknown":
        return unknown("Unknown", "nothing is heard of it")
    if observed.execution.state in ("hung", "silent"):
        return unready(observed.execution.state.capitalize(), f"it is {observed.execution.state}")
    failed = sorted(name for name, each in observed.applications.items() if _state(each) == "failed")
    if failed:
        return unready("ApplicationFailed", f"failed: {', '.join(failed)[:200]}")
    return ready(observed.execution.state.capitalize())


def _state(application: Any) -> str:
    return str(application.get("state", "")) if isinstance(application, dict) else ""


KIND = Kind(
    name="monitor.state",
    summary="What a monitor knows of one appliance: its row of the appliance state table.",
    desired=StateDesired,
    assigned=StateAssigned,
    observed=StateObserved,
    ready=_ready,
    created_by="kernel",
    columns=(
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("STATE", "observed.execution.state"),
        Column("BOOTS", "observed.execution.boots"),
        Column("MONITOR", "assigned.monitor", ref="monitor.monitor"),
        Column("ORIGIN", "observed.origin", wide=True),
        Column("EPOCH", "assigned.epoch", wide=True),
    ),
)
