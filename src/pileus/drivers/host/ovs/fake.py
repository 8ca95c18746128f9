"""A switch that exists in memory only: same answers, no traffic. Light enough for thousands of hosts in one process.

What must outlive an agent lies in ``FakeSwitchWorld``; a new ``FakeSwitch`` on the same world is a restarted agent.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs.base import (
    PUBLIC_VLAN,
    FrameExchange,
    PortCounters,
    PortFact,
    PortSpec,
    SegmentSpec,
    Uplinks,
)
from pileus.drivers.host.ovs.exchange import Inbox, check_payload
from pileus.drivers.host.ovs.flows import check, refuse_taken_macs, tap_name
from pileus.drivers.host.ovs.segments import NO_UPLINKS, check_segment, check_uplinks, needed, refuse_taken_vni

Call = Literal[
    "open", "observe", "plug", "unplug", "segments", "join", "leave", "counters", "sent_bytes", "vlan_counts",
    "open_tap", "exchange", "remove",
]  # fmt: skip

LATENCIES_S: Mapping[Call, float] = {
    "open": 0.15, "observe": 0.01, "plug": 0.03, "unplug": 0.03, "segments": 0.01, "join": 0.03, "leave": 0.03,
    "exchange": 0.03, "remove": 0.1,
}  # fmt: skip
"""What the real switch was measured to take."""


class Fault(Struct, frozen=True, kw_only=True):
    """The ``k``-th ``call`` from the world's beginning (1 is the first) raises ``error``.

    ``after`` true: the work is done and only the answer is lost.
    """

    call: Call
    k: int
    error: DriverError = OvsdbError("injected failure")
    after: bool = False


class FakeExchange:
    """Host end of a control path."""

    def __init__(self, nic: FakeNic) -> None:
        self.inbox = Inbox()
        self._nic = nic

    async def send(self, payload: bytes) -> None:
        """Put a frame into the guest's NIC. Raises: DriverError (FrameTooLong)."""
        check_payload(payload)
        if not self.inbox.is_closed:
            self._nic.inbox.put(payload)

    async def receive(self) -> bytes:
        """Return the next payload that the guest sent; empty when the path is closed."""
        return await self.inbox.get()

    async def close(self) -> None:
        """Let go."""
        self.inbox.close()


class FakeNic:
    """Guest end of a control path, for tests and simulated guests."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self._exchange: FakeExchange | None = None

    def open(self) -> FakeExchange:
        """Return a new host end; it ends the one before."""
        self.cut()
        self._exchange = FakeExchange(self)
        return self._exchange

    def cut(self) -> None:
        """End the host end."""
        if self._exchange is not None:
            self._exchange.inbox.close()

    def send(self, payload: bytes) -> None:
        """Send a frame to whoever holds the host end."""
        if self._exchange is not None:
            self._exchange.inbox.put(payload)

    async def receive(self) -> bytes:
        """Return the next payload that the host put in."""
        return await self.inbox.get()


class FakeSwitchWorld:
    """What is on one simulated host: ports, segments, their traffic, and what goes wrong there."""

    def __init__(self, *, latencies_s: Mapping[Call, float] = LATENCIES_S, faults: tuple[Fault, ...] = ()) -> None:
        self.is_up = False
        self.ports: dict[str, PortFact] = {}
        self.segments: dict[int, SegmentSpec] = {}
        self.nics: defaultdict[str, FakeNic] = defaultdict(FakeNic)
        """The guests' ends of control paths, by port."""
        self.missing: set[str] = set()
        """Network devices of the uplinks that are not there."""
        self.traffic: dict[str, PortCounters] = {}
        """Set by tests; a port that is not here has had no traffic."""
        self.calls: Counter[Call] = Counter()
        self.latencies_s = latencies_s
        self.faults = list(faults)

    def crash(self) -> None:
        """Kill the switch: its ports stay, their flows are gone; segments are in force again when it starts."""
        self.is_up = False
        self.ports = {port: msgspec.structs.replace(fact, blocked=True) for port, fact in self.ports.items()}
        for nic in self.nics.values():
            nic.cut()


