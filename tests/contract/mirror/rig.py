"""Hosts with a mirror, real or fake, joined by a tunnel; ports are taps whose other end the test holds.

A real host is a network namespace: a bridge stands for the switch's underlay, and nothing for its other bridge, because copies
are taken before a switch sees a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from tests.contract.ovs.lan import is_running

from pileus.drivers.host.mirror.base import DeliverySpec, LegCounts, LegSpec, Mirror, RelaySpec
from pileus.drivers.host.mirror.fake import FakeMirror, FakeMirrorWorld, FakeTunnel
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.ovs.database import UNDERLAY
from pileus.drivers.host.ovs.flows import tap_name
from pileus.drivers.host.paths import HostPaths
from pileus.node.mirror import wire
from pileus.node.mirror.rules import Direction

LIMIT_S = 30
TUNNEL_MTU = 1600
ADDRESSES = {"a": "10.9.0.1", "b": "10.9.0.2", "c": "10.9.0.3"}


class Host(Protocol):
    """What tests do with a host. ``arrived``: what decapsulators got, by port; ``delivered``: what sniffers got, by port."""

    mirror: Mirror
    address: str
    arrived: defaultdict[str, list[wire.Arrived]]
    delivered: defaultdict[str, list[bytes]]

    async def plug(self, *ports: str) -> None: ...

    async def unplug(self, port: str) -> None: ...

    def passes(self, port: str, frame: bytes, direction: Direction) -> None:
        """Let a frame pass a port."""

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true that depends on what comes."""

    def restart(self) -> None:
        """Let another agent take the host over; its mirror is to be opened."""


class Rig(Protocol):
    """Hosts by letter."""

    hosts: dict[str, Host]


async def put(host: Host, *specs: LegSpec) -> None:
    for spec in specs:
        await host.mirror.put(spec)
        if isinstance(spec, RelaySpec) and isinstance(host, RealHost):
            host.decapsulate(spec)


async def counts(host: Host, id: str) -> LegCounts:
    return (await host.mirror.observe())[id].counts


class FakeHost:
    def __init__(self, tunnel: FakeTunnel, letter: str) -> None:
        self.ports: set[str] = set()
        self.address = ADDRESSES[letter]
        self.world = FakeMirrorWorld(tunnel, self.address, self.ports.__contains__)
        self.arrived, self.delivered = self.world.arrived, self.world.delivered
        self.mirror: Mirror = FakeMirror(self.world)

    async def plug(self, *ports: str) -> None:
        self.ports.update(ports)

    async def unplug(self, port: str) -> None:
        self.ports.remove(port)

    def passes(self, port: str, frame: bytes, direction: Direction) -> None:
        self.world.pass_frame(port, frame, direction)

    async def until(self, true: Callable[[], bool]) -> None:
        assert true()

    def restart(self) -> None:
        self.mirror = FakeMirror(self.world)


class FakeRig:
    def __init__(self) -> None:
        tunnel = FakeTunnel()
        self.hosts: dict[str, Host] = {letter: FakeHost(tunnel, letter) for letter in ADDRESSES}

    async def build(self) -> None:
        for host in self.hosts.values():
            await host.mirror.open()

    async def remove(self) -> None:
        pass


class Nic:
    """Both sides of a tap: ``descriptor`` is the VM's, ``wire`` a packet socket such as the switch has."""

    def __init__(self, descriptor: int, wire_: socket.socket) -> None:
        self.descriptor = descriptor
        self.wire = wire_

    def read(self) -> list[bytes]:
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(os.read(self.descriptor, 65_536))
        return frames


Tcx = Literal["if-there", "never"]


