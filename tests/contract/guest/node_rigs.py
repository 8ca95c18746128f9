"""Appliances in front of the drivers: simulated, behind a port's socket as QEMU makes it, behind a lossy switch port.

The appliance's own program runs here with a role of the test; tests/vm has it in a real machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pileus.drivers.host.guest.base import Document, Guest, Seed, SeedNic, Stream
from pileus.drivers.host.guest.fake import FakeGuest, GuestWorld
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.ovs.base import FrameExchange
from pileus.drivers.host.paths import HostPaths
from pileus.node.duty import Duty
from pileus.node.hostclock import HostClock
from pileus.node.role import RoleRefused
from pileus.node.serve import Server
from pileus.node.transport import FrameTransport, PortTransport

LIMIT_S = 20


class TestRole:
    """A role that takes everything, unless told otherwise."""

    __test__ = False

    def __init__(self) -> None:
        self.applied: list[Document] = []
        self.refusal = ""
        self.defect = ""
        self.said: dict[str, Any] = {}
        self.given: list[tuple[str, bool]] = []
        self.did: dict[str, bytes] = {}

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Echo, each id once; refuse and break as told."""
        self.given.append((id, again))
        if self.defect:
            raise ZeroDivisionError(self.defect)
        if self.refusal:
            raise RoleRefused(self.refusal)
        return self.did.setdefault(id, payload)

    def apply(self, document: Document) -> None:
        if self.defect:
            raise ZeroDivisionError(self.defect)
        if self.refusal:
            raise RoleRefused(self.refusal)
        self.applied.append(document)

    def tick(self) -> None:
        if self.defect:
            raise ZeroDivisionError(self.defect)

    def status(self) -> dict[str, Any]:
        return self.said


class Port:
    """As QEMU's virtio-serial port: a socket for one host at a time, and a descriptor for the guest.

    What nobody reads waits; what the guest sends while no host is there is lost.
    """

    def __init__(self, path: Path) -> None:
        self.guest_end, self._own = socket.socketpair()
        self.guest_end.setblocking(False)
        self._path = path
        self._turn = asyncio.Lock()
        self._host: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._stale = b""
        self.to_guest = self.to_host = self.connections = 0

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._own)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._task = asyncio.create_task(self._from_guest())

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._task.cancel()
        if self._host is not None:
            self._host.transport.abort()
        self._writer.close()
        self.guest_end.close()
        self._path.unlink(missing_ok=True)

    async def left_unread(self, data: bytes) -> None:
        """Give the next host something that an earlier one should have read."""
        async with self._turn:
            self._stale = data

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._turn:
            self.connections += 1
            stale, self._stale = self._stale, b""
            writer.write(stale)
            self._host = writer
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(4096):
                    self.to_guest += len(data)
                    self._writer.write(data)
                    await self._writer.drain()
            self._host = None
            writer.close()

    async def _from_guest(self) -> None:
        while data := await self._reader.read(4096):
            self.to_host += len(data)
            host = self._host
            if host is not None:
                with contextlib.suppress(ConnectionError):
                    host.write(data)
                    await host.drain()


class Appliance:
    """The appliance's program with a role of the test; ``boot`` it on what carries it."""

    def __init__(self, key: bytes, document: Path) -> None:
        self.role = TestRole()
        self.rtc = document.with_name("rtc")
        self.rtc.write_text("0")
        self.server: Server | None = None
        self._key = key
        self._document = document
        self._task: asyncio.Task[None] | None = None

    async def boot(self) -> Server:
        duty = Duty(self.role, self._document, HostClock(self.rtc))
        await duty.resume()
        self.server = Server(self._key, duty)
        self._task = asyncio.create_task(self.server.run())
        return self.server

    async def halt(self) -> None:
        if self._task is not None and self.server is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.server.stop()


