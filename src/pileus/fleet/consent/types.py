"""Consent: what an account lets a manager do in it. Without one a manager sees nothing of the account."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import ManagerRef
from pileus.kernel.kind import Column, Kind, Resource

Allowed = Literal["create", "configure", "request", "power"]
"""Make nodes; write their documents and packages; send requests; start, stop and delete nodes."""


class ConsentDesired(Struct, frozen=True, kw_only=True):
    """Whom, what, how much."""

    manager: Annotated[ManagerRef, Meta(description="The manager that may act.")]
    allows: Annotated[tuple[Allowed, ...], Meta(description="What it may do with nodes of the account.")] = (
        "create",
        "configure",
        "request",
        "power",
    )
    nodes_max: Annotated[int, Meta(ge=0, le=10_000, description="Nodes it may have in the account.")] = 10


class ConsentAssigned(Struct, frozen=True, kw_only=True):
    """The manager's id."""

    manager: str


def consent_space(account_id: str) -> str:
    """Return the claims of an account: id of a manager -> id of the consent to it."""
    return f"consent/{account_id}"


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="fleet.consent",
    summary="An account's word that a manager may run nodes in it; deleting it takes effect at once.",
    desired=ConsentDesired,
    assigned=ConsentAssigned,
    ready=_ready,
    immutable=frozenset({"manager"}),
    columns=(
        Column("MANAGER", "desired.manager"),
        Column("ALLOWS", "desired.allows"),
        Column("NODES_MAX", "desired.nodes_max"),
    ),
)
