"""A switch that exists in memory only: same answers, no traffic. Light enough for thousands of hosts in one process.

What must outlive an agent lies in ``FakeSwitchWorld``; a new ``FakeSwitch`` on the same world is a restarted agent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs.base import PortCounters, PortFact, PortSpec
from pileus.drivers.host.ovs.flows import check, tap_name

Call = Literal["open", "observe", "plug", "unplug", "counters", "vlan_counts", "open_tap", "remove"]

LATENCIES_S: Mapping[Call, float] = {"open": 0.15, "observe": 0.01, "plug": 0.03, "unplug": 0.03, "remove": 0.1}
"""What the real switch was measured to take."""


class Fault(Struct, frozen=True, kw_only=True):
    """The ``k``-th ``call`` from the world's beginning (1 is the first) raises ``error``.

    ``after`` true: the work is done and only the answer is lost.
    """

    call: Call
    k: int
    error: DriverError = OvsdbError("injected failure")
    after: bool = False


class FakeSwitchWorld:
    """What is on one simulated host: ports, their traffic, and what goes wrong there."""

    def __init__(self, *, latencies_s: Mapping[Call, float] = LATENCIES_S, faults: tuple[Fault, ...] = ()) -> None:
        self.is_up = False
        self.ports: dict[str, PortFact] = {}
        self.traffic: dict[str, PortCounters] = {}
        """Set by tests; a port that is not here has had no traffic."""
        self.calls: Counter[Call] = Counter()
        self.latencies_s = latencies_s
        self.faults = list(faults)

    def crash(self) -> None:
        """Kill the switch: its ports stay, their flows are gone."""
        self.is_up = False
        self.ports = {port: msgspec.structs.replace(fact, blocked=True) for port, fact in self.ports.items()}


class FakeSwitch:
    """One agent's driver of the switch in ``world``."""

    def __init__(self, world: FakeSwitchWorld) -> None:
        self._world = world

    async def open(self) -> None:
        """Start the switch, or adopt the running one."""
        fault = await self._begin("open")
        self._world.is_up = True
        self._end(fault)

    async def close(self) -> None:
        """Let go."""

    def namespace(self) -> str | None:
        """Return None: there is no namespace."""
        return None

    async def observe(self) -> dict[str, PortFact]:
        """Return every port."""
        fault = await self._begin("observe")
        self._end(fault)
        return dict(self._world.ports)

    async def plug(self, spec: PortSpec) -> PortFact:
        """Make the port be as ``spec`` says. Raises: DriverError (PortRefused, MacTaken)."""
        wanted = check(spec)
        fault = await self._begin("plug")
        world = self._world
        world.is_up = True
        if any(fact.mac == wanted.mac and port != wanted.id for port, fact in world.ports.items()):
            raise DriverError("MacTaken", f"port {wanted.id}: another port of this host has MAC {wanted.mac} already")
        fact = PortFact(
            id=wanted.id,
            tap=tap_name(wanted.id),
            mac=wanted.mac,
            addresses=wanted.addresses,
            vlan=wanted.vlan,
            rate_limit_kbps=wanted.rate_limit_kbps,
        )
        world.ports[wanted.id] = fact
        self._end(fault)
        return fact

    async def unplug(self, port: str) -> None:
        """Remove the port and its counters."""
        fault = await self._begin("unplug")
        self._world.ports.pop(port, None)
        self._world.traffic.pop(port, None)
        self._end(fault)

    async def counters(self) -> dict[str, PortCounters]:
        """Return the traffic that the world says there was."""
        fault = await self._begin("counters")
        self._end(fault)
        none = PortCounters(rx_bytes=0, rx_packets=0, tx_bytes=0, tx_packets=0)
        return {port: self._world.traffic.get(port, none) for port in self._world.ports}

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

    async def remove(self) -> None:
        """Take everything down."""
        fault = await self._begin("remove")
        self._world.is_up = False
        self._world.ports.clear()
        self._world.traffic.clear()
        self._end(fault)

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