class Rig(Protocol):
    """A host with one appliance; agents come and go."""

    def guest(self) -> Guest: ...
    async def seed(self, guest: Guest) -> None: ...
    async def attach(self, guest: Guest) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def refuse(self, words: str) -> None: ...
    def say(self, status: dict[str, Any]) -> None: ...
    def runs(self) -> Document | None: ...
    def did(self) -> list[str]: ...
    async def listen(self) -> tuple[str, int]: ...
    async def close(self) -> None: ...


MACHINE = "0197a1b2-router"
SEED = Seed(
    instance_id="i-1", hostname="router", channel="serial", role="router",
    nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("169.254.1.1/24",)),),
)  # fmt: skip


class EchoStream:
    """What answers in a simulated network: every byte again."""

    def __init__(self) -> None:
        self._bytes: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self._bytes.get()

    async def write(self, data: bytes) -> None:
        self._bytes.put_nowait(data)

    async def finish(self) -> None:
        self._bytes.put_nowait(b"")

    async def close(self) -> None:
        self._bytes.put_nowait(b"")


class FakeRig:
    def __init__(self) -> None:
        self.on = False
        self.world = GuestWorld(running=lambda machine: self.on)

    def guest(self) -> Guest:
        return FakeGuest(self.world)

    async def seed(self, guest: Guest) -> None:
        await guest.write_seed(MACHINE, SEED)

    async def attach(self, guest: Guest) -> None:
        await guest.attach(MACHINE, "serial")

    async def start(self) -> None:
        self.on = True

    async def stop(self) -> None:
        self.on = False

    def refuse(self, words: str) -> None:
        self.world.refusals[MACHINE] = words

        def refuse(payload: bytes) -> bytes:
            raise RoleRefused(words)

        self.world.roles[MACHINE] = refuse

    def say(self, status: dict[str, Any]) -> None:
        self.world.statuses[MACHINE] = status

    def runs(self) -> Document | None:
        return self.world.documents.get(MACHINE)

    def did(self) -> list[str]:
        return [id for id, _ in self.world.nodes[MACHINE].applied] if MACHINE in self.world.nodes else []

    async def listen(self) -> tuple[str, int]:
        made: list[Stream] = [EchoStream()]
        self.world.listening["127.0.0.1", 80] = lambda: made[0]
        return "127.0.0.1", 80

    async def close(self) -> None:
        self.on = False


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


class RealRig:
    """What the two real forms have in common."""

    def __init__(self, paths: HostPaths, machine: str = MACHINE, limits: Limits | None = None) -> None:
        self.paths = paths
        self.machine = machine
        self.limits = limits
        self.appliance: Appliance | None = None
        self._listening: list[asyncio.Server] = []
        paths.machine(machine).mkdir(parents=True)
        paths.machine_run(machine).mkdir(parents=True)

    async def seed(self, guest: Guest) -> None:
        await guest.write_seed(self.machine, SEED)
        key = bytes.fromhex(self.paths.channel_key(self.machine).read_text())
        self.appliance = Appliance(key, self.paths.machine(self.machine) / "document.json")

    @property
    def role(self) -> TestRole:
        assert self.appliance is not None
        return self.appliance.role

    def refuse(self, words: str) -> None:
        self.role.refusal = words

    def say(self, status: dict[str, Any]) -> None:
        self.role.said = status

    def runs(self) -> Document | None:
        return self.role.applied[-1] if self.role.applied else None

    def did(self) -> list[str]:
        return list(self.role.did)

    async def listen(self) -> tuple[str, int]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        self._listening.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def close(self) -> None:
        await self.stop()
        for server in self._listening:
            server.close()

    async def stop(self) -> None:
        raise NotImplementedError


class SerialRig(RealRig):
    port: Port | None = None

    def guest(self) -> GuestChannel:
        return GuestChannel(self.paths, limits=self.limits)

    async def attach(self, guest: Guest) -> None:
        await guest.attach(self.machine, "serial")

    async def start(self) -> None:
        self.port = Port(self.paths.channel_socket(self.machine))
        await self.port.open()
        await self.boot()

    async def boot(self) -> None:
        """Let the guest's system start on the port as it is."""
        assert self.appliance is not None
        assert self.port is not None
        server = await self.appliance.boot()
        transport = PortTransport(os.dup(self.port.guest_end.fileno()), server.conversation, server.greet)
        server.conversation.transport = transport
        transport.start()
        self._transport = transport

    async def halt(self) -> None:
        """Let the guest's system end, wherever it is in a frame."""
        if self.appliance is not None and self.appliance.server is not None:
            self._transport.close()
            await self.appliance.halt()

    async def stop(self) -> None:
        if self.port is not None:
            await self.halt()
            await self.port.close()
            self.port = None