class FakeSwitch:
    """One agent's driver of the switch in ``world``."""

    def __init__(self, world: FakeSwitchWorld, uplinks: Uplinks = NO_UPLINKS) -> None:
        check_uplinks(uplinks)
        self._world = world
        self._uplinks = uplinks

    async def open(self) -> None:
        """Start the switch, or adopt the running one."""
        fault = await self._begin("open")
        self._world.is_up = True
        self._end(fault)

    async def close(self) -> None:
        """Let go of control paths."""
        for nic in self._world.nics.values():
            nic.cut()

    def namespace(self) -> str | None:
        """Return None: there is no namespace."""
        return None

    async def observe(self) -> dict[str, PortFact]:
        """Return every port."""
        fault = await self._begin("observe")
        self._end(fault)
        is_cut_off = self._uplinks.public in self._world.missing
        return {
            port: msgspec.structs.replace(fact, blocked=True) if is_cut_off and fact.vlan == PUBLIC_VLAN else fact
            for port, fact in self._world.ports.items()
        }

    async def plug(self, spec: PortSpec) -> PortFact:
        """Make the port be as ``spec`` says. Raises: DriverError (PortRefused, MacTaken)."""
        wanted = check(spec)
        fault = await self._begin("plug")
        world = self._world
        world.is_up = True
        refuse_taken_macs(wanted, world.ports.values())
        before = world.ports.get(wanted.id)
        if before is not None and before.mac != wanted.mac:
            world.nics[wanted.id].cut()
        fact = PortFact(tap=tap_name(wanted.id), **msgspec.structs.asdict(wanted))
        world.ports[wanted.id] = fact
        if wanted.vlan == PUBLIC_VLAN:
            self._require([self._uplinks.public], f"port {wanted.id}")
        self._end(fault)
        return fact

    async def unplug(self, port: str) -> None:
        """Remove the port and its counters."""
        fault = await self._begin("unplug")
        self._world.ports.pop(port, None)
        self._world.traffic.pop(port, None)
        if port in self._world.nics:
            self._world.nics.pop(port).cut()
        self._end(fault)

    async def segments(self) -> dict[int, SegmentSpec]:
        """Return every segment in force."""
        fault = await self._begin("segments")
        self._end(fault)
        world = self._world
        return {
            vlan: spec
            for vlan, spec in world.segments.items()
            if world.is_up and not world.missing.intersection(needed(spec, self._uplinks))
        }

    async def join(self, spec: SegmentSpec) -> None:
        """Make the segment be as ``spec`` says. Raises: DriverError (SegmentRefused, VniTaken, UplinkMissing)."""
        wanted = check_segment(spec)
        fault = await self._begin("join")
        self._world.is_up = True
        refuse_taken_vni(wanted, self._world.segments.values())
        self._world.segments[wanted.vlan] = wanted
        self._require(needed(wanted, self._uplinks), f"segment {wanted.vlan}")
        self._end(fault)

    async def leave(self, vlan: int) -> None:
        """Let the VLAN end at this host."""
        fault = await self._begin("leave")
        self._world.segments.pop(vlan, None)
        self._end(fault)

    async def counters(self) -> dict[str, PortCounters]:
        """Return the traffic that the world says there was."""
        fault = await self._begin("counters")
        self._end(fault)
        none = PortCounters(rx_bytes=0, rx_packets=0, tx_bytes=0, tx_packets=0)
        return {port: self._world.traffic.get(port, none) for port in self._world.ports}

    async def sent_bytes(self, ports: Collection[str]) -> dict[str, int]:
        """Return what the world says that guests sent."""
        fault = await self._begin("sent_bytes")
        self._end(fault)
        world = self._world
        return {
            port: world.traffic[port].tx_bytes if port in world.traffic else 0 for port in ports if port in world.ports
        }

    async def vlan_counts(self) -> dict[str, dict[int, int]]:
        """Return received packets under the port's own VLAN: no frame of another can exist here."""
        fault = await self._begin("vlan_counts")
        self._end(fault)
        traffic = self._world.traffic
        return {
            port: {fact.vlan: traffic[port].rx_packets if port in traffic else 0}
            for port, fact in self._world.ports.items()
        }

    async def open_tap(self, tap: str) -> int:
        """Raise DriverError (TapRefused): ports here have names of taps and no taps."""
        await self._begin("open_tap")
        raise DriverError("TapRefused", f"tap {tap} belongs to a simulated switch and cannot be opened")

    async def exchange(self, port: str) -> FrameExchange:
        """Open the control path of a port. Raises: DriverError (NoPort)."""
        fault = await self._begin("exchange")
        if port not in self._world.ports:
            raise DriverError("NoPort", f"port {port} is not on the switch")
        self._world.is_up = True
        exchange = self._world.nics[port].open()
        self._end(fault)
        return exchange

    async def remove(self) -> None:
        """Take everything down."""
        fault = await self._begin("remove")
        self._world.is_up = False
        self._world.ports.clear()
        self._world.traffic.clear()
        self._world.segments.clear()
        for nic in self._world.nics.values():
            nic.cut()
        self._end(fault)

    def _require(self, names: list[str], who: str) -> None:
        missing = [name for name in names if name in self._world.missing]
        if missing:
            raise DriverError("UplinkMissing", f"{who}: network device {' and '.join(missing)} is not there")

    async def _begin(self, call: Call) -> Fault | None:
        """Take the call's time; fail if this one is to fail before it did anything, else return what ends it."""
        world = self._world
        world.calls[call] += 1
        number = world.calls[call]
        await asyncio.sleep(world.latencies_s.get(call, 0))
        fault = next((fault for fault in world.faults if (fault.call, fault.k) == (call, number)), None)
        if fault is not None and not fault.after:
            raise fault.error
        return fault

    @staticmethod
    def _end(fault: Fault | None) -> None:
        if fault is not None:
            raise fault.error