class RealHost:
    def __init__(self, folder: Path, letter: str, tcx: Tcx) -> None:
        self.tcx = tcx
        self.letter = letter
        self.address = ADDRESSES[letter]
        self.paths = HostPaths.under(folder / letter)
        self.uplinks = Uplinks(tunnel="tunnel0", tunnel_address=f"{self.address}/24")
        self.mirror: Mirror = KernelMirror(self.paths, self.uplinks, tcx=self.tcx)
        self.arrived: defaultdict[str, list[wire.Arrived]] = defaultdict(list)
        self.delivered: defaultdict[str, list[bytes]] = defaultdict(list)
        self.nics: dict[str, Nic] = {}
        self.is_reading = True
        self._relays: dict[str, dict[int, str | None]] = defaultdict(dict)
        """By the port of a decapsulator's first NIC: where what has a key goes on, by key."""
        self._changed = asyncio.Event()

    async def build(self, core: str) -> None:
        """Make namespace, underlay and tunnel, wired to the bridge of the namespace ``core``."""
        name, wire_ = self.paths.namespace, f"wire-{self.letter}"
        await run(["ip", "netns", "add", name])
        await namespace.inside(name, _be_quiet)
        await ip(core, [
            f"link add {wire_} mtu {TUNNEL_MTU} type veth peer name tunnel0 mtu {TUNNEL_MTU} netns {name}",
            f"link set {wire_} master core up",
        ])  # fmt: skip
        number = ord(self.letter)
        await ip(name, [
            "link set lo up",
            f"link add {UNDERLAY} mtu {TUNNEL_MTU} address 02:70:00:00:00:{number:02x} type bridge mcast_snooping 0",
            f"link set {UNDERLAY} up",
            f"link set tunnel0 master {UNDERLAY} up",
            f"address add {self.address}/24 dev {UNDERLAY}",
        ])  # fmt: skip
        await self.mirror.open()

    async def plug(self, *ports: str) -> None:
        for port in ports:
            await namespace.make_tap(self.paths.namespace, tap_name(port))
            await self.open_nic(port)

    async def open_nic(self, port: str) -> None:
        """Be the VM at the port."""
        tap, name = tap_name(port), self.paths.namespace
        descriptor = await namespace.open_tap(name, tap)
        self.nics[port] = Nic(descriptor, await namespace.inside(name, lambda: _packet_socket(tap)))
        asyncio.get_running_loop().add_reader(descriptor, self._read, port)
        async with asyncio.timeout(LIMIT_S):
            while not await namespace.inside(name, lambda: is_running(tap)):
                pass

    def close_nic(self, port: str) -> None:
        nic = self.nics.pop(port)
        asyncio.get_running_loop().remove_reader(nic.descriptor)
        os.close(nic.descriptor)
        nic.wire.close()

    async def unplug(self, port: str) -> None:
        self.close_nic(port)
        await namespace.delete_link(self.paths.namespace, tap_name(port))

    def passes(self, port: str, frame: bytes, direction: Direction) -> None:
        if direction == "egress":
            os.write(self.nics[port].descriptor, frame)
        else:
            self.nics[port].wire.send(frame)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def restart(self) -> None:
        self.mirror = KernelMirror(self.paths, self.uplinks, tcx=self.tcx)

    def decapsulate(self, spec: RelaySpec) -> None:
        """Be the decapsulator at the relay's ports."""
        self._relays[spec.tunnel_port][spec.key] = spec.sniffer_port if spec.target is not None else None

    def stop_reading(self, port: str) -> None:
        asyncio.get_running_loop().remove_reader(self.nics[port].descriptor)

    async def remove(self) -> None:
        for port in list(self.nics):
            self.close_nic(port)
        await self.mirror.tear_down()
        if (namespace.FOLDER / self.paths.namespace).exists():
            await run(["ip", "netns", "delete", self.paths.namespace])

    def _read(self, port: str) -> None:
        frames = self.nics[port].read()
        if port in self._relays:
            for frame in frames:
                self._take(port, frame)
        else:
            self.delivered[port] += frames
        self._changed.set()

    def _take(self, port: str, frame: bytes) -> None:
        got = wire.parse(frame)
        assert isinstance(got, wire.Arrived), got
        self.arrived[port].append(got)
        sniffers = self._relays[port].get(got.header.key)
        if sniffers is not None:
            os.write(self.nics[sniffers].descriptor, wire.label(got.header.key) + got.frame)


class RealRig:
    def __init__(self, folder: Path, tcx: Tcx = "if-there") -> None:
        self.real = {letter: RealHost(folder, letter, tcx) for letter in ADDRESSES}
        self.hosts: dict[str, Host] = dict(self.real)
        self.core = f"pileus-mirror-{os.getpid()}"

    async def build(self) -> None:
        await run(["ip", "netns", "add", self.core])
        await namespace.inside(self.core, _be_quiet)
        await ip(self.core, [f"link add core mtu {TUNNEL_MTU} type bridge mcast_snooping 0", "link set core up"])
        for host in self.real.values():
            await host.build(self.core)

    async def remove(self) -> None:
        for host in self.real.values():
            await host.remove()
        if (namespace.FOLDER / self.core).exists():
            await run(["ip", "netns", "delete", self.core])


async def ip(name: str, lines: list[str]) -> None:
    await run(["ip", "-n", name, "-batch", "-"], text="\n".join(lines) + "\n")


def deliver_to(host: Host, spec: RelaySpec, port: str) -> DeliverySpec:
    """Return the delivery that belongs to a relay on ``host``."""
    return DeliverySpec(id=f"{spec.id}-out", key=spec.key, source=host.address if spec.target else "", port=port)


def _be_quiet() -> None:
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


def _packet_socket(tap: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.bind((tap, 0))
    return made
