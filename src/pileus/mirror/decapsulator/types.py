"""A decapsulator: the appliance through which mirrored packets go. Made for a zone's first session, gone after the last."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource

PLATFORM = "platform"
"""The account of the cloud's own appliances that serve many accounts."""


class DecapsulatorDesired(Struct, frozen=True, kw_only=True):
    """Where it serves."""

    zone: str


class DecapsulatorAssigned(Struct, frozen=True, kw_only=True):
    """``idle_since``: Unix seconds when its last session was seen ended; 0: it has some."""

    zone: str
    vdc: str
    number: int
    idle_since: float = 0.0


class DecapsulatorObserved(Struct, frozen=True, kw_only=True):
    """What its node says. ``down``: it was ready before, and does not answer now."""

    state: Literal["starting", "ready", "down", "ending"]
    message: str = ""
    node: str = ""
    at: str = ""
    """The host of its node."""
    path: str = ""
    """xdp: packets go through the kernel of the appliance; packets: through a program."""
    sessions: int = 0
    refused: dict[str, int] = {}
    """Packets of no session, by reason."""


def _ready(resource: Resource) -> Condition:
    observed: DecapsulatorObserved | None = resource.observed
    if observed is None:
        return unready("Deciding", "no decision yet")
    if observed.state == "ready":
        return ready()
    return unready(observed.state.capitalize(), observed.message)


KIND = Kind(
    name="mirror.decapsulator",
    summary="An appliance of the cloud's own through which the mirrored packets of a zone's tenants go.",
    desired=DecapsulatorDesired,
    assigned=DecapsulatorAssigned,
    observed=DecapsulatorObserved,
    ready=_ready,
    created_by="kernel",
    columns=(
        Column("STATE", "observed.state"),
        Column("SESSIONS", "observed.sessions"),
        Column("PATH", "observed.path"),
        Column("NODE", "observed.node", wide=True, ref="fleet.node"),
        Column("ZONE", "zone", ref="infra.zone"),
    ),
)
