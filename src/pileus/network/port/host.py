"""The host half of a port: tap, VLAN tag and flows on the switch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from pileus.drivers.host.ovs.base import PortFact, PortSpec, Station, Switch
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.network.port.types import PortAssigned, PortDesired, PortObserved

JOINING_S = 0.1
"""How soon a port looks again whether its VLAN is joined."""


class Step(Struct, frozen=True, kw_only=True):
    """Plug or unplug."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """The port as found on the switch, if it is there."""

    port: PortFact | None


def spec_of(resource: Resource) -> PortSpec:
    """Return what the switch shall have."""
    assigned: PortAssigned = resource.assigned
    desired: PortDesired = resource.desired
    return PortSpec(
        id=resource.id,
        mac=assigned.mac,
        addresses=(assigned.address, *assigned.extra_addresses) if assigned.address else assigned.extra_addresses,
        vlan=assigned.vlan,
        rate_limit_kbps=desired.rate_limit_kbps,
        routes=desired.attachment == "gateway",
        stations=tuple(Station(mac=each.mac, addresses=each.addresses) for each in desired.stations),
        isolated=desired.isolated == "yes",
    )


def plan(deleting: bool, wanted: PortSpec, fact: PortFact | None) -> Step | None:
    """Return the next step: plug until spec and switch agree and nothing is blocked; unplug when deleting."""
    if deleting:
        return None if fact is None else Step(verb="unplug")
    if fact is None or fact.blocked:
        return Step(verb="plug")
    found = PortSpec(**{field: getattr(fact, field) for field in PortSpec.__struct_fields__})
    return None if found == wanted else Step(verb="plug")


def _is_joining(vlan: int, peers: Peers) -> bool:
    """Tell whether the host has still to try and join the VLAN to other hosts."""
    return any(each.observed is None for each in peers.peers("network.segment") if each.assigned.vlan == vlan)


class PortHalf(Half[Seen, Step]):
    """Drives the switch for all ports of the host."""

    kind = "network.port"

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._ports = Snapshot(switch.observe)

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the port on the switch."""
        return Seen((await self._ports.get()).get(resource.id))

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the port; a new one, and with it its VM, waits until its VLAN was joined."""
        if fact.port is None and not resource.deleting and _is_joining(resource.assigned.vlan, peers):
            return Step(verb="wait", after_s=JOINING_S)
        return plan(resource.deleting, spec_of(resource), fact.port)

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the switch."""
        try:
            if step.verb == "plug":
                await self._switch.plug(spec_of(resource))
            else:
                await self._switch.unplug(resource.id)
        finally:
            self._ports.changed()

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the port's observed section."""
        port = fact.port if fact else None
        if port is None or port.blocked:
            return PortObserved(state="absent", problem=problem)
        return PortObserved(state="plugged", tap=port.tap, isolated="yes" if port.isolated else "no", problem=problem)

    async def inventory(self) -> Collection[str]:
        """Return every port on the switch."""
        return (await self._switch.observe()).keys()

    async def remove(self, id: str) -> None:
        """Remove a port that no resource stands for."""
        await self._switch.unplug(id)
        self._ports.changed()

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return the traffic of every port."""
        return {id: asdict(counters) for id, counters in (await self._switch.counters()).items()}
