"""Mirrors without a kernel, for tests and simulated hosts: the same specs, rules and counts, over frames that tests push in.

What outlives the agent lives in a ``FakeMirrorWorld``; worlds that share a ``FakeTunnel`` reach each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror.base import (
    SESSIONS_PER_PORT_MAX,
    DeliveryCounts,
    DeliverySpec,
    LegCounts,
    LegFact,
    LegSpec,
    RelayCounts,
    RelaySpec,
    SourceCounts,
    SourceSpec,
)
from pileus.node.mirror.rules import BadRules, check, decide, samples_flow


def _always(port: str) -> bool:
    return True


@dataclass
class Received:
    """What a simulated decapsulator has of a key."""

    received: int = 0
    received_bytes: int = 0
    highest: int = -1
    truncated: int = 0


@dataclass
class FakeTunnel:
    """Joins worlds by their tunnel addresses; ``lossy`` tells which frames never arrive, by sequence number."""

    worlds: dict[str, FakeMirrorWorld] = field(default_factory=dict)
    lossy: Callable[[int], bool] = lambda sequence: False


@dataclass
class FakeMirrorWorld:
    """The legs of one host. ``is_plugged``: whether a port has a tap. ``takes``: whether a tap takes a frame now."""

    tunnel_address: str = ""
    tunnel: FakeTunnel = field(default_factory=FakeTunnel)
    is_plugged: Callable[[str], bool] = _always
    takes: Callable[[str], bool] = _always
    trouble: str = ""
    """Why this host cannot mirror."""
    legs: dict[str, LegFact] = field(default_factory=dict)
    delivered: dict[str, list[bytes]] = field(default_factory=dict)
    """Frames that came out, by port."""
    kept: dict[int, list[bytes]] = field(default_factory=dict)
    """Frames that stayed in a decapsulator, by key."""
    received: dict[int, Received] = field(default_factory=dict)

    def pass_frame(self, port: str, frame: bytes, direction: Literal["ingress", "egress"]) -> None:
        """Let a frame pass a port: the first session that wants it gets a copy."""
        sources = [fact for fact in self.legs.values() if isinstance(fact.spec, SourceSpec) and fact.spec.port == port]
        for fact in sorted(sources, key=_order):
            if self._copies(fact, frame, direction):
                return

    def _copies(self, fact: LegFact, frame: bytes, direction: Literal["ingress", "egress"]) -> bool:
        """Return whether the session takes the frame; then it has been counted, and sent unless it was not drawn."""
        spec, counts = fact.spec, fact.counts
        assert isinstance(spec, SourceSpec)  # sources only are asked
        assert isinstance(counts, SourceCounts)
        if spec.direction not in (direction, "both"):
            return False
        counts = replace(counts, seen=counts.seen + 1)
        takes = decide(spec.rules, frame, direction)
        if takes:
            counts = replace(counts, matched=counts.matched + 1)
            if _is_drawn(spec, frame, counts.matched):
                counts = self._send(spec, replace(counts, sampled=counts.sampled + 1), frame)
        self.legs[spec.id] = replace(fact, counts=counts)
        return takes

    def _send(self, spec: SourceSpec, counts: SourceCounts, frame: bytes) -> SourceCounts:
        copy = frame[: spec.snap_bytes] if spec.snap_bytes else frame
        is_cut = len(copy) < len(frame)
        far = self.tunnel.worlds.get(spec.target) if spec.target else self
        if far is not None and not (spec.target and self.tunnel.lossy(counts.sent)):
            far.arrive(spec.key, self.tunnel_address if spec.target else "", counts.sent, copy)
        return replace(
            counts, sent=counts.sent + 1, sent_bytes=counts.sent_bytes + len(copy), truncated=counts.truncated + is_cut
        )

    def arrive(self, key: int, source: str, sequence: int, frame: bytes) -> None:
        """Take a copy from a tunnel: to the decapsulator, and on to its sniffer."""
        for id, fact in self.legs.items():
            spec, counts = fact.spec, fact.counts
            if not isinstance(spec, RelaySpec) or (spec.key, spec.source) != (key, source):
                continue
            assert isinstance(counts, RelayCounts)
            at = self.received.setdefault(key, Received())
            at.received += 1
            at.received_bytes += len(frame)
            at.highest = max(at.highest, sequence)
            relayed = int(spec.target is not None)
            self.legs[id] = replace(
                fact, counts=replace(counts, arrived=counts.arrived + 1, relayed=counts.relayed + relayed)
            )
            if spec.target is None:
                self.kept.setdefault(key, []).append(frame)
                return
            far = self.tunnel.worlds.get(spec.target) if spec.target else self
            if far is not None:
                far.deliver(key, self.tunnel_address if spec.target else "", frame)
            return

    def status_of(self, document: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return what a decapsulator here says of itself; see pileus.node.mirror."""
        if "links" not in document:
            return {}
        none = Received()
        said = {}
        for id, entry in document.get("sessions", {}).items():
            at = self.received.get(int(entry["key"], 16), none)
            first = 0 if at.received else -1
            forwarded = at.received if entry["to"] == "sniffers" else 0
            said[id] = [entry["key"], at.received, at.received_bytes, first, at.highest, at.truncated, forwarded, 0]
        return {"role": "decapsulator", "path": "xdp", "refused": {}, "sessions": said}

    def deliver(self, key: int, source: str, frame: bytes) -> None:
        """Give a copy to the sniffer's port, if it takes it."""
        for id, fact in self.legs.items():
            spec, counts = fact.spec, fact.counts
            if not isinstance(spec, DeliverySpec) or (spec.key, spec.source) != (key, source):
                continue
            assert isinstance(counts, DeliveryCounts)
            counts = replace(counts, arrived=counts.arrived + 1)
            if self.takes(spec.port):
                self.delivered.setdefault(spec.port, []).append(frame)
                size = counts.delivered_bytes + len(frame)
                counts = replace(counts, delivered=counts.delivered + 1, delivered_bytes=size)
            else:
                counts = replace(counts, dropped=counts.dropped + 1)
            self.legs[id] = replace(fact, counts=counts)


