"""A pool: where volumes lie. For now the local disk of one host."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import HostRef, Problem, ProviderRef
from pileus.kernel.kind import Column, Kind, Resource


class PoolDesired(Struct, frozen=True, kw_only=True):
    """What and where it is."""

    host: Annotated[HostRef, Meta(description="The host whose disk it is.")]
    type: Annotated[Literal["local"], Meta(description="local: a folder of the host.")] = "local"
    provider: Annotated[ProviderRef, Meta(description="Who owns the disks; empty: the operator.")] = ""
    overcommit_percent: Annotated[
        int,
        Meta(ge=10, le=1000, description="Size given out in percent of the disk; volumes are thin."),
    ] = 200


class PoolAssigned(Struct, frozen=True, kw_only=True):
    """The host that serves it."""

    host: str
    zone: str


class PoolObserved(Struct, frozen=True, kw_only=True):
    """The file system under it, in GiB, rounded down."""

    total_gib: int
    free_gib: int
    problem: Problem | None = None


def _ready(resource: Resource) -> Condition:
    observed: PoolObserved | None = resource.observed
    if observed is None:
        return unready("NoAgent", "its host has not reported yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    return ready()


KIND = Kind(
    name="storage.pool",
    summary="A place for volumes: the local disk of a host.",
    desired=PoolDesired,
    assigned=PoolAssigned,
    observed=PoolObserved,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    immutable=frozenset({"host", "type"}),
    host_bound=True,
    columns=(
        Column("TYPE", "desired.type"),
        Column("TOTAL", "observed.total_gib"),
        Column("FREE", "observed.free_gib"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
