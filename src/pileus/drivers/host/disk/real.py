"""A disk pool of files made by qemu-img: qcow2 volumes as copy-on-write children of cached images.

The pool decides nothing about who may have what. What it says of a volume comes from its own record beside the file
and from stat(2), never from the file's header: the guest wrote that file. A guest sees only the virtual disk and so
cannot reach the header of its own qcow2 overlay, but in a raw volume it could; so volumes are qcow2 only.

A volume is there when ``<id>.qcow2`` is; its record is written before and removed after it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from pileus.drivers.host.disk import command, files
from pileus.drivers.host.disk.base import (
    Copy,
    DiskLayer,
    ImageFile,
    ImageSpec,
    PoolCapacity,
    SnapshotFact,
    VolumeFact,
    VolumeSpec,
)
from pileus.drivers.host.disk.images import Fetch, ImageCache
from pileus.drivers.host.disk.packing import vmdk_parts
from pileus.drivers.host.disk.snapshots import SnapshotFolder
from pileus.drivers.host.errors import DiskFull, DriverError
from pileus.drivers.host.paths import HostPaths
from pileus.kernel.errors import Bug

log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""An id becomes a file name: no dot and no slash, so it can neither leave the folder nor look like a temporary name."""

SECTOR_BYTES = 512
STAT_BLOCK_BYTES = 512
"""The unit of st_blocks, whatever the file system's own block is (stat(2))."""

PACK_TIMEOUT_S = 6 * 3600.0
PACKED_AT_ONCE = 2
"""Volumes that are packed at once: each takes a core, and room in the pool."""
PACKED_RESERVE_SHARE = 20
"""The part of the pool's disk that packing leaves free, so that VMs can go on writing."""
PACKED_SHARE = 64
"""What is copied to be packed is at most this part larger than its layers: by clusters that are not used whole."""

LOCKED = b'Failed to get shared "write" lock'
"""What qemu-img says of a file that QEMU has open (block/file-posix.c)."""

FIRST_BLOCKS_BYTES = 256 * 1024
"""What an empty qcow2 with 64 KiB clusters takes: header, refcounts, first table."""

COMMAND_TIMEOUT_S = 120.0
"""qemu-img create and resize take 10-20 ms; on a disk whose writes hang this ends the wait."""

VOLUME_SUFFIX = ".qcow2"
RECORD_SUFFIX = ".json"


class VolumeRecord(Struct, frozen=True, kw_only=True):
    """What the pool knows of a volume, kept beside it."""

    size_bytes: int
    image: str | None = None


