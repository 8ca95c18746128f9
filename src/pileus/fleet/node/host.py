"""The host half of a node: the backchannel to its VM is held, and its document brought there when the hash differs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Guest, NodeFact
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.fleet.node.types import NodeAssigned, NodeDesired, NodeObserved
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource


class Step(Struct, frozen=True, kw_only=True):
    """Attach, configure or detach."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """The node as its channel tells; None: no channel is held. ``running``: whether its VM is."""

    node: NodeFact | None
    running: bool


def plan(wanted: Literal["held", "released"], wanted_hash: str, seen: Seen) -> Step | None:
    """Return the next step: hold the channel, then bring the document; nothing is sent to a silent node."""
    if wanted == "released":
        return Step(verb="detach") if seen.node is not None else None
    if not seen.running:
        return None
    if seen.node is None:
        return Step(verb="attach")
    # A node that refused another document says so until it takes one, be it the one that it runs.
    is_due = seen.node.hash != wanted_hash or seen.node.refused
    if seen.node.state == "ready" and wanted_hash and is_due:
        return Step(verb="configure")
    return None


class NodeHalf(Half[Seen, Step]):
    """Drives the backchannels of the host."""

    kind = "fleet.node"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Return what the channel tells."""
        assigned: NodeAssigned = resource.assigned
        vm = peers.peer(assigned.vm)
        running = vm is not None and vm.observed is not None and vm.observed.power == "running"
        return Seen((await self._guest.nodes()).get(assigned.vm), running)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the node."""
        assigned: NodeAssigned = resource.assigned
        released = resource.deleting or assigned.quarantined
        return plan("released" if released else "held", assigned.hash, fact)

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the guest driver."""
        assigned: NodeAssigned = resource.assigned
        desired: NodeDesired = resource.desired
        match step.verb:
            case "attach":
                form = assigned.footprint.channel
                port = _first_port(assigned.vm, peers) if form == "nic" else ""
                await self._guest.attach(assigned.vm, form, port, _allowed(assigned))
            case "configure":
                await self._guest.configure(assigned.vm, desired.document)
            case "detach":
                await self._guest.detach(assigned.vm)

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the node's observed section."""
        node = fact.node if fact is not None else None
        if node is None:
            is_silent = fact is not None and fact.running and not resource.deleting
            return NodeObserved(state="silent" if is_silent else "absent", problem=problem)
        if node.refused and problem is None:
            reason = "Quarantined" if node.state == "quarantined" else "Refused"
            problem = Problem(reason=reason, message=node.refused)
        return NodeObserved(
            state=node.state if fact is not None and fact.running else "absent",
            hash=node.hash,
            version=node.version,
            boot_id=node.boot_id,
            status=node.status,
            problem=problem,
        )

    async def inventory(self) -> Collection[str]:
        """Return nothing: a channel is of its VM, whose removal ends it."""
        return ()


def _allowed(assigned: NodeAssigned) -> Allowed | None:
    """Return what may be done in a foreign guest."""
    guest_agent = assigned.footprint.guest_agent
    if guest_agent is None:
        return None
    return msgspec.convert(msgspec.to_builtins(guest_agent), Allowed)


def _first_port(vm: str, peers: Peers) -> str:
    resource = peers.peer(vm)
    if resource is None or not resource.assigned.ports:
        raise DriverError("PortMissing", "the node's VM has no port yet")
    return str(resource.assigned.ports[0])
