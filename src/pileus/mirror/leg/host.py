"""The host half of a leg: its programs on the host's mirror."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror.base import DeliverySpec, LegFact, LegSpec, Mirror, RelaySpec, SourceSpec
from pileus.drivers.host.notes import Notes
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.mirror.leg.types import LOST, LegAssigned, LegObserved
from pileus.network.port.types import PortObserved
from pileus.node.mirror.rules import Rule

PORT_AWAITED_S = 0.2
"""How soon a leg looks again whether its port is plugged."""


class Step(Struct, frozen=True, kw_only=True):
    """Put or remove."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """The leg as found on the host, if it is in force. ``is_left``: something of it is there, if only a note.

    ``is_lost``: it was in force, and the host was started anew since.
    """

    leg: LegFact | None
    is_left: bool = False
    is_lost: bool = False


def spec_of(leg: Resource) -> LegSpec:
    """Return what the host's mirror shall have."""
    assigned: LegAssigned = leg.assigned
    key = int(assigned.key, 16)
    match assigned.role:
        case "source":
            return SourceSpec(
                id=leg.id,
                port=assigned.port,
                key=key,
                target=assigned.target or "",
                session=assigned.session,
                number=assigned.number,
                direction=assigned.direction,
                rules=assigned.rules,
                snap_bytes=assigned.snap_bytes,
                sample_one_in=assigned.sample_one_in,
                sample_by=assigned.sample_by,
                rate_limit_kbps=assigned.rate_limit_kbps,
            )
        case "relay":
            return RelaySpec(
                id=leg.id,
                key=key,
                source=assigned.source,
                tunnel_port=assigned.port,
                sniffer_port=assigned.sniffer_port,
                target=assigned.target,
            )
        case "delivery":
            return DeliverySpec(id=leg.id, key=key, source=assigned.source, port=assigned.port)


def isolated(wanted: LegSpec) -> LegSpec | None:
    """Return what the mirror has of a leg whose port is isolated: a source that takes nothing; None: no delivery.

    A source stays, because its packets go on to be numbered from where they were.
    """
    return replace(wanted, rules=(Rule(action="reject"),)) if isinstance(wanted, SourceSpec) else None


def plan(deleting: bool, wanted: LegSpec | None, seen: Seen, lacking: bool) -> Step | None:
    """Return the next step: put until spec and host agree, as soon as its ports are plugged; remove when deleting.

    ``wanted`` None: it may not be in force now.

    A source that was lost is not made anew: it would number its packets from 0, which one key must not see twice.
    """
    if deleting:
        return Step(verb="remove") if seen.is_left else None
    if seen.is_lost:
        return None
    if lacking:
        return Step(verb="wait", after_s=PORT_AWAITED_S)
    if wanted is None:
        return Step(verb="remove") if seen.is_left else None
    return None if seen.leg is not None and seen.leg.spec == wanted else Step(verb="put")


class LegHalf(Half[Seen, Step]):
    """Drives the mirror of the host."""

    kind = "mirror.leg"

    def __init__(self, mirror: Mirror, notes: Notes) -> None:
        """``notes``: of sources that were made, kept over restarts of the host."""
        self._mirror = mirror
        self._notes = notes
        self._legs = Snapshot(self._look)
        self._last: dict[str, dict[str, int]] = {}
        """Counts of legs that were removed, until their rows are."""

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the leg on the host."""
        in_force, known = await self._legs.get()
        is_known, is_noted = resource.id in known, self._notes.get(resource.id) is not None
        if is_known and not is_noted and resource.assigned.role == "source":
            self._notes.put(resource.id, b"{}")
        return Seen(in_force.get(resource.id), is_known or is_noted, is_noted and not is_known)

    async def _look(self) -> tuple[dict[str, LegFact], Collection[str]]:
        return await self._mirror.observe(), await self._mirror.known()

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the leg."""
        return plan(resource.deleting, _wanted(resource, peers), fact, _lacks_port(resource.assigned, peers))

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the mirror. Raises: DriverError."""
        try:
            if step.verb == "remove":
                await self._remove(resource.id)
                return
            problem = self._mirror.problem()
            if problem:
                raise DriverError("MirrorUnsupported", f"this host cannot mirror: {problem}")
            wanted = _wanted(resource, peers)
            if wanted is not None:
                await self._mirror.put(wanted)
        finally:
            self._legs.changed()

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the leg's observed section; what changes all the time, its counts, goes another way."""
        previous: LegObserved | None = resource.observed
        if fact is None:
            return replace(previous or LegObserved(state="absent"), problem=problem)
        if fact.is_lost and not resource.deleting:
            message = "its host was started anew and has it no more; another one takes its place"
            return LegObserved(state="absent", problem=Problem(reason=LOST, message=message))
        leg = fact.leg
        if leg is None:
            return LegObserved(state="absent", counts=self._last.get(resource.id, {}), problem=problem)
        current = leg.spec == spec_of(resource)
        return LegObserved(state="in-force", assigned=resource.assigned if current else None, problem=problem)

    async def inventory(self) -> Collection[str]:
        """Return every leg on the host, those whose port has gone among them."""
        known = {*(await self._mirror.known()), *self._notes.ids()}
        self._last = {id: counts for id, counts in self._last.items() if id in known or len(self._last) < LAST_MAX}
        return known

    async def remove(self, id: str) -> None:
        """Remove a leg that no resource stands for."""
        await self._mirror.remove(id)
        self._notes.remove(id)
        self._legs.changed()

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return the counts of every leg."""
        return {id: asdict(fact.counts) for id, fact in (await self._mirror.observe()).items()}

    async def _remove(self, id: str) -> None:
        fact = (await self._mirror.observe()).get(id)
        await self._mirror.remove(id)
        self._notes.remove(id)
        if fact is not None:
            self._last[id] = asdict(fact.counts)


LAST_MAX = 1000


def _wanted(leg: Resource, peers: Peers) -> LegSpec | None:
    """Return what the mirror shall have now; None: nothing."""
    port = peers.peer(leg.assigned.port)
    observed: PortObserved | None = port.observed if port is not None else None
    is_isolated = observed is not None and observed.isolated == "yes"
    return isolated(spec_of(leg)) if is_isolated else spec_of(leg)


def _lacks_port(assigned: LegAssigned, peers: Peers) -> bool:
    """Tell whether a port of the leg is not plugged yet."""
    for id in filter(None, (assigned.port, assigned.sniffer_port)):
        port = peers.peer(id)
        observed: PortObserved | None = port.observed if port is not None else None
        if observed is None or observed.state != "plugged":
            return True
    return False
