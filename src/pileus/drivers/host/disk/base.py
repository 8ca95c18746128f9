"""The contract of a local disk pool: images and volumes as files of one folder, by id, never by a user's text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from msgspec import Struct

DiskFormat = Literal["qcow2", "raw"]
UploadFormat = Literal["qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi"]
PartName = Literal["disk", "kernel", "initrd"]


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What inspection found: the real format, never guessed by a later call; sizes in bytes."""

    format: UploadFormat
    virtual_size_bytes: int
    size_bytes: int
    sha256: str = ""


class ImagePart(Struct, frozen=True, kw_only=True):
    """One file of an image, as whoever has it describes it; ``sha256`` in lower-case hexadecimal."""

    size_bytes: int
    sha256: str


class ImageSpec(Struct, frozen=True, kw_only=True):
    """An image to be cached: ``parts`` has ``disk`` always, ``kernel`` and ``initrd`` when it can be booted directly.

    ``format`` and ``virtual_size_bytes`` are what inspection found; the pool never reads them from the file again.
    """

    id: str
    format: DiskFormat
    virtual_size_bytes: int
    parts: dict[PartName, ImagePart]


class ImageFile(Struct, frozen=True, kw_only=True):
    """An image in the pool's cache; ``kernel``/``initrd`` are set when it can be booted directly."""

    id: str
    path: str
    format: DiskFormat
    size_bytes: int
    virtual_size_bytes: int
    kernel: str | None = None
    initrd: str | None = None


class VolumeSpec(Struct, frozen=True, kw_only=True):
    """A volume to be: ``image`` is the id of a cached image it starts as a copy-on-write child of, None for empty.

    ``snapshot``: of this pool, which it starts as a whole copy of instead.
    """

    id: str
    size_bytes: int
    image: str | None = None
    snapshot: str | None = None


class VolumeFact(Struct, frozen=True, kw_only=True):
    """A volume as it is: ``size_bytes`` as the guest sees it, ``used_bytes`` on the host's disk."""

    id: str
    path: str
    format: DiskFormat
    size_bytes: int
    used_bytes: int
    image: str | None = None


class SnapshotFact(Struct, frozen=True, kw_only=True):
    """A volume as it was at ``taken_at`` (Unix seconds): a whole copy, which nobody changes. Sizes as of a volume."""

    id: str
    path: str
    volume: str
    size_bytes: int
    used_bytes: int
    taken_at: float


class DiskLayer(Struct, frozen=True):
    """A file of a disk, and its format, which is always said and never guessed."""

    path: str
    format: DiskFormat


Copy = Callable[[str], Awaitable[float]]
"""Fills an empty qcow2 at a path from the machine that has the disk open, and returns the moment that it shows."""


class PoolCapacity(Struct, frozen=True, kw_only=True):
    """The file system under the pool, in bytes."""

    total_bytes: int
    free_bytes: int


class DiskPool(Protocol):
    """Images and volumes of one folder. Every call is idempotent; an interrupted one leaves nothing half-made."""

    async def open(self) -> None:
        """Make the folders and clear what an interrupted call left. Raises MissingTool without qemu-img."""

    async def capacity(self) -> PoolCapacity:
        """Return size and room of the file system."""

    async def volumes(self) -> dict[str, VolumeFact]:
        """Return every volume file of the pool."""

    async def create(self, spec: VolumeSpec) -> VolumeFact:
        """Make the volume as qcow2; there already: its fact.

        Raises: DiskFull, DriverError (NoImage, NoSnapshot; VolumeTooSmall for its image or snapshot; SizeRefused unless a
        multiple of 512).
        """

    async def resize(self, volume: str, size_bytes: int) -> None:
        """Grow a volume that no machine uses; smaller or equal: nothing. Raises DiskFull, DriverError (NoVolume)."""

    async def delete(self, volume: str) -> None:
        """Remove the volume's file."""

    def packed(self, volume: str) -> AsyncGenerator[bytes]:
        """Yield a volume that no machine uses, with what it has of its image, as a streamOptimized VMDK.

        Raises: DiskFull, DriverError (NoVolume, VolumeInUse).
        """

    def layers(self, volume: str, copy: Copy | None = None) -> AbstractAsyncContextManager[tuple[DiskLayer, ...]]:
        """Give what the volume is read from, for the block: its own file first, then what lies below it.

        With ``copy``: a whole copy of one moment, made for the block and gone after it, whatever ends it. Without: the
        volume's own files, which no machine has open. Raises: DiskFull, DriverError (NoVolume; VolumeChanged at the
        block's end when somebody wrote to it), and whatever ``copy`` raises.
        """

    async def snapshots(self) -> dict[str, SnapshotFact]:
        """Return every complete snapshot."""

    async def take_snapshot(self, snapshot: str, volume: str, copy: Copy | None = None) -> SnapshotFact:
        """Keep the volume as it is at one moment, whole or not at all; there already: the one that is there.

        ``copy`` fills an empty qcow2 at a path and returns that moment, for a volume that a machine has open; None: no
        machine has it. Raises: DiskFull, DriverError (NoVolume, VolumeInUse), and whatever ``copy`` raises.
        """

    async def delete_snapshot(self, snapshot: str) -> None:
        """Remove the snapshot; volumes that were made of it do not need it."""

    async def images(self) -> dict[str, ImageFile]:
        """Return every complete image of the cache."""

    async def put_image(self, spec: ImageSpec, fetch: Callable[[PartName], AsyncIterator[bytes]]) -> ImageFile:
        """Cache the image, whole or not at all; there already: nothing is fetched.

        Raises: ImageRefused (DigestMismatch, SizeMismatch), DiskFull, and whatever ``fetch`` raises.
        """

    async def delete_image(self, image: str) -> None:
        """Remove an image from the cache. Raises DriverError (ImageInUse) while a volume is a child of it."""
