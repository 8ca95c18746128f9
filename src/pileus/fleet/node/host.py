"""The host half of a node: the backchannel to its VM is held, and its document brought there when the hash differs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Guest, NodeFact
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.fleet.node.types import NodeAssigned, NodeDesired, NodeLast, NodeObserved
from pileus.fleet.package.types import ChannelForm
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource


class Step(Struct, frozen=True, kw_only=True):
    """Attach, configure or detach."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """The node as its channel tells; None: no channel is held. ``running``: whether its VM is.

    ``as_wished``: the channel that is held has the form that its package says, and allows what that allows.
    """

    node: NodeFact | None
    running: bool
    as_wished: bool = True


class Channel(Struct, frozen=True):
    """How a node is reached. ``port``: of its first NIC, for the form nic. ``allowed``: what may be done, for qga."""

    form: ChannelForm
    port: str = ""
    allowed: Allowed | None = None


def plan(wanted: Literal["held", "released"], wanted_hash: str, seen: Seen) -> Step | None:
    """Return the next step: hold the channel, then bring the document; nothing is sent to a silent node."""
    if wanted == "released":
        return Step(verb="detach") if seen.node is not None else None
    if not seen.running:
        return None
    if seen.node is None or not seen.as_wished:
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
        self._held: dict[str, Channel] = {}
        """By machine: the channel as it was asked for."""

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Return what the channel tells."""
        assigned: NodeAssigned = resource.assigned
        vm = peers.peer(assigned.vm)
        running = vm is not None and vm.observed is not None and vm.observed.power == "running"
        node = (await self._guest.nodes()).get(assigned.vm)
        return Seen(node, running, self._held.get(assigned.vm) == _channel(assigned, peers))

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
                channel = _channel(assigned, peers)
                if channel.form == "nic" and not channel.port:
                    raise DriverError("PortMissing", "the node's VM has no port yet")
                await self._guest.attach(assigned.vm, channel.form, channel.port, channel.allowed)
                self._held[assigned.vm] = channel
            case "configure":
                await self._guest.configure(assigned.vm, desired.document)
            case "detach":
                await self._guest.detach(assigned.vm)
                self._held.pop(assigned.vm, None)

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the node's observed section."""
        node = fact.node if fact is not None else None
        last = _last(resource.observed)
        if node is None:
            is_silent = fact is not None and fact.running and not resource.deleting
            return NodeObserved(state="silent" if is_silent else "absent", last=last, problem=problem)
        if node.refused and problem is None:
            reason = "Quarantined" if node.state == "quarantined" else "Refused"
            problem = Problem(reason=reason, message=node.refused)
        return NodeObserved(
            state=node.state if fact is not None and fact.running else "absent",
            hash=node.hash,
            version=node.version,
            boot_id=node.boot_id,
            status=node.status,
            last=None if node.state == "ready" else last,
            problem=problem,
        )

    async def inventory(self) -> Collection[str]:
        """Return nothing: a channel is of its VM, whose removal ends it."""
        return ()


def _last(before: NodeObserved | None) -> NodeLast | None:
    """Return what the node said last, for when it does not answer."""
    if before is None:
        return None
    return NodeLast(boot_id=before.boot_id, status=before.status) if before.boot_id else before.last


def _allowed(assigned: NodeAssigned) -> Allowed | None:
    """Return what may be done in a foreign guest."""
    guest_agent = assigned.footprint.guest_agent
    if guest_agent is None:
        return None
    return msgspec.convert(msgspec.to_builtins(guest_agent), Allowed)


def _channel(assigned: NodeAssigned, peers: Peers) -> Channel:
    """Return the channel that the node's package wants."""
    form = assigned.footprint.channel
    vm = peers.peer(assigned.vm) if form == "nic" else None
    port = str(vm.assigned.ports[0]) if vm is not None and vm.assigned.ports else ""
    return Channel(form, port, _allowed(assigned))
