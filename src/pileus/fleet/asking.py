"""Requests that the cloud's own controllers make of nodes: the same queue, order and answers as everybody's."""

from __future__ import annotations

from pileus.compute.vm.types import node_space
from pileus.fleet.node.types import NodeAssigned
from pileus.fleet.request.queue import give, require_room, take_place
from pileus.fleet.request.types import RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.kind import Resource
from pileus.kernel.reader import Reader
from pileus.kernel.transaction import Transaction


async def node_of(reader: Reader, vm: Resource) -> Resource | None:
    """Return the node that the VM is, if it is one."""
    holder = await reader.holder(node_space(), vm.id)
    found = await reader.find_id(holder or vm.owner) if holder or vm.owner else None
    return found if found is not None and found.kind == "fleet.node" else None


async def ask(tx: Transaction, node: Resource, owner: Resource, name: str, payload: str, deadline: float) -> Resource:
    """Make ``owner`` a request of the node; its own of that name is returned. Raises: QuotaExceeded, Conflict."""
    found = await tx.find("fleet.request", owner.account_id, name)
    if found is not None and (found.owner, found.assigned.node) == (owner.id, node.id):
        return found
    await require_room(tx, node)
    assigned: NodeAssigned = node.assigned
    id = tx.new_id()
    request = Resource(
        id=id,
        kind="fleet.request",
        name=name,
        owner=owner.id,
        account_id=owner.account_id,
        account=owner.account,
        desired=RequestDesired(node=node.name, payload=payload),
        assigned=RequestAssigned(
            manager=assigned.manager,
            node=node.id,
            sequence=await take_place(tx, id, node.id),
            deadline=deadline,
            payload_bytes=len(payload.encode()),
        ),
        # Known as queued from the start: a host that says the same later writes nothing.
        observed=RequestObserved(),
        observed_generation=1,
    )
    made = await tx.create(request)
    await give(tx, node.id)
    return made
