"""A request: something a node's role shall do once, in order, before a deadline; and what the node answered."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import NodeRef, Problem
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.notice import Notice
from pileus.kernel.words import printable

PAYLOAD_BYTES_MAX = 16 << 20
"""Of one that is uploaded."""

INLINE_BYTES_MAX = 65_536
"""Of a payload that comes with the request; a longer one is uploaded after it."""

DEADLINE_DEFAULT_S = 3600.0
DEADLINE_MAX_S = 7 * 86_400.0
KEPT_S = 7 * 86_400.0
"""How long a settled request stays readable."""

KEPT_MAX = 256
"""Settled requests of one node that stay readable; the oldest go first."""

QUEUE_MAX = 256
"""Requests of one node that are not settled yet; one more is refused."""

GIVEN_MAX = 4
"""The first so many of a queue are on the node's host. What was done and not told yet is asked again, so a node must
remember the ends of as many, with the longest answers (``ENDS_MAX`` and ``ANSWERS_BYTES_MAX`` of pileus.node.ledger);
and their payloads go to the host's agent in one frame."""

ANSWER_INLINE_BYTES = 4096
"""Of an answer that stays in ``observed``; a longer one is read from ``/answer``."""

PAYLOAD, ANSWER = "payload", "answer"
"""Parts of a request's content."""

SETTLED = frozenset({"applied", "refused", "expired", "withdrawn", "unknown"})


class RequestDesired(Struct, frozen=True, kw_only=True):
    """What is asked of which node. Deleting a request that was not begun withdraws it."""

    node: Annotated[NodeRef, Meta(description="The node that shall do it.")]
    payload: Annotated[str, Meta(max_length=INLINE_BYTES_MAX, description="Text for the node's role.")] = ""
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
    sequence: int = 0
    """Its place among the node's requests: rising from each to the next; 0 while its payload is not uploaded yet.

    About the milliseconds since 1970 when it came, so that a database restored from a copy goes on above what its nodes
    have seen.
    """
    deadline: float
    """Unix seconds."""
    payload_bytes: int = 0
    payload_sha256: str = ""
    """Of an upload that is here; the host fetches it by the request's id."""
    asked_by: Literal["user", "manager"] = "user"
    """Who made it: what a manager asked for ends with the account's consent."""
    withdrawn: Literal["no", "yes"] = "no"
    """Whether the node shall not begin it: it, its node or its manager's consent was deleted."""
    vm: str = ""
    disk: str = ""
    """The VM's root volume when the request was given to its host: the node's memory of what it did is there."""
    host: str = ""
    settled_at: float = 0.0
    """Unix seconds; 0: it is not settled."""


class RequestObserved(Struct, frozen=True, kw_only=True):
    """How it ended, as ``GuestAnswer`` of the guest driver says it. ``answer``: text, or base64 if ``encoding`` says so.

    A long answer is not here but at ``/answer``.
    """

    state: Literal["queued", "applied", "refused", "expired", "withdrawn", "unknown"] = "queued"
    answer: str = ""
    encoding: Literal["utf-8", "base64"] = "utf-8"
    answer_bytes: int = 0
    problem: Problem | None = None


def is_settled(resource: Resource) -> bool:
    """Tell whether the request ended, one way or the other."""
    observed: RequestObserved | None = resource.observed
    return observed is not None and observed.state in SETTLED


def queue_space(node: str) -> str:
    """Return the claim space of a node's requests that are not settled: number and value are the sequence."""
    return f"requests/{node}"


def kept_space(node: str) -> str:
    """Return the claim space of a node's settled requests."""
    return f"requests-kept/{node}"


def sequence_space(node: str) -> str:
    """Return the claim space of the node's last sequence: one value, which the node owns."""
    return f"requests-last/{node}"


def _ready(resource: Resource) -> Condition:
    observed: RequestObserved | None = resource.observed
    assigned: RequestAssigned | None = resource.assigned
    if observed is not None and observed.state == "applied":
        return ready("Applied", "the node applied it")
    if observed is not None and observed.state in SETTLED:
        return unready(observed.state.capitalize(), _words(observed) or f"the request is {observed.state}")
    if observed is not None and observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if assigned is None or not assigned.sequence:
        return unready("AwaitingUpload", "upload its payload: `pileus create request --payload-file FILE`")
    if not assigned.host:
        return unready("Queued", "it waits for those before it, or for its node to have a host")
    return unready("Queued", "it waits for its turn at the node")


def _notice(old: Resource | None, new: Resource | None) -> Notice | None:
    """Return what the node's manager is told: once, how the request ended."""
    if new is None or not new.assigned.settled_at or (old is not None and old.assigned.settled_at):
        return None
    observed: RequestObserved = new.observed
    return Notice(
        type="request.settled",
        subject=new.assigned.node,
        about={"node": new.assigned.node, "request": new.id, "request_name": new.name},
        data={
            "state": observed.state,
            "sequence": new.assigned.sequence,
            "answer": observed.answer,
            "encoding": observed.encoding,
            "answer_bytes": observed.answer_bytes,
        },
    )


def _words(observed: RequestObserved) -> str:
    """Return what the node says, as far as it can be printed: it is untrusted."""
    if observed.encoding != "utf-8":
        return ""
    return printable(observed.answer[:500]).strip()


KIND = Kind(
    name="fleet.request",
    summary="Something a node shall do once, in order, before a deadline, with the node's answer.",
    desired=RequestDesired,
    assigned=RequestAssigned,
    observed=RequestObserved,
    ready=_ready,
    notice=_notice,
    host_bound=True,
    leaves=False,
    name_prefix="r",
    immutable=frozenset(RequestDesired.__struct_fields__),
    columns=(
        Column("NODE", "desired.node"),
        Column("STATE", "observed.state"),
        Column("ANSWER", "observed.answer"),
        Column("DEADLINE", "desired.deadline", wide=True),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
