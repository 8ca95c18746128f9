"""The host half of a snapshot: a copy of a volume's file, made by the machine that has the volume open, or of the file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec import Struct

from pileus.drivers.host.disk.base import DiskPool, SnapshotFact
from pileus.drivers.host.notes import Notes
from pileus.drivers.host.qemu.base import Hypervisor
from pileus.drivers.host.qemu.opened import copier
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.clock import iso
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.storage.snapshot.plan import Step, plan
from pileus.storage.snapshot.types import SnapshotAssigned, SnapshotObserved

MIB = 2**20

AT_ONCE = 2
"""Copies at once: each takes minutes of a large disk, and the agent has other things to do meanwhile."""
LOOK_AGAIN_S = 0.5

LOST = Problem(
    reason="SnapshotLost",
    message="it was made and is not on its host any more; see that the file system of the pool is mounted there",
)


class Seen(Struct, frozen=True):
    """The file as found, and whether there ever was one."""

    snapshot: SnapshotFact | None
    made: bool


class SnapshotHalf(Half[Seen, Step]):
    """Keeps the snapshots of the host's pool."""

    kind = "storage.snapshot"

    def __init__(self, disks: DiskPool, hypervisor: Hypervisor, notes: Notes) -> None:
        """``notes`` name the snapshots that were made; they must not be in the pool, which may not be mounted."""
        self._disks = disks
        self._hypervisor = hypervisor
        self._notes = notes
        self._snapshots = Snapshot(disks.snapshots)
        self._taking: set[str] = set()

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the file, and note that there is one."""
        found = (await self._snapshots.get()).get(resource.id)
        made = self._notes.get(resource.id) is not None
        if found is not None and not made:
            self._notes.put(resource.id, b"made")
        return Seen(found, made or found is not None)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the snapshot."""
        step = plan(deleting=resource.deleting, present=fact.snapshot is not None, made=fact.made)
        is_full = step is not None and step.verb == "take" and len(self._taking) >= AT_ONCE
        return Step(verb="wait", after_s=LOOK_AGAIN_S) if is_full else step

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the pool."""
        assigned: SnapshotAssigned = resource.assigned
        if step.verb == "delete":
            await self.remove(resource.id)
            return
        self._taking.add(resource.id)
        try:
            await self._disks.take_snapshot(
                resource.id, assigned.volume, await copier(self._hypervisor, assigned.volume)
            )
        finally:
            self._taking.discard(resource.id)
            self._snapshots.changed()
        # A volume that is being deleted waits for its copies.
        peers.wake(assigned.volume)

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the snapshot's observed section."""
        found = fact.snapshot if fact else None
        if found is None:
            lost = LOST if fact is not None and fact.made and not resource.deleting else None
            return SnapshotObserved(state="absent", problem=problem or lost)
        used_mib = -(-found.used_bytes // MIB)
        return SnapshotObserved(state="present", taken_at=iso(found.taken_at), used_mib=used_mib, problem=problem)

    async def inventory(self) -> Collection[str]:
        """Return every snapshot of the pool, and every one that was made."""
        return {*(await self._disks.snapshots()), *self._notes.ids()}

    async def remove(self, id: str) -> None:
        """Remove the file, and what is noted of it."""
        await self._disks.delete_snapshot(id)
        self._notes.remove(id)
        self._snapshots.changed()

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return the room each snapshot takes."""
        return {id: {"used_bytes": fact.used_bytes} for id, fact in (await self._disks.snapshots()).items()}
