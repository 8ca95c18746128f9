"""What must be in the kernel so that legs are in force: entries of maps, programs on devices, queues. Pure: makes nothing.

The same plan tells what to make and whether what is there is right.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from pileus.drivers.host.mirror import bus, gate, relay, select
from pileus.drivers.host.mirror.base import DeliverySpec, LegSpec, RelaySpec, SourceSpec
from pileus.drivers.host.mirror.layout import (
    FORMAT,
    Maps,
    arrival_value,
    outgoing_value,
    subheader,
)
from pileus.drivers.host.ovs.flows import tap_name
from pileus.node.ebpf import kernel
from pileus.node.mirror.rules import SNAP_BYTES_MIN, Direction
from pileus.node.mirror.wire import FIRST_LEG, OVERHEAD_BYTES, SECOND_LEG

COPIES, BUS = "pileus-copies", "pileus-bus"
"""The two ends of the pair of devices that copies go through."""

ETHERNET_BYTES = 14
FRAME_BYTES_MAX = 65_535
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

NAMES_ONLY = Maps(counts=1, sequences=2, rates=3, outgoing=4, labels=5, arrivals=6, ways=7, refusals=8)
"""In place of the maps of a host, to tell one program from another."""

Entry = tuple[str, bytes]
"""Name of a map, and key."""


class Leg(Struct, frozen=True, kw_only=True):
    """A leg as this host keeps it. ``ticket``: what copies of a source carry between its two programs.

    ``turn``: of the sources of one session at a port the one with the highest copies.
    """

    slot: int
    ticket: int
    turn: int = 0
    source: SourceSpec | None = None
    relay: RelaySpec | None = None
    delivery: DeliverySpec | None = None

    @classmethod
    def of(cls, spec: LegSpec, slot: int, ticket: int, turn: int = 0) -> Leg:
        """Return the leg of a spec."""
        if isinstance(spec, SourceSpec):
            return cls(slot=slot, ticket=ticket, turn=turn, source=spec)
        if isinstance(spec, RelaySpec):
            return cls(slot=slot, ticket=ticket, relay=spec)
        return cls(slot=slot, ticket=ticket, delivery=spec)

    @property
    def spec(self) -> LegSpec:
        """Return the spec, of whichever kind."""
        for spec in (self.source, self.relay, self.delivery):
            if spec is not None:
                return spec
        raise ValueError("a leg without a spec")


class Devices(Struct, frozen=True, kw_only=True):
    """The network devices of the switch's namespace by name, and what is known of the tunnel's.

    ``own``: this host's address on it; "": it has no tunnel.
    """

    numbers: Mapping[str, int]
    tunnel: str = ""
    underlay: str = ""
    own: str = ""
    tunnel_mtu: int = 0

    def number(self, name: str) -> int:
        """Return a device's number; 0: it is not there."""
        return self.numbers.get(name, 0)

    @property
    def wiring(self) -> bus.Wiring:
        """Return what the bus knows."""
        tunnel, underlay = (self.number(name) if self.own else 0 for name in (self.tunnel, self.underlay))
        return bus.Wiring(copies=self.number(COPIES), tunnel=tunnel, underlay=underlay, own=self.own)

    @property
    def has_tunnel(self) -> bool:
        """Return whether other hosts can be reached."""
        return bool(self.wiring.tunnel and self.wiring.underlay)


class Attachment(Struct, frozen=True, kw_only=True):
    """A program on a device. ``digest`` tells it from others; ``flags``: of XDP."""

    device: int
    kind: int
    attach: int
    digest: str
    code: Callable[[Maps], bytes]
    flags: int = 0


class Wanted(Struct, kw_only=True):
    """Everything that must be there; ``needs``: what each leg that can be in force needs of it."""

    entries: dict[Entry, bytes] = field(default_factory=dict)
    links: dict[str, Attachment] = field(default_factory=dict)
    queues: dict[str, int] = field(default_factory=dict)
    """Taps (and their numbers) that must say what they cannot take."""
    needs: dict[str, tuple[list[Entry], list[str]]] = field(default_factory=dict)


