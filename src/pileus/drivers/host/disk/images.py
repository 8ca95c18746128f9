"""The cache of images of one pool: a folder per image that appears whole, under its own name, or not at all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import cast

import msgspec

from pileus.drivers.host.disk import files
from pileus.drivers.host.disk.base import ImageFile, ImageSpec, PartName

BATCH_BYTES = 1024 * 1024
"""Chunks are gathered to this much before a thread hashes and writes them."""

RECORD = "image.json"

Fetch = Callable[[PartName], AsyncIterator[bytes]]


class ImageCache:
    """The images in ``folder``; its owner sees to it that one image is not put and removed at once."""

    def __init__(self, folder: Path, pool: str) -> None:
        self._folder = folder
        self._pool = pool

    async def put(self, spec: ImageSpec, fetch: Fetch) -> ImageFile:
        """Write every part and the record beside the cache, then move the folder in.

        Raises: ImageRefused (DigestMismatch, SizeMismatch), DiskFull, and whatever ``fetch`` raises.
        """
        subject = f"image {spec.id}"
        needed_bytes = sum(part.size_bytes for part in spec.parts.values())
        if files.capacity(self._folder).free_bytes < needed_bytes:
            raise files.full(self._pool, self._folder, subject, needed_bytes)
        temporary = self._folder / (spec.id + files.TEMPORARY)
        try:
            await self._fill(temporary, spec, fetch)
            await files.in_thread(files.publish, temporary, self._folder / spec.id)
        except OSError as exc:
            if files.is_full(exc):
                raise files.full(self._pool, self._folder, subject, needed_bytes) from exc
            raise
        finally:
            await files.in_thread(files.remove, temporary)
        return cast(ImageFile, self.find(spec.id))

    async def _fill(self, temporary: Path, spec: ImageSpec, fetch: Fetch) -> None:
        """Write every part, verified, and the record."""
        await files.in_thread(_make_empty, temporary)
        for name, part in spec.parts.items():
            chunks = fetch(name)
            with files.VerifiedFile(temporary / name, part, f"the {name} of image {spec.id}") as file:
                try:
                    await _pour(chunks, file)
                finally:
                    await _close(chunks)
        await files.in_thread(files.write, temporary / RECORD, msgspec.json.encode(spec))

    def find(self, image: str) -> ImageFile | None:
        """Return the image when it is in the cache."""
        folder = self._folder / image
        try:
            spec = msgspec.json.decode((folder / RECORD).read_bytes(), type=ImageSpec)
        except FileNotFoundError:
            return None
        return ImageFile(
            id=image,
            path=str(folder / "disk"),
            format=spec.format,
            size_bytes=spec.parts["disk"].size_bytes,
            virtual_size_bytes=spec.virtual_size_bytes,
            kernel=str(folder / "kernel") if "kernel" in spec.parts else None,
            initrd=str(folder / "initrd") if "initrd" in spec.parts else None,
        )

    def scan(self) -> dict[str, ImageFile]:
        """Return every image of the cache."""
        found = (self.find(path.name) for path in self._folder.iterdir() if path.suffix != files.TEMPORARY)
        return {image.id: image for image in found if image is not None}

    def remove(self, image: str) -> None:
        """Take the image out of the cache in one step, then remove its files; gone already is success."""
        folder, doomed = self._folder / image, self._folder / (image + files.TEMPORARY)
        if folder.exists():
            folder.rename(doomed)
        files.remove(doomed)

    def clear(self) -> None:
        """Make the folder and remove what an interrupted call left."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.glob("*" + files.TEMPORARY):
            files.remove(path)


def _make_empty(folder: Path) -> None:
    files.remove(folder)
    folder.mkdir(mode=0o700)


async def _pour(chunks: AsyncIterator[bytes], file: files.VerifiedFile) -> None:
    """Write all chunks, a batch at a time."""
    batch = bytearray()
    async for chunk in chunks:
        batch += chunk
        if len(batch) >= BATCH_BYTES:
            await files.in_thread(file.append, bytes(batch))
            batch.clear()
    await files.in_thread(file.append, bytes(batch))
    await files.in_thread(file.finish)


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Let a generator that was not read to its end go of its connection now."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()