class LossyExchange:
    """The control path of a switch port with losses; the other end is ``arrive`` and ``sent``."""

    def __init__(self, air: Air) -> None:
        self._air = air
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(256)

    def arrive(self, payload: bytes) -> None:
        if not self._frames.full():
            self._frames.put_nowait(payload)

    async def send(self, payload: bytes) -> None:
        self._air.to_guest(payload)

    async def receive(self) -> bytes:
        return await self._frames.get()

    async def close(self) -> None:
        if self._air.exchange is self:
            self._air.exchange = None


class Air:
    def __init__(self) -> None:
        self.random = random.Random(1)
        self.exchange: LossyExchange | None = None
        self.transport: FrameTransport | None = None

    def to_guest(self, payload: bytes) -> None:
        assert len(payload) <= 1400
        if self.transport is not None:
            self._deliver(self.transport.arrived, payload)

    def to_host(self, payload: bytes) -> None:
        assert len(payload) <= 1400
        if self.exchange is not None:
            self._deliver(self.exchange.arrive, payload)

    def _deliver(self, arrive: Any, payload: bytes) -> None:
        copies = (self.random.random() > 0.05) + (self.random.random() < 0.05)
        for _ in range(copies):
            # Padding, as Ethernet may add it.
            asyncio.get_running_loop().call_later(0.001 * self.random.random(), arrive, payload + bytes(20))


class NicRig(RealRig):
    def __init__(self, paths: HostPaths) -> None:
        super().__init__(paths)
        self.air = Air()

    def guest(self) -> GuestChannel:
        return GuestChannel(self.paths, self._exchange)

    async def _exchange(self, port: str) -> FrameExchange:
        self.air.exchange = LossyExchange(self.air)
        return self.air.exchange

    async def attach(self, guest: Guest) -> None:
        await guest.attach(self.machine, "nic", "port-1")

    async def start(self) -> None:
        assert self.appliance is not None
        server = await self.appliance.boot()
        self.air.transport = FrameTransport(self.air.to_host, server.conversation, server.greet)
        server.conversation.transport = self.air.transport
        self.air.transport.start()

    async def stop(self) -> None:
        if self.appliance is not None and self.air.transport is not None:
            self.air.transport.stop()
            self.air.transport = None
            await self.appliance.halt()


def big_document(hosts: int = 600, rules: int = 500) -> Document:
    """Return a router's document as large as they come."""
    return {
        "hosts": {
            f"52:54:00:00:{n // 256:02x}:{n % 256:02x}": {
                "network": "0197a1b2-0000-7000-8000-000000000001",
                "address": f"10.1.{n // 250}.{n % 250 + 1}",
                "names": [f"vm-{n}"],
            }
            for n in range(hosts)
        },
        "firewall": {
            f"{n:05}": {
                "direction": "ingress", "action": "accept", "network": "", "protocol": "tcp",
                "remotes": [f"198.51.{n // 250}.{n % 250}/32"], "locals": [], "port_first": n, "port_last": n,
            }
            for n in range(1, rules + 1)
        },
    }  # fmt: skip


def copy(document: Document) -> Document:
    """Return the document as JSON brings it."""
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


@pytest.fixture(params=["fake", "serial", "nic"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A node, simulated or real, of each form."""
    made: Rig
    if request.param == "fake":
        made = FakeRig()
    else:
        paths = request.getfixturevalue("paths")
        made = SerialRig(paths) if request.param == "serial" else NicRig(paths)
    yield made
    await made.close()
