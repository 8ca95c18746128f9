"""The host half of a segment: the switch shares a VLAN with other hosts."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from pileus.drivers.host.ovs.base import SegmentSpec, Switch
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.network.segment.types import SegmentAssigned, SegmentObserved


class Step(Struct, frozen=True, kw_only=True):
    """Join or leave."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """The segment as found on the switch, if it is in force, and whether the switch was told to leave it.

    One that cannot be in force now, for want of a device, would be later.
    """

    segment: SegmentSpec | None
    left: bool = False


def spec_of(resource: Resource) -> SegmentSpec:
    """Return what the switch shall have."""
    assigned: SegmentAssigned = resource.assigned
    return SegmentSpec(vlan=assigned.vlan, vni=assigned.vni, trunk=assigned.trunk == "yes", peers=assigned.peers)


def plan(deleting: bool, wanted: SegmentSpec, fact: Seen) -> Step | None:
    """Return the next step: join until wish and switch agree; leave when deleting."""
    if deleting:
        return None if fact.left and fact.segment is None else Step(verb="leave")
    return None if fact.segment == wanted else Step(verb="join")


class SegmentHalf(Half[Seen, Step]):
    """Drives the switch for all VLANs that the host shares."""

    kind = "network.segment"

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._segments = Snapshot(switch.segments)
        self._ids: dict[int, str] = {}
        self._left: set[str] = set()

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the segment on the switch."""
        vlan = resource.assigned.vlan
        self._ids[vlan] = resource.id
        return Seen((await self._segments.get()).get(vlan), resource.id in self._left)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the segment."""
        return plan(resource.deleting, spec_of(resource), fact)

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the switch."""
        try:
            if step.verb == "join":
                await self._switch.join(spec_of(resource))
            else:
                await self._switch.leave(resource.assigned.vlan)
                self._left.add(resource.id)
        finally:
            self._segments.changed()

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the segment's observed section."""
        segment = fact.segment if fact else None
        if segment is None:
            return SegmentObserved(state="absent", problem=problem)
        return SegmentObserved(state="joined", peers=segment.peers, problem=problem)

    async def inventory(self) -> Collection[str]:
        """Return every segment on the switch; one that this agent was never told of, by its VLAN."""
        return [self._ids.get(vlan, f"vlan{vlan}") for vlan in await self._switch.segments()]

    async def remove(self, id: str) -> None:
        """Leave a segment that no resource stands for."""
        for vlan in [vlan for vlan, known in self._ids.items() if known == id]:
            await self._switch.leave(vlan)
        self._segments.changed()
