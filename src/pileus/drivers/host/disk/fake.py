"""A disk pool without a disk: the same rules and errors as the real one, light enough for thousands of hosts.

What the pool holds lives in a ``FakePoolWorld``, so that a new pool over the same world is an agent that started again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.disk.base import (
    Copy,
    DiskLayer,
    ImageFile,
    ImageSpec,
    PartName,
    PoolCapacity,
    SnapshotFact,
    VolumeFact,
    VolumeSpec,
)
from pileus.drivers.host.errors import DiskFull, DriverError, ImageRefused
from pileus.ovf.deflating import deflate

EMPTY_VOLUME_BYTES = 196_624
"""What qemu-img 7.2 makes of an empty volume of 1 GiB, measured."""

SECTOR_BYTES = 512


Call = Literal[
    "open", "capacity", "volumes", "create", "resize", "delete", "packed", "images", "put_image", "delete_image",
    "snapshots", "take_snapshot", "delete_snapshot", "layers",
]  # fmt: skip

LATENCIES_S: Mapping[Call, float] = {
    "create": 0.01,
    "resize": 0.01,
    "delete": 0.001,
    "put_image": 0.3,
    "take_snapshot": 0.2,
}
"""What the real pool was measured to take (an image of 50 MiB); calls that are not here take no time."""


class Fault(Struct, frozen=True, kw_only=True):
    """The ``k``-th ``call`` from the world's beginning (1 is the first) raises ``error``.

    ``after`` true: the work is done and only the answer is lost.
    """

    call: Call
    k: int
    error: DriverError = DriverError("DiskToolFailed", "injected failure")
    after: bool = False


class FakePoolWorld:
    """What is on one simulated host's disk, and what goes wrong there."""

    def __init__(
        self,
        *,
        latencies_s: Mapping[Call, float] = LATENCIES_S,
        faults: tuple[Fault, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.images: dict[str, ImageFile] = {}
        self.volumes: dict[str, VolumeFact] = {}
        self.snapshots: dict[str, SnapshotFact] = {}
        self.copies: dict[str, int] = {}
        """Path -> bytes of each copy that is read just now."""
        self.calls: Counter[Call] = Counter()
        self.latencies_s = latencies_s
        self.faults = list(faults)
        self.other_bytes = 0
        """Taken by files that are not the pool's; set by tests to fill the disk."""

    def write(self, volume: str, used_bytes: int) -> None:
        """Let the guest fill its volume to ``used_bytes`` on the host's disk."""
        self.volumes[volume] = replace(self.volumes[volume], used_bytes=used_bytes)

    @asynccontextmanager
    async def call(self, name: Call) -> AsyncIterator[None]:
        """Count the call, let it take its time, and fail it before or after its work when that is planned."""
        self.calls[name] += 1
        fault = next((fault for fault in self.faults if (fault.call, fault.k) == (name, self.calls[name])), None)
        await asyncio.sleep(self.latencies_s.get(name, 0))
        if fault is not None and not fault.after:
            raise fault.error
        yield
        if fault is not None:
            raise fault.error


class FakePool:
    """The pool of one simulated host with ``capacity_bytes`` of disk."""

    def __init__(self, world: FakePoolWorld, capacity_bytes: int) -> None:
        self._world = world
        self._total_bytes = capacity_bytes

    async def open(self) -> None:
        """Find everything as it is: an interrupted call leaves nothing in the world."""
        async with self._world.call("open"):
            self._world.copies.clear()

    async def capacity(self) -> PoolCapacity:
        """Return the simulated disk's size and room."""
        async with self._world.call("capacity"):
            return PoolCapacity(total_bytes=self._total_bytes, free_bytes=self._free_bytes())

    async def volumes(self) -> dict[str, VolumeFact]:
        """Return every volume."""
        async with self._world.call("volumes"):
            return dict(self._world.volumes)

    async def create(self, spec: VolumeSpec) -> VolumeFact:
        """Make the volume; there already: its fact. Raises what the real pool does."""
        async with self._world.call("create"):
            fact = self._world.volumes.get(spec.id)
            if fact is None:
                _check_size(spec.id, spec.size_bytes)
                self._check_image(spec)
                self._check_snapshot(spec)
                self._take(f"volume {spec.id}", EMPTY_VOLUME_BYTES)
                fact = self._world.volumes[spec.id] = VolumeFact(
                    id=spec.id,
                    path=f"/simulated/pool/volumes/{spec.id}.qcow2",
                    format="qcow2",
                    size_bytes=spec.size_bytes,
                    used_bytes=EMPTY_VOLUME_BYTES,
                    image=spec.image,
                )
        return fact

    async def resize(self, volume: str, size_bytes: int) -> None:
        """Grow a volume; smaller or equal: nothing. Raises DriverError (NoVolume, SizeRefused)."""
        async with self._world.call("resize"):
            fact = self._world.volumes.get(volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the simulated pool; create it first")
            if size_bytes > fact.size_bytes:
                _check_size(volume, size_bytes)
                self._world.volumes[volume] = replace(fact, size_bytes=size_bytes)

    async def delete(self, volume: str) -> None:
        """Remove the volume; gone already is success."""
        async with self._world.call("delete"):
            self._world.volumes.pop(volume, None)

    async def packed(self, volume: str) -> AsyncGenerator[bytes]:
        """Yield a blank disk of the volume's size. Raises DriverError (NoVolume)."""
        async with self._world.call("packed"):
            fact = self._world.volumes.get(volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the simulated pool")
        for part in await asyncio.to_thread(_blank_vmdk, fact.size_bytes):
            yield part

    @asynccontextmanager
    async def layers(self, volume: str, copy: Copy | None = None) -> AsyncIterator[tuple[DiskLayer, ...]]:
        """Give what the volume is read from, for the block. Raises what the real pool does."""
        async with self._world.call("layers"):
            fact = self._world.volumes.get(volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the simulated pool")
        if copy is None:
            yield (DiskLayer(fact.path, "qcow2"),)
            if self._world.volumes.get(volume) != fact:
                raise DriverError("VolumeChanged", f"volume {volume} was written to while it was read")
            return
        self._take(f"a copy of volume {volume}", fact.used_bytes)
        target = f"/simulated/pool/volumes/{volume}.{self._world.calls['layers']}.qcow2.tmp"
        self._world.copies[target] = fact.used_bytes
        try:
            await copy(target)
            yield (DiskLayer(target, "qcow2"),)
        finally:
            self._world.copies.pop(target, None)

    async def snapshots(self) -> dict[str, SnapshotFact]:
        """Return every snapshot."""
        async with self._world.call("snapshots"):
            return dict(self._world.snapshots)

    async def take_snapshot(self, snapshot: str, volume: str, copy: Copy | None = None) -> SnapshotFact:
        """Keep the volume; there already: its fact. Raises what the real pool does."""
        async with self._world.call("take_snapshot"):
            found = self._world.snapshots.get(snapshot)
            if found is not None:
                return found
            fact = self._world.volumes.get(volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the simulated pool")
            self._take(f"snapshot {snapshot}", fact.used_bytes)
            path = f"/simulated/pool/snapshots/{snapshot}.qcow2"
            taken_at = self._world.clock() if copy is None else await copy(path)
            made = SnapshotFact(
                id=snapshot, path=path, volume=volume, size_bytes=fact.size_bytes, used_bytes=fact.used_bytes,
                taken_at=taken_at,
            )  # fmt: skip
            return self._world.snapshots.setdefault(snapshot, made)

    async def delete_snapshot(self, snapshot: str) -> None:
        """Remove the snapshot; gone already is success."""
        async with self._world.call("delete_snapshot"):
            self._world.snapshots.pop(snapshot, None)

    async def images(self) -> dict[str, ImageFile]:
        """Return every image of the cache."""
        async with self._world.call("images"):
            return dict(self._world.images)

    async def put_image(self, spec: ImageSpec, fetch: Callable[[PartName], AsyncIterator[bytes]]) -> ImageFile:
        """Cache the image after reading and checking every part. Raises ImageRefused, DiskFull."""
        async with self._world.call("put_image"):
            if spec.id not in self._world.images:
                self._take(f"image {spec.id}", sum(part.size_bytes for part in spec.parts.values()))
                for name in spec.parts:
                    await _verify(spec, name, fetch(name))
                self._world.images[spec.id] = _image_file(spec)
        return self._world.images[spec.id]

    async def delete_image(self, image: str) -> None:
        """Remove an image. Raises DriverError (ImageInUse) while a volume is a child of it."""
        async with self._world.call("delete_image"):
            children = sorted(fact.id for fact in self._world.volumes.values() if fact.image == image)
            if children:
                message = (
                    f"image {image} is the origin of {len(children)} volumes, such as {children[0]}; delete them first"
                )
                raise DriverError("ImageInUse", message)
            self._world.images.pop(image, None)

    def _free_bytes(self) -> int:
        used_bytes = sum(fact.used_bytes for fact in self._world.volumes.values())
        used_bytes += sum(fact.used_bytes for fact in self._world.snapshots.values()) + sum(self._world.copies.values())
        cached_bytes = sum(image.size_bytes for image in self._world.images.values())
        return max(0, self._total_bytes - self._world.other_bytes - used_bytes - cached_bytes)

    def _take(self, subject: str, needed_bytes: int) -> None:
        """Raises: DiskFull when there is less room than that."""
        free_bytes = self._free_bytes()
        if free_bytes < needed_bytes:
            raise DiskFull(
                f"the simulated pool has no room for {subject}: it needs {needed_bytes} bytes, {free_bytes} are free; "
                "delete volumes or images, or give the pool more room"
            )

    def _check_snapshot(self, spec: VolumeSpec) -> None:
        """Raises: DriverError (NoSnapshot, VolumeTooSmall)."""
        if spec.snapshot is None:
            return
        found = self._world.snapshots.get(spec.snapshot)
        if found is None:
            raise DriverError("NoSnapshot", f"snapshot {spec.snapshot} of volume {spec.id} is not in the pool")
        if found.size_bytes > spec.size_bytes:
            raise DriverError("VolumeTooSmall", f"volume {spec.id} is smaller than its snapshot; make it larger")

    def _check_image(self, spec: VolumeSpec) -> None:
        """Raises: DriverError (NoImage, VolumeTooSmall)."""
        if spec.image is None:
            return
        image = self._world.images.get(spec.image)
        if image is None:
            raise DriverError("NoImage", f"image {spec.image} of volume {spec.id} is not cached; fetch it first")
        if image.virtual_size_bytes > spec.size_bytes:
            smallest = f"the {image.virtual_size_bytes} bytes of its image {image.id}"
            raise DriverError("VolumeTooSmall", f"volume {spec.id} is smaller than {smallest}; make it larger")


def _check_size(volume: str, size_bytes: int) -> None:
    """Raises: DriverError (SizeRefused)."""
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
        raise DriverError(
            "SizeRefused", f"volume {volume} cannot have {size_bytes} bytes; use a multiple of {SECTOR_BYTES}"
        )


async def _verify(spec: ImageSpec, name: PartName, chunks: AsyncIterator[bytes]) -> None:
    """Raises: ImageRefused (SizeMismatch, DigestMismatch)."""
    part, subject = spec.parts[name], f"the {name} of image {spec.id}"
    digest, size_bytes = hashlib.sha256(), 0
    async for chunk in chunks:
        digest.update(chunk)
        size_bytes += len(chunk)
    if size_bytes != part.size_bytes:
        raise ImageRefused("SizeMismatch", f"{subject} has {size_bytes} bytes, {part.size_bytes} were announced")
    if digest.hexdigest() != part.sha256:
        raise ImageRefused("DigestMismatch", f"{subject} does not have the announced SHA-256; send it again")


def _image_file(spec: ImageSpec) -> ImageFile:
    folder = f"/simulated/pool/images/{spec.id}"
    return ImageFile(
        id=spec.id,
        path=f"{folder}/disk",
        format=spec.format,
        size_bytes=spec.parts["disk"].size_bytes,
        virtual_size_bytes=spec.virtual_size_bytes,
        kernel=f"{folder}/kernel" if "kernel" in spec.parts else None,
        initrd=f"{folder}/initrd" if "initrd" in spec.parts else None,
    )


def _blank_vmdk(size_bytes: int) -> list[bytes]:
    """Return a VMDK of a disk on which nobody wrote."""
    parts: list[bytes] = []
    disk = os.memfd_create("blank")
    try:
        os.ftruncate(disk, size_bytes)
        deflate(disk, size_bytes, parts.append)
    finally:
        os.close(disk)
    return parts
