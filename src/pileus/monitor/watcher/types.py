"""A watcher: one of those that do a monitor's work. A server runs it under a lease, itself or in an appliance VM."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource

LEASE_S = 10.0
"""What the watcher of a server that died did, another does after this at the latest."""


class WatcherDesired(Struct, frozen=True, kw_only=True):
    """Which of the monitor's replicas it is. ``form`` is the monitor's."""

    form: Annotated[Literal["server", "appliance"], Meta(description="Where it runs.")] = "server"
    number: Annotated[int, Meta(ge=0, description="Which of the monitor's replicas it is.")] = 0


class WatcherAssigned(Struct, frozen=True, kw_only=True):
    """Whose it is, and where its appliance is."""

    monitor: str
    zone: str = ""
    vdc: str = ""
    image: str = ""
    """Id of the imported image that its appliance is made of; empty: the cloud's own."""


class WatcherObserved(Struct, frozen=True, kw_only=True):
    """How it is, as the server says that runs it. ``server``: its name."""

    state: Literal["starting", "working", "lost"] = "starting"
    server: str = ""
    message: str = ""
    appliances: int = 0


def is_at_work(resource: Resource) -> bool:
    """Tell whether appliances may be given to it, as far as its own row says."""
    observed: WatcherObserved | None = resource.observed
    return not resource.deleting and observed is not None and observed.state == "working"


def _ready(resource: Resource) -> Condition:
    observed: WatcherObserved | None = resource.observed
    if observed is None or observed.state == "starting":
        return unready("Starting", observed.message if observed is not None else "no server runs it yet")
    if observed.state == "lost":
        return unready("Lost", observed.message)
    return ready("Working", f"watches {observed.appliances}")


KIND = Kind(
    name="monitor.watcher",
    summary="One of those that do a monitor's work.",
    desired=WatcherDesired,
    assigned=WatcherAssigned,
    observed=WatcherObserved,
    ready=_ready,
    created_by="kernel",
    columns=(
        Column("MONITOR", "assigned.monitor", ref="monitor.monitor"),
        Column("FORM", "desired.form"),
        Column("STATE", "observed.state"),
        Column("APPLIANCES", "observed.appliances"),
        Column("SERVER", "observed.server", wide=True),
    ),
)
