"""The host half of a look: one disk at a time is read, in the background; nothing of it outlives its row or its agent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.disk.base import DiskPool
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import Hypervisor
from pileus.drivers.host.qemu.opened import copier
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.monitor.look.plan import disk_look, unread
from pileus.monitor.look.types import DiskLook, LookAssigned, LookObserved
from pileus.scan.base import Scanner, Sought

TELL_S = 5.0
"""How often the server hears how far it is."""
WANTED_S = 1.0
"""How late it ends when nobody wants it any more."""
DISK_S = 3600.0
"""For one disk with its copy; the scan itself ends sooner."""
COPY_BYTES_PER_S = 200 * 2**20
"""Leaves something of an SSD to the VMs."""
TRIES = 3
CHANGED = frozenset({"VolumeChanged", "CopyFailed", "NotRunning", "NoDisk"})
"""What is said when a machine began or ended while its disk was read or copied: it is done another way then."""


@dataclass
class _Look:
    """One that was begun."""

    task: asyncio.Task[None]
    told: LookObserved = field(default_factory=LookObserved)


class Step(Struct, frozen=True, kw_only=True):
    """Begin, or wait until more can be told."""

    verb: str
    after_s: float = 0.0


class Seen(Struct, frozen=True):
    """How far it is; None: it was not begun by this agent."""

    told: LookObserved | None


class LookHalf(Half[Seen, Step]):
    """Drives the host's scanner."""

    kind = "monitor.look"

    def __init__(self, disks: DiskPool, hypervisor: Hypervisor, scanner: Scanner) -> None:
        self._disks = disks
        self._hypervisor = hypervisor
        self._scanner = scanner
        self._turn = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By account: one disk of each stands in line, so that no account waits for all disks of another."""
        self._looks: dict[str, _Look] = {}

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Return how far it is."""
        look = self._looks.get(resource.id)
        if look is not None and look.task.done() and not look.task.cancelled():
            look.task.result()  # a defect in it is one of this resource
        return Seen(look.told if look is not None else None)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Begin it, also after another agent did, and tell now and then how far it is."""
        if resource.deleting:
            return None
        if fact.told is None:
            return Step(verb="begin")
        return None if fact.told.state == "over" else Step(verb="wait", after_s=TELL_S)

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Begin to look."""
        self._looks = {
            id: look for id, look in self._looks.items() if peers.peer(id) is not None or not look.task.done()
        }
        task = asyncio.create_task(self._while_wanted(resource, peers), name=f"look {resource.id}")
        self._looks[resource.id] = _Look(task)
        task.add_done_callback(lambda _: peers.wake(resource.id))

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return how far it is, and what was found."""
        told = fact.told if fact is not None else None
        return replace(told or LookObserved(), problem=problem)

    async def close(self) -> None:
        """End all that is under way."""
        tasks = [look.task for look in self._looks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _while_wanted(self, resource: Resource, peers: Peers) -> None:
        """Look at all disks; end when the row goes meanwhile."""
        work = asyncio.create_task(self._look(resource, peers))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=WANTED_S)
                current = peers.peer(resource.id)
                if current is None or current.deleting:
                    return
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _look(self, resource: Resource, peers: Peers) -> None:
        assigned: LookAssigned = resource.assigned
        sought = Sought(engine=assigned.engine, rules=assigned.rules)
        disks: list[DiskLook] = []
        turn = self._turns.setdefault(resource.account_id, asyncio.Lock())
        for volume in assigned.volumes:
            known = peers.peer(volume)
            name = known.name if known is not None else volume
            async with turn, self._turn:
                disks.append(await self._disk(resource.id, volume, name, sought))
            self._tell(resource.id, disks=tuple(disks))
        self._tell(resource.id, state="over", volume="", looked_bytes=0)

    async def _disk(self, look: str, volume: str, name: str, sought: Sought) -> DiskLook:
        """Return what is on one disk."""
        words = "the VM began or ended again and again while its disk was read"
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(DISK_S):
                    return await self._read(look, volume, name, sought)
            except TimeoutError:
                return unread(volume, name, f"it was not copied and read within {DISK_S:.0f} s")
            except DriverError as error:
                words = error.message
                if error.reason not in CHANGED:
                    break
        return unread(volume, name, words)

    async def _read(self, look: str, volume: str, name: str, sought: Sought) -> DiskLook:
        """Raises: DriverError."""
        copy = await copier(self._hypervisor, volume, COPY_BYTES_PER_S)
        self._tell(look, state="copying" if copy is not None else "reading", volume=name, looked_bytes=0)
        async with self._disks.layers(volume, copy) as layers:
            self._tell(look, state="reading")
            report = await self._scanner.scan(layers, sought, lambda size: self._tell(look, looked_bytes=size))
        return disk_look(volume, name, report)

    def _tell(self, look: str, **changes: object) -> None:
        known = self._looks.get(look)
        if known is not None:
            known.told = replace(known.told, **changes)
