"""The host half of a request: the node is asked, one request at a time and in their order, until it said how each ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import defaultdict

from msgspec import Struct

from pileus.compute.vm.types import VmAssigned, VmObserved
from pileus.drivers.host.guest.base import Guest, GuestAnswer, GuestRequest
from pileus.fleet.request.plan import Seen, Step, Wish, next_step
from pileus.fleet.request.types import PAYLOAD, RequestAssigned, RequestDesired, RequestObserved, is_settled
from pileus.kernel.errors import Transient
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource

RECHECK_S = 30.0
LARGE_AT_ONCE = 4
"""Uploaded payloads in this host's memory at the same time: 64 MiB."""


class RequestHalf(Half[Seen, Step]):
    """Asks in the background, so that a slow role keeps nothing else on the host waiting."""

    kind = "fleet.request"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._under_way: dict[str, asyncio.Task[GuestAnswer]] = {}
        self._ends: dict[str, GuestAnswer] = {}
        """What was heard and may not be in the slice's facts yet."""
        self._waiting: dict[str, dict[str, Peers]] = defaultdict(dict)
        """By machine: the requests that wait for its node to answer."""
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        guest.on_change(self._changed)

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Return how far it is. Raises: DriverError, Transient when the node, or the server for its payload, failed."""
        if is_settled(resource):
            self._ends.pop(resource.id, None)
            return Seen(asked="done")
        task = self._under_way.get(resource.id)
        if task is not None and not task.done():
            return Seen(asked="under-way")
        if task is not None:
            del self._under_way[resource.id]
            self._ends[resource.id] = task.result()
            self._wake_next(resource, peers)
        if resource.id in self._ends:
            return Seen(asked="done")
        waiting = self._waiting[resource.assigned.vm]
        waiting[resource.id] = peers  # first: what changes while it is looked at is not missed
        ready = await self._is_ready(resource.assigned, peers)
        if ready:
            waiting.pop(resource.id, None)
        return Seen(ready=ready)

    async def _is_ready(self, assigned: RequestAssigned, peers: Peers) -> bool:
        vm = peers.peer(assigned.vm)
        if vm is None or vm.observed is None:
            return False
        decided: VmAssigned = vm.assigned
        observed: VmObserved = vm.observed
        node = (await self._guest.nodes()).get(assigned.vm)
        same = decided.volumes[:1] == (assigned.disk,)
        return same and observed.power == "running" and node is not None and node.state == "ready"

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the request."""
        assigned: RequestAssigned = resource.assigned
        wish = Wish(
            withdrawn=resource.deleting or assigned.withdrawn == "yes",
            is_late=peers.now() >= assigned.deadline,
            is_first=not any(self._is_before(other, assigned) for other in peers.peers(self.kind)),
        )
        return next_step(wish, fact, RECHECK_S)

    def _is_before(self, other: Resource, assigned: RequestAssigned) -> bool:
        """Tell whether another request comes first."""
        place: RequestAssigned = other.assigned
        if place.node != assigned.node or place.sequence >= assigned.sequence:
            return False
        return not is_settled(other) and other.id not in self._ends

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Begin to ask the node."""
        self._ends = {id: end for id, end in self._ends.items() if peers.peer(id) is not None}
        task = asyncio.create_task(self._ask(step.verb == "withdraw", resource, peers), name=f"request {resource.id}")
        self._under_way[resource.id] = task
        task.add_done_callback(lambda _: peers.wake(resource.id))

    async def _ask(self, withdrawn: bool, resource: Resource, peers: Peers) -> GuestAnswer:
        assigned: RequestAssigned = resource.assigned
        desired: RequestDesired = resource.desired
        asked = GuestRequest(
            id=resource.id,
            sequence=assigned.sequence,
            deadline=assigned.deadline,
            payload=desired.payload.encode(),
            withdrawn=withdrawn,
        )
        if withdrawn or not assigned.payload_sha256:
            answer = await self._guest.request(assigned.vm, asked)
        else:
            async with self._large:
                payload = await _fetch(resource.id, assigned.payload_sha256, peers)
                answer = await self._guest.request(assigned.vm, _with(asked, payload))
        if answer.state == "withdrawn" and not resource.deleting and assigned.withdrawn == "no":
            return GuestAnswer(state="expired", answer=answer.answer)  # late by our clock, and not yet by the node's
        return answer

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return how it ended, or that it is queued."""
        end = self._ends.get(resource.id)
        if end is not None:
            return observed_of(end)
        if is_settled(resource):
            known: RequestObserved = resource.observed
            return known
        return RequestObserved(problem=problem)

    async def close(self) -> None:
        """Ask no more; the node goes on with what it has begun."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake_next(self, resource: Resource, peers: Peers) -> None:
        node, sequence = resource.assigned.node, resource.assigned.sequence
        behind = [
            other
            for other in peers.peers(self.kind)
            if other.assigned.node == node and other.assigned.sequence > sequence
        ]
        if behind:
            peers.wake(min(behind, key=lambda other: int(other.assigned.sequence)).id)

    def _changed(self, machine: str) -> None:
        for id, peers in self._waiting.pop(machine, {}).items():
            peers.wake(id)


async def _fetch(id: str, sha256: str, peers: Peers) -> bytes:
    """Return the uploaded payload. Raises: Transient."""
    payload = b"".join([piece async for piece in peers.content(id, PAYLOAD)])
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise Transient("the server gave another payload than was uploaded; it is fetched again")
    return payload


def _with(asked: GuestRequest, payload: bytes) -> GuestRequest:
    return GuestRequest(id=asked.id, sequence=asked.sequence, deadline=asked.deadline, payload=payload)


def observed_of(end: GuestAnswer) -> RequestObserved:
    """Return how it ended as the server is told."""
    try:
        text = end.answer.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # which a database may not hold
        return RequestObserved(state=end.state, answer=base64.b64encode(end.answer).decode(), encoding="base64")
    return RequestObserved(state=end.state, answer=text)
