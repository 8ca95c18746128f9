"""The host half of a volume: a file of the pool, made from a cached image or empty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from msgspec import Struct

from pileus.drivers.host.disk.base import DiskPool, ImagePart, ImageSpec, PartName, VolumeFact, VolumeSpec
from pileus.drivers.host.notes import Notes
from pileus.drivers.host.snapshot import Snapshot
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half, Peers
from pileus.kernel.kind import Resource
from pileus.storage.snapshot.plan import awaits
from pileus.storage.volume.plan import GIB, Fact, Step, Wish, limits_of, plan
from pileus.storage.volume.types import ImageSource, VolumeAssigned, VolumeObserved
from pileus.tenancy.account.types import VmLimits

LOST = Problem(
    reason="VolumeLost",
    message="the disk was made and is not on its host any more; see that the file system of the pool is mounted there",
)


class Seen(Struct, frozen=True):
    """The file as found, whether its image is cached, and whether there ever was a file."""

    volume: VolumeFact | None
    image_cached: bool
    made: bool


class VolumeHalf(Half[Seen, Step]):
    """Drives the local pool for all volumes of the host."""

    kind = "storage.volume"

    def __init__(self, disks: DiskPool, notes: Notes) -> None:
        """``notes`` name the volumes that were made; they must not be in the pool, which may not be mounted."""
        self._disks = disks
        self._notes = notes
        self._volumes = Snapshot(disks.volumes)
        self._images = Snapshot(disks.images)
        self._limits: dict[str, VmLimits] = {}

    async def observe(self, resource: Resource, peers: Peers) -> Seen:
        """Find the file, and its image in the cache; note that there is a file before anybody can write to it."""
        assigned: VolumeAssigned = resource.assigned
        self._tell_limits(resource, peers)
        cached = assigned.image is None or assigned.image.id in await self._images.get()
        volume = (await self._volumes.get()).get(resource.id)
        made = self._notes.get(resource.id) is not None
        if volume is not None and not made:
            self._notes.put(resource.id, b"made")
        return Seen(volume, cached, made or volume is not None)

    def plan(self, resource: Resource, fact: Seen, peers: Peers) -> Step | None:
        """Return the next step of the volume."""
        wish = Wish(
            deleting=resource.deleting,
            size_bytes=resource.desired.size_gib * GIB,
            used=any(_may_use(vm, resource.id) for vm in peers.peers("compute.vm"))
            or any(awaits(snapshot, resource.id) for snapshot in peers.peers("storage.snapshot")),
            image_needed=not fact.image_cached,
        )
        return plan(wish, Fact(size_bytes=fact.volume.size_bytes if fact.volume else None, made=fact.made))

    async def do(self, step: Step, resource: Resource, peers: Peers) -> None:
        """Do one step with the pool."""
        assigned: VolumeAssigned = resource.assigned
        size_bytes = resource.desired.size_gib * GIB
        try:
            match step.verb:
                case "fetch_image" if assigned.image is not None:
                    await self._fetch(assigned.image, peers)
                case "create":
                    image = assigned.image.id if assigned.image else None
                    spec = VolumeSpec(
                        id=resource.id, size_bytes=size_bytes, image=image, snapshot=assigned.snapshot or None
                    )
                    await self._disks.create(spec)
                case "resize":
                    await self._disks.resize(resource.id, size_bytes)
                case "delete":
                    await self.remove(resource.id)
        finally:
            self._volumes.changed()
            self._images.changed()

    def _tell_limits(self, resource: Resource, peers: Peers) -> None:
        """Let the VMs that have the volume see new limits of it."""
        limits = limits_of(resource)
        if self._limits.get(resource.id) != limits:
            self._limits[resource.id] = limits
            for vm in peers.peers("compute.vm"):
                if resource.id in vm.assigned.volumes:
                    peers.wake(vm.id)

    async def _fetch(self, source: ImageSource, peers: Peers) -> None:
        parts: dict[PartName, ImagePart] = {"disk": ImagePart(size_bytes=source.size_bytes, sha256=source.sha256)}
        if source.kernel_sha256 and source.initrd_sha256:
            parts["kernel"] = ImagePart(size_bytes=source.kernel_size_bytes, sha256=source.kernel_sha256)
            parts["initrd"] = ImagePart(size_bytes=source.initrd_size_bytes, sha256=source.initrd_sha256)

        def fetch(part: PartName) -> AsyncIterator[bytes]:
            return peers.image(source.id, part)

        spec = ImageSpec(id=source.id, format="qcow2", virtual_size_bytes=source.virtual_size_bytes, parts=parts)
        await self._disks.put_image(spec, fetch)

    def report(self, resource: Resource, fact: Seen | None, problem: Problem | None) -> Struct:
        """Return the volume's observed section."""
        volume = fact.volume if fact else None
        if volume is None:
            lost = LOST if fact is not None and fact.made and not resource.deleting else None
            return VolumeObserved(state="absent", problem=problem or lost)
        return VolumeObserved(state="present", size_gib=volume.size_bytes // GIB, problem=problem)

    async def inventory(self) -> Collection[str]:
        """Return every volume file of the pool, and every volume that was made."""
        return {*(await self._disks.volumes()), *self._notes.ids()}

    async def remove(self, id: str) -> None:
        """Remove the file, and what is noted of it."""
        await self._disks.delete(id)
        self._limits.pop(id, None)
        self._notes.remove(id)
        self._volumes.changed()

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return the room each volume takes."""
        return {id: {"used_bytes": fact.used_bytes} for id, fact in (await self._disks.volumes()).items()}


def _may_use(vm: Resource, volume: str) -> bool:
    """Tell whether a VM has the volume open; one that could not be looked at yet may run and have any."""
    return vm.observed is None or vm.observed.power == "unknown" or volume in vm.observed.volumes