class QemuImgPool:
    """The pool under ``paths.pool``; ``name`` is what messages call it. Only one agent may use a pool."""

    def __init__(self, paths: HostPaths, name: str = "local pool") -> None:
        self._name = name
        # Absolute: a relative name of a backing file would be looked for beside the volume.
        self._folder = paths.pool.absolute()
        self._volumes = self._folder / "volumes"
        self._cache = ImageCache(self._folder / "images", name)
        self._snapshots = SnapshotFolder(self._folder / "snapshots")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Held while a volume is bound to an image and while an image goes: neither sees the other half-done.
        self._binding = asyncio.Lock()
        self._packing = asyncio.Semaphore(PACKED_AT_ONCE)

    async def open(self) -> None:
        """Make the folders and clear what an interrupted call left. Raises MissingTool without qemu-img."""
        for tool in ("qemu-img", "setpriv"):
            if shutil.which(tool) is None:
                raise command.missing(tool)
        await files.in_thread(self._clear)

    async def capacity(self) -> PoolCapacity:
        """Return size and room of the file system, without what is reserved for root."""
        return await files.in_thread(files.capacity, self._folder)

    async def volumes(self) -> dict[str, VolumeFact]:
        """Return every volume; a file without a record is left alone and reported in the log."""
        return await files.in_thread(self._scan)

    async def create(self, spec: VolumeSpec) -> VolumeFact:
        """Make the volume as qcow2, a copy-on-write child of its image; there already: its fact.

        Raises: DiskFull, DriverError (NoImage, VolumeTooSmall, SizeRefused, RecordMissing, DiskToolFailed, TimedOut).
        """
        _check_id(spec.id)
        async with self._lock(spec.id):
            fact = await files.in_thread(self._find, spec.id)
            if fact is not None:
                return fact
            _check_size(spec.id, spec.size_bytes)
            if await files.in_thread(self._volume(spec.id).exists):
                message = f"the {self._name} has a file for volume {spec.id} but no record of it; restore or delete it"
                raise DriverError("RecordMissing", message)
            try:
                image = await self._bind(spec)
                await self._make(spec, image)
                fact = await files.in_thread(self._find, spec.id)
            except OSError as exc:
                if files.is_full(exc):
                    raise self._full(f"volume {spec.id}") from exc
                raise
            finally:
                if fact is None:
                    await files.in_thread(self._forget, spec.id)
            return cast(VolumeFact, fact)

    async def resize(self, volume: str, size_bytes: int) -> None:
        """Grow a volume that no machine uses; smaller or equal: nothing.

        Raises: DiskFull, DriverError (NoVolume, SizeRefused, DiskToolFailed, TimedOut).
        """
        _check_id(volume)
        async with self._lock(volume):
            fact = await files.in_thread(self._find, volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the {self._name}; create it first")
            if size_bytes <= fact.size_bytes:
                return
            _check_size(volume, size_bytes)
            # Both layers are named: nothing is probed, and the backing file that the header names is not opened.
            await self._qemu_img(f"volume {volume}", "resize", "-q", _tree(fact.path), str(size_bytes))
            # After the file: a crash between the two leaves a record that is too small, and the next resize mends it.
            await self._save(volume, VolumeRecord(size_bytes=size_bytes, image=fact.image))

    async def delete(self, volume: str) -> None:
        """Remove the volume's file; gone already is success."""
        _check_id(volume)
        async with self._lock(volume):
            await files.in_thread(self._forget, volume)

    async def packed(self, volume: str) -> AsyncGenerator[bytes]:
        """Yield a volume as a streamOptimized VMDK; what is made for it in the pool is gone at the end, whatever it is.

        Raises: DiskFull, DriverError (NoVolume, VolumeInUse, DiskToolFailed, TimedOut).
        """
        _check_id(volume)
        target = self._volumes / f"{volume}-{secrets.token_hex(4)}.raw{files.TEMPORARY}"
        async with self._packing:
            try:
                await self._flatten(volume, target)
                async with aclosing(vmdk_parts(target)) as parts:
                    async for part in parts:
                        yield part
            finally:
                await files.in_thread(files.remove, target)

    async def _flatten(self, volume: str, target: Path) -> None:
        """Write the volume as the sparse raw ``target``, which is packed while it is sent: a quick copy, a slow rest.

        Source: every layer is named, so that no header leads to another file.
        """
        fact, image = await self._copied(volume, f"packing volume {volume}")
        words = ("convert", "-q", "-O", "raw", _source(fact, image), str(target))
        await self._qemu_img(f"volume {volume}", *words, timeout_s=PACK_TIMEOUT_S)

    async def _copied(self, volume: str, subject: str) -> tuple[VolumeFact, ImageFile | None]:
        """Return what is to be copied, when there is room for a copy of it. Raises: DiskFull, DriverError (NoVolume)."""
        fact = await files.in_thread(self._find, volume)
        if fact is None:
            raise DriverError("NoVolume", f"volume {volume} is not in the {self._name}")
        image = await files.in_thread(self._cache.find, fact.image) if fact.image is not None else None
        below = image.size_bytes if image is not None else 0
        needed_bytes = (fact.used_bytes + below) * (PACKED_SHARE + 1) // PACKED_SHARE
        room = await self.capacity()
        if room.free_bytes - needed_bytes < room.total_bytes // PACKED_RESERVE_SHARE:
            raise files.full(self._name, self._folder, subject, needed_bytes)
        return fact, image

    @asynccontextmanager
    async def layers(self, volume: str, copy: Copy | None = None) -> AsyncIterator[tuple[DiskLayer, ...]]:
        """Give what the volume is read from, for the block. What an agent that dies leaves of a copy, ``open`` clears.

        Raises: DiskFull, DriverError (NoVolume, VolumeChanged, DiskToolFailed, TimedOut), and whatever ``copy`` raises.
        """
        _check_id(volume)
        if copy is None:
            fact = await files.in_thread(self._find, volume)
            if fact is None:
                raise DriverError("NoVolume", f"volume {volume} is not in the {self._name}")
            image = await files.in_thread(self._cache.find, fact.image) if fact.image is not None else None
            below = (DiskLayer(image.path, image.format),) if image is not None else ()
            before = await files.in_thread(files.mark, Path(fact.path))
            yield (DiskLayer(fact.path, "qcow2"), *below)
            if await files.in_thread(files.mark, Path(fact.path)) != before:
                raise DriverError("VolumeChanged", f"volume {volume} was written to while it was read")
            return
        target = self._volumes / f"{volume}-{secrets.token_hex(4)}{VOLUME_SUFFIX}{files.TEMPORARY}"
        try:
            async with self._packing:
                fact, _ = await self._copied(volume, f"a copy of volume {volume}")
                await self._copy_out(f"a copy of volume {volume}", fact, target, copy)
            yield (DiskLayer(str(target), "qcow2"),)
        finally:
            await files.in_thread(files.remove, target)

    async def _copy_out(self, subject: str, fact: VolumeFact, target: Path, copy: Copy) -> float:
        """Let a machine fill ``target``, and return the moment that it shows."""
        await self._qemu_img(subject, "create", "-q", "-f", "qcow2", str(target), str(fact.size_bytes))
        return await copy(str(target))

    async def snapshots(self) -> dict[str, SnapshotFact]:
        """Return every complete snapshot."""
        return await files.in_thread(self._snapshots.scan)

    async def take_snapshot(self, snapshot: str, volume: str, copy: Copy | None = None) -> SnapshotFact:
        """Keep the volume as it is at one moment, whole or not at all; there already: the one that is there.

        Raises: DiskFull, DriverError (NoVolume, VolumeInUse, DiskToolFailed, TimedOut), and whatever ``copy`` raises.
        """
        _check_id(snapshot)
        _check_id(volume)
        async with self._lock(snapshot), self._packing:
            found = await files.in_thread(self._snapshots.find, snapshot)
            if found is not None:
                return found
            fact, image = await self._copied(volume, f"snapshot {snapshot}")

            async def fill(path: Path) -> float:
                at = time.time()
                if copy is not None:
                    return await self._copy_out(f"snapshot {snapshot}", fact, path, copy)
                words = ["convert", "-q", "-O", "qcow2", _source(fact, image), str(path)]
                await self._qemu_img(f"volume {volume}", *words, timeout_s=PACK_TIMEOUT_S)
                return at

            try:
                return await self._snapshots.make(snapshot, volume, fact.size_bytes, fill)
            except OSError as exc:
                if files.is_full(exc):
                    raise self._full(f"snapshot {snapshot}") from exc
                raise

    async def delete_snapshot(self, snapshot: str) -> None:
        """Remove the snapshot; gone already is success."""
        _check_id(snapshot)
        async with self._lock(snapshot):
            await files.in_thread(self._snapshots.remove, snapshot)

    async def images(self) -> dict[str, ImageFile]:
        """Return every complete image of the cache."""
        return await files.in_thread(self._cache.scan)

    async def put_image(self, spec: ImageSpec, fetch: Fetch) -> ImageFile:
        """Cache the image, whole or not at all; there already: nothing is fetched.

        Raises: ImageRefused (DigestMismatch, SizeMismatch), DiskFull, and whatever ``fetch`` raises.
        """
        _check_id(spec.id)
        if "disk" not in spec.parts:
            raise Bug(f"image {spec.id} has no disk part")
        async with self._lock(spec.id):
            image = await files.in_thread(self._cache.find, spec.id)
            return image or await self._cache.put(spec, fetch)

    async def delete_image(self, image: str) -> None:
        """Remove an image from the cache. Raises DriverError (ImageInUse) while a volume is a child of it."""
        _check_id(image)
        async with self._lock(image), self._binding:
            children = await files.in_thread(self._children, image)
            if children:
                message = (
                    f"image {image} is the origin of {len(children)} volumes, such as {children[0]}; delete them first"
                )
                raise DriverError("ImageInUse", message)
            await files.in_thread(self._cache.remove, image)

    def _lock(self, name: str) -> asyncio.Lock:
        """Return the lock of one volume or image; it lives as long as somebody holds it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _bind(self, spec: VolumeSpec) -> ImageFile | None:
        """Write the volume's record and return its image; from now on the image cannot be deleted."""
        async with self._binding:
            image = None
            if spec.image is not None:
                _check_id(spec.image)
                image = await files.in_thread(self._cache.find, spec.image)
                if image is None:
                    raise DriverError(
                        "NoImage", f"image {spec.image} of volume {spec.id} is not cached; fetch it first"
                    )
                if image.virtual_size_bytes > spec.size_bytes:
                    smallest = f"the {image.virtual_size_bytes} bytes of its image {image.id}"
                    raise DriverError("VolumeTooSmall", f"volume {spec.id} is smaller than {smallest}; make it larger")
            await self._save(spec.id, VolumeRecord(size_bytes=spec.size_bytes, image=spec.image))
        return image

    async def _make(self, spec: VolumeSpec, image: ImageFile | None) -> None:
        """Make the file under a temporary name, then give it its own."""
        final = self._volume(spec.id)
        temporary = final.with_name(final.name + files.TEMPORARY)
        if spec.snapshot is not None:
            await self._unpack(spec, spec.snapshot, temporary)
            await files.in_thread(files.publish, temporary, final)
            return
        arguments = ["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=off,preallocation=off"]
        if image is not None:
            # -u: the image's header need not be read again, its size and format are known since its inspection.
            arguments += ["-u", "-b", image.path, "-F", image.format]
        await self._qemu_img(f"volume {spec.id}", *arguments, str(temporary), str(spec.size_bytes))
        await files.in_thread(temporary.chmod, 0o600)
        await files.in_thread(files.publish, temporary, final)

    async def _unpack(self, spec: VolumeSpec, snapshot: str, temporary: Path) -> None:
        """Make the file as a copy of a snapshot. Raises: DiskFull, DriverError (NoSnapshot, VolumeTooSmall, ...)."""
        _check_id(snapshot)
        async with self._lock(snapshot):  # it stays until it is copied
            found = await files.in_thread(self._snapshots.find, snapshot)
            if found is None:
                message = f"snapshot {snapshot} of volume {spec.id} is not in the {self._name}"
                raise DriverError("NoSnapshot", message)
            if found.size_bytes > spec.size_bytes:
                message = f"volume {spec.id} is smaller than the {found.size_bytes} bytes of its snapshot {snapshot}"
                raise DriverError("VolumeTooSmall", f"{message}; make it larger")
            subject, source = f"volume {spec.id}", _tree(found.path)
            await self._qemu_img(
                subject, "convert", "-q", "-O", "qcow2", source, str(temporary), timeout_s=PACK_TIMEOUT_S
            )
            await self._qemu_img(subject, "resize", "-q", _tree(str(temporary)), str(spec.size_bytes))
        await files.in_thread(temporary.chmod, 0o600)

    async def _qemu_img(self, subject: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Run qemu-img, which dies with the agent.

        Raises: DiskFull, DriverError (VolumeInUse, DiskToolFailed, TimedOut).
        """
        tool = (*command.DIE_WITH_AGENT, "qemu-img", *arguments)
        ended = await command.run(tool, timeout_s=timeout_s)
        if ended.code == 0:
            return
        if ended.disk_full:
            raise self._full(subject)
        if LOCKED in ended.stderr:
            raise DriverError("VolumeInUse", f"{subject} is in use by a machine; stop that first")
        words = ended.last_words.replace(f"{self._folder}/", "")
        raise DriverError("DiskToolFailed", f"qemu-img {arguments[0]} of {subject}: {words}")

    def _full(self, subject: str) -> DiskFull:
        return files.full(self._name, self._folder, subject, FIRST_BLOCKS_BYTES)

    def _volume(self, volume: str) -> Path:
        return self._volumes / (volume + VOLUME_SUFFIX)

    def _record(self, volume: str) -> Path:
        return self._volumes / (volume + RECORD_SUFFIX)

    async def _save(self, volume: str, record: VolumeRecord) -> None:
        await files.in_thread(files.write, self._record(volume), msgspec.json.encode(record))

    def _forget(self, volume: str) -> None:
        """Remove the volume, its record last, and what a half-made one left."""
        final = self._volume(volume)
        for path in (final.with_name(final.name + files.TEMPORARY), final, self._record(volume)):
            files.remove(path)

    def _find(self, volume: str) -> VolumeFact | None:
        """Return the volume as it is; None when its file or its record is not there."""
        path = self._volume(volume)
        try:
            stat = path.stat()
            record = msgspec.json.decode(self._record(volume).read_bytes(), type=VolumeRecord)
        except FileNotFoundError:
            return None
        return VolumeFact(
            id=volume,
            path=str(path),
            format="qcow2",
            size_bytes=record.size_bytes,
            used_bytes=stat.st_blocks * STAT_BLOCK_BYTES,
            image=record.image,
        )

    def _scan(self) -> dict[str, VolumeFact]:
        facts: dict[str, VolumeFact] = {}
        for path in self._volumes.glob("*" + VOLUME_SUFFIX):
            fact = self._find(path.stem)
            if fact is not None:
                facts[path.stem] = fact
            elif path.exists():
                log.warning("volume file without a record", extra={"pool": self._name, "volume": path.stem})
        return facts

    def _children(self, image: str) -> list[str]:
        """Return the volumes, made or being made, that start from ``image``."""
        records = {
            path.stem: msgspec.json.decode(path.read_bytes(), type=VolumeRecord)
            for path in self._volumes.glob("*" + RECORD_SUFFIX)
        }
        return sorted(volume for volume, record in records.items() if record.image == image)

    def _clear(self) -> None:
        """Make the folders and remove what an interrupted call left; a file without a record stays, somebody's disk."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._volumes.mkdir(mode=0o700, exist_ok=True)
        self._cache.clear()
        self._snapshots.clear()
        for path in self._volumes.glob("*" + files.TEMPORARY):
            files.remove(path)
        for path in self._volumes.glob("*" + RECORD_SUFFIX):
            if not self._volume(path.stem).exists():
                files.remove(path)


def _tree(path: str) -> str:
    """Return a qcow2 as qemu-img shall open it, whatever its header says of a backing file."""
    return f"json:{msgspec.json.encode(_qcow2(path, None)).decode()}"


def _qcow2(path: str, backing: dict[str, object] | None) -> dict[str, object]:
    return {"driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": backing}


def _source(fact: VolumeFact, image: ImageFile | None) -> str:
    return f"json:{msgspec.json.encode(_layers(fact, image)).decode()}"


def _layers(fact: VolumeFact, image: ImageFile | None) -> dict[str, object]:
    """Return the volume on its image as qemu-img shall open them: every file and format is named."""
    below: dict[str, object] | None = None
    if image is not None:
        below = {"driver": image.format, "file": {"driver": "file", "filename": image.path}}
        below |= {"backing": None} if image.format == "qcow2" else {}
    return _qcow2(fact.path, below)


def _check_id(name: str) -> None:
    """Raises: Bug when an id of ours could not be a file name."""
    if ID.fullmatch(name) is None:
        raise Bug("the id of a volume or image has characters that ids of Pileus never have")


def _check_size(volume: str, size_bytes: int) -> None:
    """Raises: DriverError (SizeRefused)."""
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
        raise DriverError(
            "SizeRefused", f"volume {volume} cannot have {size_bytes} bytes; use a multiple of {SECTOR_BYTES}"
        )
