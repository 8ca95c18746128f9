"""The contract of a local disk pool: images and volumes as files of one folder, by id, never by a user's text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from msgspec import Struct

DiskFormat = Literal["qcow2", "raw"]


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What inspection found: the real format, never guessed by a later call; sizes in bytes."""

    format: DiskFormat
    virtual_size_bytes: int
    size_bytes: int
    sha256: str = ""


class ImageFile(Struct, frozen=True, kw_only=True):
    """An image in the pool's cache; ``kernel``/``initrd`` are set when it can be booted directly."""

    id: str
    path: str
    format: DiskFormat
    size_bytes: int
    kernel: str | None = None
    initrd: str | None = None


class VolumeSpec(Struct, frozen=True, kw_only=True):
    """A volume to be: ``image`` is the id of a cached image it starts as a copy-on-write child of, None for empty."""

    id: str
    size_bytes: int
    image: str | None = None


class VolumeFact(Struct, frozen=True, kw_only=True):
    """A volume as it is: ``size_bytes`` as the guest sees it, ``used_bytes`` on the host's disk."""

    id: str
    path: str
    format: DiskFormat
    size_bytes: int
    used_bytes: int
    image: str | None = None


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
        """Make the volume as qcow2; there already: its fact. Raises DiskFull, DriverError (NoImage)."""

    async def resize(self, volume: str, size_bytes: int) -> None:
        """Grow a volume that no machine uses; smaller or equal: nothing. Raises DiskFull."""

    async def delete(self, volume: str) -> None:
        """Remove the volume's file."""

    async def images(self) -> dict[str, ImageFile]:
        """Return every complete image of the cache."""

    async def put_image(self, image: str, part: Literal["disk", "kernel", "initrd"], chunks: AsyncIterator[bytes],
                        sha256: str, format: DiskFormat = "qcow2") -> None:
        """Write one part of an image into the cache, atomically. Raises ImageRefused (DigestMismatch), DiskFull."""

    async def delete_image(self, image: str) -> None:
        """Remove an image from the cache. Raises DriverError (ImageInUse) while a volume is a child of it."""
