"""Admission of a request: who may ask the node, until when, and its place among the node's requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec.structs import replace as changed

from pileus.fleet.admission import require
from pileus.fleet.node.types import NodeAssigned
from pileus.fleet.request.queue import give, require_room, take_place
from pileus.fleet.request.types import (
    DEADLINE_DEFAULT_S,
    DEADLINE_MAX_S,
    INLINE_BYTES_MAX,
    PAYLOAD,
    RequestAssigned,
    RequestDesired,
    RequestObserved,
    is_settled,
    queue_space,
)
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.times import parse_time
from pileus.kernel.transaction import Transaction

UPLOADED_BYTES_MAX = 1 << 30
"""Of all payloads that an account's requests wait with."""


class RequestAdmission(Admission):
    """Bounds each node's queue, and numbers its requests in the order of their commits."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the request with its number and deadline. Raises: Invalid, Denied, Conflict, QuotaExceeded."""
        new = change.new
        if change.old is not None:
            return new  # all but its labels is immutable
        # No link: a node may be deleted although requests wait for it, which then end.
        node = await tx.get(change.links.pop("node"))
        assigned: NodeAssigned = node.assigned
        desired: RequestDesired = new.desired
        if assigned.manager:
            await require(tx, change.principal, node.account_id, await tx.get(assigned.manager), "request")
        if assigned.quarantined:
            raise Conflict(
                f"{node} is quarantined ({assigned.quarantined}); raise its readmit_serial first", code="quarantined"
            )
        _check_payload(desired)
        await require_room(tx, node)
        decided = RequestAssigned(
            manager=assigned.manager,
            node=node.id,
            deadline=_deadline(desired.deadline, tx.now),
            payload_bytes=len(desired.payload.encode()),
            asked_by="manager" if change.principal.manager_id else "user",
        )
        if desired.upload == "yes":
            await tx.claim(queue_space(node.id), new.id, new.id)
        else:
            decided = changed(decided, sequence=await take_place(tx, new.id, node.id))
        # Known as queued from the start: a host that says the same later writes nothing.
        return replace(new, assigned=decided, observed=RequestObserved(), observed_generation=1)

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Give it to its node's host if it is among the first."""
        assigned: RequestAssigned = resource.assigned
        if assigned.sequence:
            await give(tx, assigned.node)
        return {}


def _check_payload(desired: RequestDesired) -> None:
    if desired.upload == "yes" and desired.payload:
        raise Invalid("a request has its payload inline or uploads it, not both", field="desired.payload")
    # As it travels: a control character takes six bytes in JSON.
    if len(msgspec.json.encode(desired.payload)) - 2 > INLINE_BYTES_MAX:
        raise Invalid(
            f"an inline payload takes at most {INLINE_BYTES_MAX} bytes of JSON; set upload to yes and upload it",
            field="desired.payload",
        )


def _deadline(text: str, now: float) -> float:
    """Return Unix seconds. Raises: Invalid."""
    if not text:
        return now + DEADLINE_DEFAULT_S
    deadline = parse_time(text, "desired.deadline")
    if not now < deadline <= now + DEADLINE_MAX_S:
        raise Invalid(
            f"the deadline {text} is over, or more than {DEADLINE_MAX_S / 86_400:.0f} days ahead; choose one between,"
            " or leave it out for an hour from now",
            field="desired.deadline",
        )
    return deadline


async def upload(tx: Transaction, request: str, body: bytes) -> None:
    """Take the payload of a request that waits for it, which gives it its place; the same again is no mistake.

    Raises: Conflict, QuotaExceeded, NotFound.
    """
    resource = await tx.get(request)
    desired: RequestDesired = resource.desired
    assigned: RequestAssigned = resource.assigned
    digest = hashlib.sha256(body).hexdigest()
    if desired.upload != "yes":
        raise Conflict(f"{resource} came with its payload", code="already-uploaded")
    if assigned.payload_sha256 == digest:
        return
    if assigned.payload_sha256:
        raise Conflict(f"{resource} has another payload already; make another request", code="already-uploaded")
    node = await tx.find_id(assigned.node)
    if resource.deleting or is_settled(resource) or node is None:
        raise Conflict(f"{resource} is over and takes no payload any more", code="settled")
    kept = await tx.content_bytes(resource.account_id)
    if kept + len(body) > UPLOADED_BYTES_MAX:
        raise QuotaExceeded(
            f"payloads and answers of account {resource.account} take {kept} of {UPLOADED_BYTES_MAX} bytes;"
            " wait for some requests, or delete some"
        )
    await tx.put_content(resource, PAYLOAD, body)
    await tx.release(resource.id, queue_space(assigned.node), resource.id)
    sequence = await take_place(tx, resource.id, assigned.node)
    about = {"sequence": sequence, "payload_bytes": len(body), "payload_sha256": digest}
    await tx.update(resource, assigned=changed(assigned, **about))
    await give(tx, assigned.node)
