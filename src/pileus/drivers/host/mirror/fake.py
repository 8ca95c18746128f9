"""A mirror that exists in memory only: frames are handed to it, and land in lists. The same rules, header and counts.

What outlives an agent lies in ``FakeMirrorWorld``; a new ``FakeMirror`` on the same world is a restarted agent.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror.base import (
    DeliveryCounts,
    DeliverySpec,
    LegCounts,
    LegFact,
    LegSpec,
    RelayCounts,
    RelaySpec,
    SourceCounts,
    SourceSpec,
    refuse_source,
)
from pileus.node.mirror import wire
from pileus.node.mirror.rules import SNAP_BYTES_MIN, Direction, decide, samples_flow

Call = Literal["open", "observe", "put", "remove", "tear_down"]

TUNNEL_FRAME_MAX = 1600 + 14
"""With its Ethernet header: what a lab's tunnel carries."""

BURST_S = 0.1


class FakeTunnel:
    """Carries frames between the worlds that were made with it, by the address of each."""

    def __init__(self) -> None:
        self.hosts: dict[str, FakeMirrorWorld] = {}
        self.lose: Callable[[bytes], bool] = lambda _: False
        """Set by tests: which frames get lost on the way."""


class Kept(Struct):
    """A leg, what it has counted, and its next sequence number. ``ahead_s``: theoretical arrival time of its rate cap.

    ``is_cut``: one of its ports has gone since it was put; it is not in force before it is put again.
    """

    spec: LegSpec
    counted: Counter[str]
    sequence: int = 0
    ahead_s: float = 0.0
    is_cut: bool = False


class FakeMirrorWorld:
    """What is on one simulated host. ``address``: on the tunnel; ``has_port``: says whether a port is on its switch now."""

    def __init__(self, tunnel: FakeTunnel, address: str, has_port: Callable[[str], bool]) -> None:
        self.tunnel = tunnel
        self.address = address
        self.has_port = has_port
        self.legs: dict[str, Kept] = {}
        self.arrived: defaultdict[str, list[wire.Arrived]] = defaultdict(list)
        """What came for decapsulators, by the port of their first NIC; they give it back at once."""
        self.delivered: defaultdict[str, list[bytes]] = defaultdict(list)
        """What came for sniffers, by port."""
        self.full: set[str] = set()
        """Ports that can take nothing, set by tests."""
        self.takes: Callable[[str], bool] = lambda _: True
        """Whether somebody at the port takes what comes; set by simulated hosts."""
        self.refused = 0
        self.problem = ""
        self.calls: Counter[Call] = Counter()
        self.errors: dict[Call, DriverError] = {}
        """What the next call of each kind raises, set by tests."""
        self.call_s = 0.0
        """How long each call takes before it does anything, set by tests: packets pass meanwhile."""
        self.random = random.Random(0)
        if address:
            tunnel.hosts[address] = self

    def pass_frame(self, port: str, frame: bytes, direction: Direction) -> None:
        """Let a frame pass a port; a copy is where it belongs when this returns."""
        newest = {_whose(kept.spec): kept for kept in self.legs.values() if isinstance(kept.spec, SourceSpec)}
        mine = [kept for kept in newest.values() if not kept.is_cut and _looks(kept.spec, port, direction)]
        mine.sort(key=lambda kept: (getattr(kept.spec, "number", 0), kept.spec.id))
        for kept in mine:
            kept.counted["seen"] += 1
        taken = False
        for kept in mine:
            assert isinstance(kept.spec, SourceSpec)
            is_numbered = kept.spec.number > 0
            if not (is_numbered and taken) and decide(kept.spec.rules, frame, direction):
                self._copy(kept, kept.spec, frame, direction)
                taken |= is_numbered

    def arrive(self, packet: bytes) -> None:
        """Take a frame in its tunnel header, from this host or another one."""
        for leg, kind in ((wire.FIRST_LEG, RelaySpec), (wire.SECOND_LEG, DeliverySpec)):
            got = wire.parse(packet, leg=leg)
            if isinstance(got, wire.Refused):
                continue
            source = "" if got.header.source == "0.0.0.0" else got.header.source  # noqa: S104
            for kept in self._with_key(got.header.key, kind):
                if kept.spec.source == source:  # type: ignore[union-attr]  # never a SourceSpec
                    self._take(kept, got)
                    return
        self.refused += 1

    def _copy(self, kept: Kept, spec: SourceSpec, frame: bytes, direction: Direction) -> None:
        kept.counted["matched"] += 1
        if spec.sample_one_in > 1:
            is_flow = spec.sample_by == "flow"
            if not (
                samples_flow(frame, spec.sample_one_in) if is_flow else self.random.random() * spec.sample_one_in < 1
            ):
                return
        kept.counted["sampled"] += 1
        cut = frame[: max(spec.snap_bytes, SNAP_BYTES_MIN)] if spec.snap_bytes else frame
        if spec.target:
            cut = cut[: TUNNEL_FRAME_MAX - wire.OVERHEAD_BYTES]
        if spec.rate_limit_kbps and not _conforms(kept, len(cut), spec.rate_limit_kbps):
            kept.counted["limited"] += 1
            return
        kept.counted.update(sent=1, sent_bytes=len(cut), truncated=int(cut != frame))
        header = wire.Header(
            source=self.address if spec.target else "0.0.0.0",  # noqa: S104
            sequence=self._number(kept), session=spec.key & 0x3FF, truncated=cut != frame, direction=direction,
            leg=wire.FIRST_LEG, key=spec.key,
        )  # fmt: skip
        self._send(wire.encapsulate(header, cut), spec.target)

    def _take(self, kept: Kept, got: wire.Arrived) -> None:
        spec = kept.spec
        kept.counted["arrived"] += 1
        port = spec.tunnel_port if isinstance(spec, RelaySpec) else spec.port
        if port in self.full or not self.has_port(port) or not self.takes(port):
            kept.counted["dropped"] += 1
            return
        if isinstance(spec, DeliverySpec):
            kept.counted.update(delivered=1, delivered_bytes=len(got.frame))
            self.delivered[port].append(got.frame)
            return
        assert isinstance(spec, RelaySpec)
        self.arrived[port].append(got)
        if spec.target is not None:
            kept.counted["relayed"] += 1
            source = self.address if spec.target else "0.0.0.0"  # noqa: S104
            header = wire.own_header(spec.key, source, self._number(kept), leg=wire.SECOND_LEG)
            self._send(wire.encapsulate(header, got.frame), spec.target)

    def _send(self, packet: bytes, target: str) -> None:
        if not target:
            self.arrive(packet)
        elif target in self.tunnel.hosts and not self.tunnel.lose(packet):
            self.tunnel.hosts[target].arrive(packet)

    @staticmethod
    def _number(kept: Kept) -> int:
        kept.sequence += 1
        return kept.sequence - 1

    def _with_key(self, key: int, kind: type[LegSpec]) -> Iterator[Kept]:
        for kept in list(self.legs.values()):
            if isinstance(kept.spec, kind) and kept.spec.key == key and not kept.is_cut:
                yield kept


