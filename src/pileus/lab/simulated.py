"""Hosts that exist only in memory, with the real agent: worlds outlive agents, as a machine outlives its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pileus.agent.agent import Agent
from pileus.agent.calls import Calls
from pileus.agent.channel import Connect, Fetch
from pileus.agent.converge import Converger
from pileus.agent.slice import MemorySlice
from pileus.agent.vitals import VitalSigns
from pileus.agent.wiring import Drivers, halves
from pileus.drivers.host.disk.fake import FakePool, FakePoolWorld
from pileus.drivers.host.guest.base import Document
from pileus.drivers.host.guest.fake import FakeGuest, GuestWorld
from pileus.drivers.host.mirror.fake import FakeMirror, FakeMirrorWorld, FakeTunnel
from pileus.drivers.host.notes import MemoryNotes
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.fake import FakeSwitch, FakeSwitchWorld
from pileus.drivers.host.qemu.fake import FakeHost, FakeHypervisor, FakeLatency
from pileus.drivers.host.system.fake import FakeSystem
from pileus.kernel.clock import Clock
from pileus.node.mirror.wire import Arrived
from pileus.registry import KINDS
from pileus.scan.fake import FakeScanner, FakeScans

DISK_BYTES = 10 * 2**40
INSTANT = FakeLatency(
    start_s=0, shutdown_s=0, power_off_s=0, plug_s=0, unplug_s=0, unplug_timeout_s=15, ask_s=0, jitter=0
)

IMAGE = b"a simulated disk"
"""Content of the only image that simulated hosts know."""


async def simulated_image(id: str, part: str) -> AsyncIterator[bytes]:
    """Yield the content of any image: simulated pools read and check it, and keep nothing."""
    yield IMAGE


async def nothing(id: str, part: str) -> AsyncIterator[bytes]:
    """Yield nothing: what is kept of a resource is only there for hosts of a server."""
    return
    yield b""


def _received(entry: dict[str, Any], came: dict[int, list[Arrived]]) -> list[Any]:
    """Return what a decapsulator says of a session."""
    packets = came.get(int(entry["key"], 16), [])
    numbers = [one.header.sequence for one in packets]
    cut = sum(one.header.truncated for one in packets)
    forwarded = len(packets) if entry["to"] == "sniffers" else 0
    size = sum(len(one.frame) for one in packets)
    return [entry["key"], len(packets), size, min(numbers, default=-1), max(numbers, default=-1), cut, forwarded, 0]


class SimulatedHost:
    """One simulated machine."""

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        cpus: int = 32,
        memory_mib: int = 262_144,
        instant: bool = False,
        uplinks: Uplinks = Uplinks(),  # noqa: B008 - frozen
    ) -> None:
        """``instant``: what drivers do takes no time; else about as long as the real ones."""
        self._clock = clock
        self._uplinks = uplinks
        self.machines = FakeHost(seed=seed, clock=clock, memory_mib=memory_mib, latency=INSTANT if instant else None)
        self.switch = FakeSwitchWorld(latencies_s={}) if instant else FakeSwitchWorld()
        self.pool = FakePoolWorld(latencies_s={}, clock=clock) if instant else FakePoolWorld(clock=clock)
        self.mirror = FakeMirrorWorld(
            FakeTunnel(), uplinks.tunnel_address.partition("/")[0], lambda port: port in self.switch.ports
        )
        self.mirror.takes = self._takes
        self._counted_from: dict[str, tuple[int, int]] = {}
        """For ports of decapsulators: the machine's process, and how many packets had come before it."""
        self.guests = GuestWorld(
            running=self._runs, boot_of=self._boot_of, clock=clock, status_of=self._decapsulator_status
        )
        self.scans = FakeScans(scan_s=0.0) if instant else FakeScans()
        self.notes = MemoryNotes()
        self.volume_notes = MemoryNotes()
        self.snapshot_notes = MemoryNotes()
        self.leg_notes = MemoryNotes()
        self.slice = MemorySlice()
        self.system = FakeSystem(cpus, memory_mib)

    def _runs(self, machine: str) -> bool:
        found = self.machines.machines.get(machine)
        return found is not None and found.state == "running" and not found.hung

    def _boot_of(self, machine: str) -> int:
        found = self.machines.machines.get(machine)
        return found.pid or 0 if found is not None else 0

    def join(self, tunnel: FakeTunnel) -> None:
        """Let mirrored packets go to the other hosts that joined ``tunnel``, by their tunnels' addresses."""
        self.mirror.tunnel = tunnel
        if self.mirror.address:
            tunnel.hosts[self.mirror.address] = self.mirror

    def _takes(self, port: str) -> bool:
        """Tell whether a machine that runs has the port; what a decapsulator counts begins anew with each boot."""
        running = (each for each in self.machines.machines.values() if each.state == "running")
        pid = next((each.pid for each in running if any(nic.id == port for nic in each.spec.nics)), None)
        if pid is not None and self._counted_from.get(port, (0, 0))[0] != pid:
            self._counted_from[port] = (pid, len(self.mirror.arrived[port]))
        return pid is not None

    def _decapsulator_status(self, document: Document) -> dict[str, Any]:
        """Return what a decapsulator on this host says of itself; see pileus.node.mirror."""
        link = document.get("links", {}).get("tunnel")
        if link is None:
            return {}
        nics = (nic for machine in self.machines.machines.values() for nic in machine.spec.nics)
        port = next((nic.id for nic in nics if nic.mac == link["mac"]), "")
        came: dict[int, list[Arrived]] = {}
        if self._takes(port):
            for one in self.mirror.arrived[port][self._counted_from[port][1] :]:
                came.setdefault(one.header.key, []).append(one)
        sessions = {id: _received(entry, came) for id, entry in document.get("sessions", {}).items()}
        return {"role": "decapsulator", "path": "simulated", "refused": {}, "sessions": sessions}

    async def start_agent(self, connect: Connect, fetch_content: Fetch = nothing) -> Agent:
        """Return a new agent process on this machine; run it with ``run``."""
        guest = FakeGuest(self.guests)
        drivers = Drivers(
            hypervisor=FakeHypervisor(self.machines),
            switch=FakeSwitch(self.switch, self._uplinks),
            disks=FakePool(self.pool, DISK_BYTES),
            guest=guest,
            system=self.system,
            notes=self.notes,
            volume_notes=self.volume_notes,
            snapshot_notes=self.snapshot_notes,
            leg_notes=self.leg_notes,
            uplinks=self._uplinks,
            mirror=FakeMirror(self.mirror),
            scanner=FakeScanner(self.scans),
        )
        await drivers.hypervisor.open()
        await drivers.switch.open()
        await drivers.disks.open()
        await drivers.scanner.open()
        converger = Converger(KINDS, halves(drivers), self._clock, simulated_image, fetch_content)
        drivers.hypervisor.on_change(converger.wake)
        drivers.hypervisor.on_change(guest.hint)
        drivers.guest.on_change(converger.wake_owner)
        signs = VitalSigns(drivers.hypervisor, drivers.switch, drivers.guest)
        return Agent(converger, self.slice, connect, Calls(drivers.guest, drivers.disks, signs))
