"""A pod: hosts and storage that are strongly connected with each other, at layer 2."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import ZoneRef
from pileus.kernel.kind import Column, Kind, Resource


class PodDesired(Struct, frozen=True, kw_only=True):
    """Where the pod is."""

    zone: Annotated[ZoneRef, Meta(description="The zone; left out: the only one.")] = ""


class PodAssigned(Struct, frozen=True, kw_only=True):
    """The zone it belongs to."""

    zone: str


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="infra.pod",
    summary="A discrete set of hosts and storage in a zone.",
    desired=PodDesired,
    assigned=PodAssigned,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    immutable=frozenset({"zone"}),
    columns=(Column("ZONE", "zone", ref="infra.zone"),),
)
