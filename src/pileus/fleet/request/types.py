"""A request: something a node's role shall do once, in order, before a deadline; and what the node answered."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import NodeRef, Problem
from pileus.kernel.kind import Column, Kind, Resource

INLINE_BYTES_MAX = 65_536
"""Of a payload that comes with the request; a longer one is uploaded after it."""

DEADLINE_DEFAULT_S = 3600.0
KEPT_S = 7 * 86_400.0
"""How long an answered request stays readable."""

QUEUE_MAX = 256
"""Requests of one node that are not settled yet; one more is refused."""

SETTLED = frozenset({"applied", "refused", "expired", "withdrawn", "unknown"})


class RequestDesired(Struct, frozen=True, kw_only=True):
    """What is asked of which node. Deleting a request that was not begun withdraws it."""

    node: Annotated[NodeRef, Meta(description="The node that shall do it.")]
    payload: Annotated[
        str, Meta(max_length=INLINE_BYTES_MAX, description="Text for the node's role.", extra={"file": True})
    ] = ""
    upload: Annotated[
        Literal["no", "yes"],
        Meta(description="yes: the payload is uploaded, up to 16 MiB, and the request waits for it."),
    ] = "no"
    deadline: Annotated[
        str,
        Meta(
            description="RFC 3339 time after which it is not begun any more; empty: in an hour.",
            extra={"format": "time"},
        ),
    ] = ""


class RequestAssigned(Struct, frozen=True, kw_only=True):
    """Decided when it came, but for ``vm`` and ``host``, which follow the node; no host once it is settled."""

    manager: str
    node: str
    sequence: int
    """Its place among the node's requests: 1, 2, …"""
    deadline: float
    """Unix seconds."""
    payload_bytes: int = 0
    payload_sha256: str = ""
    """Of an upload that is here; the host fetches it by the request's id."""
    withdrawn: Literal["no", "yes"] = "no"
    vm: str = ""
    host: str = ""


class RequestObserved(Struct, frozen=True, kw_only=True):
    """How it ended, as ``GuestAnswer`` of the guest driver says it. ``answer``: text, or base64 if ``encoding`` says so."""

    state: Literal["queued", "applied", "refused", "expired", "withdrawn", "unknown"] = "queued"
    answer: str = ""
    encoding: Literal["utf-8", "base64"] = "utf-8"
    problem: Problem | None = None


def is_settled(resource: Resource) -> bool:
    """Tell whether the request ended, one way or the other."""
    observed: RequestObserved | None = resource.observed
    return observed is not None and observed.state in SETTLED


def _ready(resource: Resource) -> Condition:
    observed: RequestObserved | None = resource.observed
    assigned: RequestAssigned | None = resource.assigned
    if observed is not None and observed.state == "applied":
        return ready("Applied", "the node applied it")
    if observed is not None and observed.state in SETTLED:
        return unready(observed.state.capitalize(), observed.answer[:500] or f"the request is {observed.state}")
    if observed is not None and observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if assigned is None or not assigned.host:
        return unready("Queued", "its node has no host yet")
    return unready("Queued", "it waits for its turn at the node")


KIND = Kind(
    name="fleet.request",
    summary="Something a node shall do once, in order, before a deadline, with the node's answer.",
    desired=RequestDesired,
    assigned=RequestAssigned,
    observed=RequestObserved,
    ready=_ready,
    host_bound=True,
    immutable=frozenset(RequestDesired.__struct_fields__),
    columns=(
        Column("NODE", "desired.node"),
        Column("NUMBER", "assigned.sequence"),
        Column("STATE", "observed.state"),
        Column("DEADLINE", "desired.deadline", wide=True),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
