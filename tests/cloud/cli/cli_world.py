"""A real server on a free port, with stand-ins for hosts: VMs run as soon as a test lets them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pileus.cli.contexts import Context
from pileus.compute.vm.types import VmAssigned, VmDesired, VmObserved
from pileus.fleet.rollout.controller import RolloutController
from pileus.kernel.errors import Conflict, Transient
from pileus.kernel.fields import Problem
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.quota import space
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.mirror.session.types import SessionCounts, SessionObserved
from pileus.network.port.types import PortDesired
from pileus.server.links import AgentLinks, Channel, Connection
from pileus.server.run import ServerSettings, Started, Wiring, serve
from pileus.server.wiring import admissions
from pileus.storage.image.types import ImageObserved

LIMIT_S = 60.0
HOST = "host-1"
REFUSED_BYTES = 777
"""An upload of this size is refused by inspection."""


class Console:
    """A console that answers in capitals, and ends at ``bye``."""

    def __init__(self) -> None:
        self._output: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        """Return the next output."""
        return await self._output.get()

    async def write(self, content: bytes) -> None:
        """Answer."""
        self._output.put_nowait(content.upper())
        if b"bye" in content:
            self._output.put_nowait(b"")

    async def close(self) -> None:
        """Nothing to end."""


class Hosts:
    """Hosts that have logs and consoles."""

    def __init__(self) -> None:
        self.logs: dict[str, bytes] = {}
        self.listening: dict[tuple[str, int], Callable[[], Connection]] = {}
        self.refused = threading.Event()
        """Set when a connection was refused."""

    async def serve(self, host_id: str, channel: Channel) -> None:
        """No agent ever calls."""

    async def call(self, host_id: str, verb: str, id: str, arguments: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the end of a VM's log."""
        if verb != "log" or id not in self.logs:
            raise Transient(f"host {host_id} is not connected")
        yield self.logs[id][-int(arguments["tail_bytes"]) :]

    async def console(self, host_id: str, vm_id: str) -> Console:
        """Open a console."""
        return Console()

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        """Connect to what listens at the address."""
        if (address, port) not in self.listening:
            self.refused.set()
            raise Conflict(f"{address} port {port} refused the connection", code="connect-refused")
        return self.listening[address, port]()

    async def disk(self, host_id: str, volume: str) -> Connection:
        """No host has a volume."""
        raise Transient(f"host {host_id} is not connected")


class Vms(Controller):
    """Runs VMs at once, on a host that nobody made; those in ``held`` wait, the guests in ``ended`` powered off."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.ended: dict[str, int] = {}
        """The boot_serial at which the guest ended: a higher one boots it again."""
        self.started_at: dict[str, str] = {}

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make the facts follow the wish."""
        if resource.name in self.held:
            return Wait("NoHost", "no host has 128 MiB free", after_s=0.2)
        if resource.deleting:
            return Done()
        desired: VmDesired = resource.desired

        async def apply(tx: Transaction) -> None:
            for word in ("vcpus", "memory_mib"):
                await tx.set_capacity(space(HOST, word), 1_000_000)
            assigned = await _plugged(tx, resource)
            off = desired.power == "running" and desired.boot_serial <= self.ended.get(resource.name, -1)
            observed = VmObserved(
                power="stopped" if off else desired.power,
                memory_mib=128,
                boot_serial=desired.boot_serial,
                started_at=self.started_at.get(resource.name, ""),
                addresses=("10.1.1.10",),
                ports=assigned.ports,
                volumes=assigned.volumes,
            )
            if (resource.assigned, resource.observed) != (assigned, observed):
                now = {"observed": observed, "observed_generation": resource.generation}
                await tx.update(resource, assigned=assigned, **now)

        return Done(apply=apply)