class FakeMirror:
    """One agent's driver of the mirror in ``world``."""

    def __init__(self, world: FakeMirrorWorld) -> None:
        self._world = world

    async def open(self) -> None:
        """Adopt what is in force."""
        await self._begin("open")

    async def close(self) -> None:
        """Let go; copies go on."""

    def problem(self) -> str:
        """Return what the world says."""
        return self._world.problem

    async def observe(self) -> dict[str, LegFact]:
        """Return every leg in force; one whose port has gone never is again by itself."""
        await self._begin("observe")
        world = self._world
        for kept in world.legs.values():
            kept.is_cut = kept.is_cut or not all(map(world.has_port, ports(kept.spec)))
        found = world.legs.items()
        return {id: LegFact(spec=kept.spec, counts=_counts(kept)) for id, kept in found if not kept.is_cut}

    async def known(self) -> Collection[str]:
        """Return every leg that was put and not removed."""
        return list(self._world.legs)

    async def put(self, spec: LegSpec) -> None:
        """Make the leg be as ``spec`` says. Raises: DriverError, see ``Mirror.put``."""
        await self._begin("put")
        world = self._world
        if world.problem:
            raise DriverError("MirrorUnsupported", f"this host cannot mirror: {world.problem}")
        self._refuse(spec)
        before = world.legs.get(spec.id)
        if before is not None and before.spec.key == spec.key and type(before.spec) is type(spec):
            before.spec = spec
            before.is_cut = False
        else:
            world.legs.pop(spec.id, None)  # the newest is the last
            world.legs[spec.id] = Kept(spec, Counter())

    async def remove(self, id: str) -> None:
        """Take the leg out of force; None: nothing."""
        await self._begin("remove")
        self._world.legs.pop(id, None)

    async def tear_down(self) -> None:
        """Remove everything."""
        await self._begin("tear_down")
        self._world.legs.clear()

    def _refuse(self, spec: LegSpec) -> None:
        world = self._world
        for port in ports(spec):
            if not world.has_port(port):
                raise DriverError("NoPort", f"leg {spec.id} of a mirror session: port {port} has no tap")
        ends = [getattr(spec, "source", ""), getattr(spec, "target", "")]
        if any(ends) and not world.address:
            raise DriverError(
                "NoTunnel", f"leg {spec.id} of a mirror session needs another host, and the tunnel is missing"
            )
        if isinstance(spec, SourceSpec):
            refuse_source(spec, [kept.spec for kept in world.legs.values()])

    async def _begin(self, call: Call) -> None:
        self._world.calls[call] += 1
        await asyncio.sleep(self._world.call_s)
        if call in self._world.errors:
            raise self._world.errors.pop(call)


def ports(spec: LegSpec) -> tuple[str, ...]:
    """Return the ports that a leg needs."""
    return (spec.tunnel_port, spec.sniffer_port) if isinstance(spec, RelaySpec) else (spec.port,)


def _whose(spec: SourceSpec) -> tuple[str, str]:
    """Return whose packets a source copies: of the sources of one session at a port only the newest does."""
    return spec.port, spec.session or spec.id


def _looks(spec: LegSpec, port: str, direction: Direction) -> bool:
    return isinstance(spec, SourceSpec) and spec.port == port and spec.direction in ("both", direction)


def _conforms(kept: Kept, length: int, rate_kbps: int) -> bool:
    now_s = asyncio.get_running_loop().time()
    ahead_s = max(kept.ahead_s, now_s)
    if ahead_s - now_s > BURST_S:
        return False
    kept.ahead_s = ahead_s + length * 8 / (rate_kbps * 1000)
    return True


def _counts(kept: Kept) -> LegCounts:
    kinds: dict[type[LegSpec], type[LegCounts]] = {
        SourceSpec: SourceCounts, RelaySpec: RelayCounts, DeliverySpec: DeliveryCounts,
    }  # fmt: skip
    kind = kinds[type(kept.spec)]
    names = {each.name for each in msgspec.structs.fields(kind)}
    return kind(**{name: number for name, number in kept.counted.items() if name in names})
