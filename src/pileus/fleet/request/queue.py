"""The queue of a node: each request's place in it, and which of them are on the node's host.

Whatever changes a queue gives the first of it to the host in the same transaction, so that nothing waits for a turn of
the loop, and a host never has a request without those before it.
"""

from __future__ import annotations

from msgspec.structs import replace

from pileus.compute.vm.types import VmAssigned
from pileus.fleet.node.types import NodeAssigned
from pileus.fleet.request.plan import NodeSeen, Place
from pileus.fleet.request.types import GIVEN_MAX, QUEUE_MAX, RequestAssigned, is_settled, queue_space, sequence_space
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.reader import Reader
from pileus.kernel.transaction import Transaction


async def require_room(tx: Transaction, node: Resource) -> None:
    """Raises: QuotaExceeded when so many requests of the node wait that there may be no more."""
    if await tx.claimed(queue_space(node.id)) >= QUEUE_MAX:
        raise QuotaExceeded(
            f"{node} has {QUEUE_MAX} requests that are not settled, the most there may be; wait for some, or delete some"
        )


async def take_place(tx: Transaction, request: str, node: str) -> int:
    """Return the next sequence of the node, and put the request there."""
    space = sequence_space(node)
    last = max((int(value) for value in await tx.claims(space, node)), default=0)
    sequence = max(last + 1, int(tx.now * 1000))
    await tx.release(node, space)
    await tx.claim(space, str(sequence), node, sequence)
    await tx.claim(queue_space(node), str(sequence), request, sequence)
    return sequence


async def see(reader: Reader, id: str) -> NodeSeen:
    """Return the node as its row, and its VM's, say it is."""
    node = await reader.find_id(id)
    if node is None:
        return NodeSeen(state="gone")
    assigned: NodeAssigned = node.assigned
    vm = await reader.find_id(assigned.vm)
    place = _place(vm) if vm is not None else Place()
    if assigned.quarantined:
        return NodeSeen(state="quarantined", place=place)
    return NodeSeen(state="leaving" if node.deleting else "present", place=place)


def _place(vm: Resource) -> Place:
    decided: VmAssigned = vm.assigned
    return Place(vm=vm.id, disk=decided.volumes[0] if decided.volumes else "", host=vm.host)


async def put(tx: Transaction, request: Resource, place: Place, *, withdrawn: bool = False) -> None:
    """Put a request where its node is."""
    assigned: RequestAssigned = request.assigned
    word = "yes" if withdrawn else assigned.withdrawn
    decided = replace(assigned, vm=place.vm, disk=place.disk, host=place.host, withdrawn=word)
    if decided != assigned:
        await tx.update(request, assigned=decided, host=place.host)


async def give(tx: Transaction, node_id: str) -> None:
    """Give the first of a node's queue to its host, all in one write: a host never has one without those before it."""
    node = await see(tx, node_id)
    if node.state != "present" or not node.place.host or not node.place.disk:
        return
    for id in await tx.queue(queue_space(node_id), GIVEN_MAX):
        request = await tx.get(id)
        if (
            request.deleting
            or request.assigned.withdrawn == "yes"
            or tx.now >= request.assigned.deadline
            or is_settled(request)
        ):
            continue  # it ends without, or has ended already
        if not request.assigned.disk:
            await put(tx, request, node.place)