def plan(legs: Sequence[Leg], devices: Devices) -> Wanted:
    """Return what must be there; a leg whose tap is missing, or that needs a tunnel which is not there, needs nothing."""
    wanted = Wanted()
    if not devices.number(COPIES):
        return wanted
    shared = _plan_shared(wanted, devices)
    able = [leg for leg in legs if can_be(leg.spec, devices)]
    sources = _newest(able)
    for leg in able:
        entries, links = _plan_leg(wanted, leg, devices)
        if leg.source is not None and leg not in sources.get(tap_name(leg.source.port), ()):
            links = []  # another has taken its place; the copies that are on their way need its entry
        wanted.needs[leg.spec.id] = (entries, [*shared, *links])
    for tap, those in sources.items():
        _plan_port(wanted, tap, those, devices)
    return wanted


def _newest(legs: Sequence[Leg]) -> dict[str, list[Leg]]:
    """Return the sources that copy, by tap: of each session the newest."""
    newest: dict[tuple[str, str], Leg] = {}
    for leg in sorted(legs, key=lambda leg: leg.turn):
        if leg.source is not None:
            newest[leg.source.port, leg.source.session or leg.source.id] = leg
    taps: dict[str, list[Leg]] = {}
    for (port, _), leg in newest.items():
        taps.setdefault(tap_name(port), []).append(leg)
    return taps


def others(spec: LegSpec) -> tuple[str, ...]:
    """Return the tunnel addresses of other hosts that a leg needs."""
    if isinstance(spec, SourceSpec):
        return (spec.target,) if spec.target else ()
    ends = (spec.source, spec.target) if isinstance(spec, RelaySpec) else (spec.source,)
    return tuple(end for end in ends if end)


def taps(spec: LegSpec) -> tuple[str, ...]:
    """Return the taps that a leg needs."""
    if isinstance(spec, RelaySpec):
        return (tap_name(spec.tunnel_port), tap_name(spec.sniffer_port))
    return (tap_name(spec.port),)


def can_be(spec: LegSpec, devices: Devices) -> bool:
    """Return whether all devices that the leg needs are there."""
    return all(devices.number(tap) for tap in taps(spec)) and (devices.has_tunnel or not others(spec))


def longest(spec: SourceSpec | RelaySpec, devices: Devices) -> int:
    """Return how many bytes of a frame go out: its snap length, or what the tunnel's MTU leaves."""
    snap = max(spec.snap_bytes, SNAP_BYTES_MIN) if isinstance(spec, SourceSpec) and spec.snap_bytes else FRAME_BYTES_MAX
    return min(snap, devices.tunnel_mtu + ETHERNET_BYTES - OVERHEAD_BYTES) if spec.target else snap


def _plan_shared(wanted: Wanted, devices: Devices) -> list[str]:
    """The bus, and what is on the tunnel's device; return their names."""
    wiring = devices.wiring
    wanted.links["bus"] = _attachment(
        devices.number(BUS), kernel.SCHED_CLS, kernel.ATTACH_TCX_INGRESS, functools.partial(bus.bus, wiring)
    )
    wanted.links["shortcut"] = _attachment(
        devices.number(COPIES), kernel.SCHED_CLS, kernel.ATTACH_TCX_EGRESS, functools.partial(bus.shortcut, wiring)
    )
    if devices.has_tunnel:
        wanted.links["gate"] = _attachment(
            wiring.tunnel, kernel.XDP, kernel.ATTACH_XDP, functools.partial(_gate, wiring.own, wiring.copies)
        )
        wanted.links["learn"] = _attachment(
            wiring.tunnel, kernel.SCHED_CLS, kernel.ATTACH_TCX_EGRESS, functools.partial(gate.learn, wiring.own)
        )
    return list(wanted.links)


def _plan_leg(wanted: Wanted, leg: Leg, devices: Devices) -> tuple[list[Entry], list[str]]:
    if leg.source is not None:
        return _plan_source(wanted, leg, leg.source, devices)
    if leg.relay is not None:
        return _plan_relay(wanted, leg, leg.relay, devices)
    spec = leg.spec
    assert isinstance(spec, DeliverySpec)
    tap = tap_name(spec.port)
    entry = ("arrivals", subheader(spec.key, SECOND_LEG))
    wanted.entries[entry] = arrival_value(devices.number(tap), spec.source, leg.slot, SECOND_LEG)
    wanted.queues[tap] = devices.number(tap)
    return [entry], []


