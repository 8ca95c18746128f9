"""The server half of a request: the first of a node's queue go to its host in their order; what ended leaves it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from msgspec.structs import replace

from pileus.fleet.request.plan import Asked, End, Follow, decide
from pileus.fleet.request.queue import give, put, see
from pileus.fleet.request.types import (
    ANSWER,
    ANSWER_INLINE_BYTES,
    KEPT_MAX,
    KEPT_S,
    PAYLOAD,
    RequestAssigned,
    RequestObserved,
    is_settled,
    kept_space,
    queue_space,
)
from pileus.infra.host.types import HostAssigned
from pileus.kernel.clock import unix
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import WAITING, Transaction
from pileus.kernel.waking import wake_ids

RECHECK_S = 30.0
"""How late a request hears that its node moved or was replaced; with a host, whether that is silent."""

QUEUED_RECHECK_S = 300.0
"""The same for those behind the first of the queue, which wake them."""

PAGE = 500


class RequestController(Controller):
    """Brings each request to its end."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Give it to its node's host when it is its turn, follow the node, and settle it; gone once it is settled."""
        assigned: RequestAssigned = resource.assigned
        if assigned.settled_at:
            return _kept(resource, store.clock())
        if is_settled(resource):
            return Done(lambda tx: _settle(tx, resource, resource.observed))
        node = await see(store, assigned.node)
        is_late = store.clock() >= assigned.deadline
        unwanted = resource.deleting or assigned.withdrawn == "yes"
        asked = Asked(unwanted=unwanted, is_late=is_late, given=assigned.disk)
        match decide(asked, node):
            case End(state, message):
                ended = RequestObserved(state=state, answer=message)
                return Done(lambda tx: _settle(tx, resource, ended))
            case Follow() as follow:
                return await _follow(resource, follow, store)
            case _:
                left_s = max(assigned.deadline - store.clock(), 0.0)
                after_s = QUEUED_RECHECK_S if assigned.sequence else RECHECK_S
                return Done(lambda tx: give(tx, assigned.node), after_s=min(left_s + 0.1, after_s))


async def _follow(request: Resource, follow: Follow, store: Store) -> Outcome:
    """Keep it where its node is."""

    async def apply(tx: Transaction) -> None:
        await put(tx, request, follow.place, withdrawn=follow.withdrawn)

    if follow.place.host:
        decided: HostAssigned = (await store.get(follow.place.host)).assigned
        if decided.silent == "yes":
            message = "its node's host does not report; the node may still do it"
            return Wait("HostSilent", message, RECHECK_S, apply, status="unknown")
    if request.deleting:
        return Wait("Withdrawing", "its node has not said yet whether it did it", RECHECK_S, apply)
    return Done(apply, after_s=RECHECK_S)


async def _settle(tx: Transaction, request: Resource, observed: RequestObserved) -> None:
    """Note how it ended, take it from its host, and let the next come."""
    assigned: RequestAssigned = request.assigned
    told = await _move_answer(tx, request, observed)
    await tx.update(
        request,
        observed=told,
        observed_generation=request.generation,
        conditions=tuple(each for each in request.conditions if each.type != WAITING),  # so that the end is an event
        assigned=replace(assigned, host="", settled_at=tx.now),
        host="",
    )
    await tx.drop_content(request, PAYLOAD)
    await tx.release(request.id, queue_space(assigned.node))
    await give(tx, assigned.node)
    kept = kept_space(assigned.node)
    await tx.claim(kept, request.id, request.id, int(tx.now * 1000))
    too_many = await tx.claimed(kept) - KEPT_MAX
    for id in await tx.queue(kept, max(too_many, 0)):
        await tx.mark_deleting(await tx.get(id))


async def _move_answer(tx: Transaction, request: Resource, observed: RequestObserved) -> RequestObserved:
    """Return the end without a long answer, which is kept beside: lists and watches stay small."""
    content = answer_of(observed)
    about: dict[str, Any] = {"answer_bytes": len(content)}
    if len(content) > ANSWER_INLINE_BYTES:
        await tx.put_content(request, ANSWER, content)
        about["answer"] = ""
    return replace(observed, **about)


def answer_of(observed: RequestObserved) -> bytes:
    """Return the answer as the node gave it; none for what is not base64 although it says so."""
    if observed.encoding == "utf-8":
        return observed.answer.encode()
    try:
        return base64.b64decode(observed.answer, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _kept(request: Resource, now: float) -> Outcome:
    """Return what becomes of a settled request: it is kept for a while."""
    if request.deleting or now - request.assigned.settled_at < KEPT_S:
        return Done()

    async def forget(tx: Transaction) -> None:
        await tx.mark_deleting(request)
        await tx.change(tx.insert.enqueue, id=request.id, due=tx.now)

    return Done(forget)


async def wake_kept(store: Store) -> None:
    """Make due the settled requests that were kept long enough; the oldest come first, so the first too young ends it."""
    before = store.clock() - KEPT_S
    after = ""
    while page := await store.list(Filter(kind="fleet.request"), after=after, limit=PAGE):
        due = [one.id for one in page if 0 < one.assigned.settled_at <= before]
        if due:
            await wake_ids(store, due)
        after = page[-1].id
        if unix(page[-1].created_at) > before:
            return