async def _plugged(tx: Transaction, vm: Resource) -> VmAssigned:
    """Return the decisions for a VM that has all its NICs and disks; the NICs that no test made are in no network."""
    desired: VmDesired = vm.desired
    assigned: VmAssigned = vm.assigned
    ports = list(assigned.ports[: len(desired.nics)])
    while len(ports) < len(desired.nics):
        name = f"{vm.name}-{vm.generation}-nic{len(ports)}"
        made = Resource(
            id="", kind="network.port", name=name, account_id=vm.account_id, account=vm.account, owner=vm.id,
            desired=PortDesired(),
        )  # fmt: skip
        ports.append((await tx.create(made)).id)
    disks = 1 + len(desired.volumes)
    volumes = assigned.volumes if len(assigned.volumes) == disks else tuple(f"disk{number}" for number in range(disks))
    return msgspec.structs.replace(assigned, host=HOST, ports=tuple(ports), volumes=volumes)


class Mirrors(Controller):
    """Runs mirror sessions at once, at a decapsulator that a test makes; those that ``waits`` say why."""

    def __init__(self) -> None:
        self.node = ""
        self.waits = ""
        self.counts = SessionCounts()
        self.over: dict[str, asyncio.Event] = {}
        """By session: set when it has ended."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Run it, or end it when its time is over."""
        if resource.deleting:
            return Done()
        if self.waits:
            return Wait("VmStopped", self.waits, after_s=0.2)
        has_ended = resource.desired.duration_s == 1
        observed = SessionObserved(state="ended" if has_ended else "running", counts=self.counts)

        async def apply(tx: Transaction) -> None:
            now = await tx.get(resource.id)
            await tx.update(now, assigned=msgspec.structs.replace(now.assigned, node=self.node), observed=observed)
            if has_ended:
                self.over.setdefault(resource.id, asyncio.Event()).set()

        return Done(apply=apply)


@dataclass
class Cloud:
    """The server's address and what a test may do behind its back."""

    started: Started
    loop: asyncio.AbstractEventLoop
    data: Path
    vms: Vms
    hosts: Hosts
    mirrors: Mirrors
    uploads: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def operator(self) -> Context:
        """The first administrator's context."""
        return Context(server=self.started.url, ca=self.started.ca, key=self.started.operator_key or "")


@contextlib.contextmanager
def cloud(data: Path, port: int = 0) -> Iterator[Cloud]:
    """A server in a thread of its own for the block, stopped and joined at its end."""
    vms, hosts, mirrors = Vms(), Hosts(), Mirrors()
    uploads: list[tuple[str, str, int]] = []
    began = threading.Event()
    found: list[Cloud] = []

    def ready(started: Started) -> None:
        found.append(Cloud(started, asyncio.get_running_loop(), data, vms, hosts, mirrors, uploads))
        began.set()

    def run() -> None:
        try:
            asyncio.run(serve(ServerSettings(data=data, port=port), ready, _wiring(vms, hosts, mirrors, uploads)))
        finally:
            began.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    assert began.wait(LIMIT_S)
    assert found, "the server did not start"
    try:
        yield found[0]
    finally:
        found[0].loop.call_soon_threadsafe(found[0].started.stop)
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def _wiring(vms: Vms, hosts: Hosts, mirrors: Mirrors, uploads: list[tuple[str, str, int]]) -> Wiring:
    @contextlib.asynccontextmanager
    async def agents(store: Store, hub: Hub) -> AsyncIterator[AgentLinks]:
        yield hosts

    def uploaded(store: Store, images: Any) -> Any:
        async def note(image: Resource, part: str, sha256: str, size_bytes: int) -> None:
            uploads.append((part, sha256, size_bytes))
            if part == "disk":
                observed = ImageObserved(state="available", size_bytes=size_bytes, sha256=sha256)
                if size_bytes == REFUSED_BYTES:
                    observed = ImageObserved(
                        state="refused", problem=Problem(reason="BadSize", message="this is no disk; upload it again")
                    )
                await store.write(lambda tx: _observe(tx, image.id, observed))

        return note

    return Wiring(
        admissions=admissions(),
        controllers=lambda store, images: {
            "compute.vm": vms,
            "fleet.rollout": RolloutController(),
            "mirror.session": mirrors,
        },
        agents=agents,
        uploaded=uploaded,
    )


async def _observe(tx: Transaction, id: str, observed: ImageObserved) -> None:
    await tx.update(await tx.get(id), observed=observed)