def _plan_source(wanted: Wanted, leg: Leg, spec: SourceSpec, devices: Devices) -> tuple[list[Entry], list[str]]:
    entry = ("outgoing", leg.ticket.to_bytes(4, "little"))
    ends = (devices.own, spec.target) if spec.target else ("", "")
    wanted.entries[entry] = outgoing_value(spec.key, ends, leg.slot, longest(spec, devices), leg=FIRST_LEG)
    tap = tap_name(spec.port)
    return [entry], [_program_name(tap, way, leg) for way in DIRECTIONS if spec.direction in ("both", way)]


def _program_name(tap: str, way: Direction, leg: Leg) -> str:
    """Return the name of the program that asks the session: numbered ones share one, in which the first takes it all.

    A source that takes the place of another of its session has that one's name: the program is changed in one step.
    """
    assert leg.source is not None
    return f"{tap}-{way}" if leg.source.number else f"{tap}-{way}-{leg.source.session or leg.slot}"


def _plan_relay(wanted: Wanted, leg: Leg, spec: RelaySpec, devices: Devices) -> tuple[list[Entry], list[str]]:
    into, out = tap_name(spec.tunnel_port), tap_name(spec.sniffer_port)
    entries: list[Entry] = [("arrivals", subheader(spec.key, FIRST_LEG))]
    wanted.entries[entries[0]] = arrival_value(devices.number(into), spec.source, leg.slot, FIRST_LEG)
    wanted.queues[into] = devices.number(into)
    link = f"{out}-relay"
    wanted.links[link] = _attachment(
        devices.number(out), kernel.XDP, kernel.ATTACH_XDP, functools.partial(_relay, devices.wiring.copies)
    )
    if spec.target is not None:
        ends = (devices.own, spec.target) if spec.target else ("", "")
        entries.append(("labels", spec.key.to_bytes(8, "big")))
        wanted.entries[entries[1]] = outgoing_value(
            spec.key, ends, leg.slot, longest(spec, devices), leg=SECOND_LEG, device=devices.number(out)
        )
    return entries, [link]


def _plan_port(wanted: Wanted, tap: str, legs: list[Leg], devices: Devices) -> None:
    """Programs for each direction in which somebody looks: one of all numbered sessions, one of each other."""
    legs.sort(key=lambda leg: (leg.source.number if leg.source else 0, leg.spec.id))
    for way in DIRECTIONS:
        programs: dict[str, list[select.Session]] = {}
        for leg in legs:
            if leg.source and leg.source.direction in ("both", way):
                programs.setdefault(_program_name(tap, way, leg), []).append(_session(leg, devices))
        for name, sessions in programs.items():
            # What the VM sends comes in from its tap.
            attach = kernel.ATTACH_TCX_INGRESS if way == "egress" else kernel.ATTACH_TCX_EGRESS
            code = functools.partial(select.select, tuple(sessions), way, devices.wiring.copies)
            wanted.links[name] = _attachment(devices.number(tap), kernel.SCHED_CLS, attach, code)


def _session(leg: Leg, devices: Devices) -> select.Session:
    spec = leg.source
    assert spec is not None
    return select.Session(
        slot=leg.slot,
        ticket=leg.ticket,
        rules=spec.rules,
        longest=longest(spec, devices),
        sample_one_in=spec.sample_one_in,
        sample_by=spec.sample_by,
        rate_limit_kbps=spec.rate_limit_kbps,
    )


def _attachment(device: int, kind: int, attach: int, code: Callable[[Maps], bytes]) -> Attachment:
    assert isinstance(code, functools.partial)
    flags = kernel.XDP_GENERIC if kind == kernel.XDP else 0
    digest = _digest(code.func, code.args)
    return Attachment(device=device, kind=kind, attach=attach, digest=digest, code=code, flags=flags)


@functools.lru_cache(maxsize=1024)
def _digest(make: Callable[..., bytes], arguments: tuple[object, ...]) -> str:
    """Return what tells a program from others: those of another version of this code too."""
    return hashlib.sha256(FORMAT.encode() + make(*arguments, NAMES_ONLY)).hexdigest()[:32]


def _gate(own: str, copies: int, _: Maps) -> bytes:
    return gate.gate(own, copies)


def _relay(copies: int, maps: Maps) -> bytes:
    return relay.relay(copies, maps)