class FakeMirror:
    """The contract over a ``FakeMirrorWorld``."""

    def __init__(self, world: FakeMirrorWorld) -> None:
        self.world = world

    async def open(self) -> None:
        """There is nothing to adopt but the world."""

    async def close(self) -> None:
        """Let go."""

    def problem(self) -> str:
        """Return the world's trouble."""
        return self.world.trouble

    async def observe(self) -> dict[str, LegFact]:
        """Return every leg whose ports are plugged."""
        return {id: fact for id, fact in self.world.legs.items() if all(map(self.world.is_plugged, _ports(fact.spec)))}

    async def put(self, spec: LegSpec) -> None:
        """Make the leg so. Raises: DriverError."""
        self._check(spec)
        known = self.world.legs.get(spec.id)
        keeps = known is not None and type(known.spec) is type(spec) and known.spec.key == spec.key
        counts = known.counts if known is not None and keeps else _none(spec)
        self.world.legs[spec.id] = LegFact(spec=spec, counts=counts)

    async def remove(self, id: str) -> None:
        """Forget the leg."""
        self.world.legs.pop(id, None)

    async def tear_down(self) -> None:
        """Forget everything."""
        self.world.legs.clear()

    def _check(self, spec: LegSpec) -> None:
        world = self.world
        if world.trouble:
            raise DriverError("MirrorUnsupported", world.trouble)
        for port in _ports(spec):
            if not world.is_plugged(port):
                raise DriverError("NoPort", f"port {port} has no tap")
        if _is_far(spec) and not world.tunnel_address:
            raise DriverError("NoTunnel", "this host has no tunnel address")
        if isinstance(spec, SourceSpec):
            _check_rules(spec)
            others = [
                fact
                for id, fact in world.legs.items()
                if id != spec.id and isinstance(fact.spec, SourceSpec) and fact.spec.port == spec.port
            ]
            if len(others) >= SESSIONS_PER_PORT_MAX:
                raise DriverError("TooManySessions", f"port {spec.port} has {len(others)} sessions already")


def _check_rules(spec: SourceSpec) -> None:
    try:
        check(spec.rules)
    except BadRules as error:
        raise DriverError("BadRules", str(error)) from None


def _is_drawn(spec: SourceSpec, frame: bytes, matched: int) -> bool:
    """Tell whether sampling takes the frame; the fake counts where the kernel draws."""
    if spec.sample_by == "flow":
        return samples_flow(frame, spec.sample_one_in)
    return matched % spec.sample_one_in == 0


def _order(fact: LegFact) -> tuple[int, str]:
    assert isinstance(fact.spec, SourceSpec)  # sources only are ordered
    return fact.spec.number, fact.spec.id


def _ports(spec: LegSpec) -> tuple[str, ...]:
    return (spec.tunnel_port, spec.sniffer_port) if isinstance(spec, RelaySpec) else (spec.port,)


def _is_far(spec: LegSpec) -> bool:
    match spec:
        case SourceSpec():
            return bool(spec.target)
        case RelaySpec():
            return bool(spec.source or spec.target)
        case DeliverySpec():
            return bool(spec.source)


def _none(spec: LegSpec) -> LegCounts:
    match spec:
        case SourceSpec():
            return SourceCounts()
        case RelaySpec():
            return RelayCounts()
        case DeliverySpec():
            return DeliveryCounts()
