"""Images on the server's disk: uploads land here whole or not at all, and hosts fetch what was found clean.

An upload may come in pieces, with breaks between them; what came of it waits under a name of its own.

Nothing a user says becomes a path: folders are ids, files are the words in ``PARTS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.ids import is_id
from pileus.server.problems import NoSpace

UPLOADS = {"disk": "upload", "kernel": "kernel", "initrd": "initrd"}
"""What users upload, and the file it lands in: a disk is inspected before it becomes ``disk``."""
PARTS = ("disk", "kernel", "initrd")
"""What hosts fetch."""
FREE_BYTES_MIN = 268_435_456
"""Room that uploads leave on the disk, so that the database beside them can go on."""
WRITE_BYTES = 1_048_576
"""Handed to the disk's thread at once."""
UNFINISHED = ".unfinished-"
"""The beginning of the names of uploads that may go on; the part follows."""
UNFINISHED_S = 86_400.0
"""How long they wait."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Received(Struct, frozen=True, kw_only=True):
    """An upload that is on disk."""

    sha256: str
    size_bytes: int


class ImageStore:
    """The folder of images: ``<id>/upload``, ``<id>/disk``, ``<id>/kernel``, ``<id>/initrd``.

    Several servers may share it (a network file system); ``server`` keeps their unfinished uploads apart.
    """

    def __init__(self, folder: Path, server: str = "server", *, free_bytes_min: int = FREE_BYTES_MIN) -> None:
        self._folder = folder
        self._prefix = f".{hashlib.sha256(server.encode()).hexdigest()[:16]}."
        self._free_bytes_min = free_bytes_min
        self._receiving: set[tuple[str, str]] = set()
        self._digests: dict[Path, tuple[int, hashlib._Hash]] = {}
        """Of unfinished uploads that this server wrote: so far they need not be read again."""

    def open(self) -> None:
        """Have the folder, without what this server's earlier life left unfinished."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._folder.glob(f"*/{self._prefix}*"):
            leftover.unlink(missing_ok=True)

    def path(self, image_id: str, file: str) -> Path:
        """Return where a file of an image is or would be. Raises: NotFound for what is no id or no such file."""
        if not is_id(image_id) or file not in (*PARTS, "upload"):
            raise NotFound(f"an image has no {file!r}")
        return self._folder / image_id / file

    def present(self, image_id: str, file: str) -> Path | None:
        """Return the file if it is there."""
        path = self.path(image_id, file)
        return path if path.is_file() else None

    def remove(self, image_id: str) -> None:
        """Remove everything of an image; gone already: nothing."""
        folder = self.path(image_id, "disk").parent
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    async def receive(
        self, image_id: str, part: str, body: AsyncIterator[bytes], *, announced: int | None, digests: tuple[str, ...]
    ) -> Received:
        """Store an upload and return its SHA-256 and size; the file appears only when all of it is durable.

        ``digests``: what its SHA-256 must be, in hex; empty ones do not count.
        Raises: NoSpace, Conflict (uploading) while another upload of this part runs, Invalid (digest-mismatch), and
        what ``body`` raises.
        """
        target = self.path(image_id, UPLOADS[part])
        temporary = target.with_name(f"{self._prefix}{secrets.token_hex(8)}")
        with self._alone(image_id, part):
            try:
                await asyncio.to_thread(self._make_room, target.parent, announced or 0)
                digest = hashlib.sha256()
                size = await self._pour(temporary, digest, body)
                received = Received(sha256=digest.hexdigest(), size_bytes=size)
                _check_digests(received, digests, part)
                await asyncio.to_thread(_publish, temporary, target)
                self._forget(_unfinished(target, part))
            finally:
                temporary.unlink(missing_ok=True)
        return received

    def offset(self, image_id: str, part: str) -> int:
        """Return how much of an unfinished upload is here, in bytes."""
        path = _unfinished(self.path(image_id, UPLOADS[part]), part)
        return path.stat().st_size if path.is_file() else 0

    async def append(
        self, image_id: str, part: str, body: AsyncIterator[bytes], *, at: int, digests: tuple[str, ...] | None
    ) -> Received | None:
        """Add a piece to an unfinished upload; what comes before ``body`` breaks stays. ``digests``: it is the last one.

        Raises: as ``receive``; Conflict (upload-offset) when ``at`` is not how much is here.
        """
        target = self.path(image_id, UPLOADS[part])
        path = _unfinished(target, part)
        with self._alone(image_id, part):
            here = self.offset(image_id, part)
            if here != at:
                raise Conflict(f"{here} bytes of the {part} are here, not {at}; go on there", code="upload-offset")
            await asyncio.to_thread(self._make_room, target.parent, 0)
            digest = await asyncio.to_thread(self._digest_of, path, here)
            try:
                await self._pour(path, digest, body)
            finally:
                self._digests[path] = (self.offset(image_id, part), digest)
            if digests is None:
                return None
            received = Received(sha256=digest.hexdigest(), size_bytes=self.offset(image_id, part))
            try:
                _check_digests(received, digests, part)
                await asyncio.to_thread(_publish, path, target)
            finally:
                self._forget(path)
        return received

    def forget_unfinished(self, now: float) -> None:
        """Remove unfinished uploads to which nothing came for long. ``now``: Unix seconds."""
        for path in self._folder.glob(f"*/{UNFINISHED}*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - UNFINISHED_S:
                    self._forget(path)

    def _forget(self, unfinished: Path) -> None:
        self._digests.pop(unfinished, None)
        unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self, image_id: str, part: str) -> Iterator[None]:
        """Let one upload of a part run. Raises: Conflict (uploading), NoSpace for a full disk in the block."""
        if (image_id, part) in self._receiving:
            raise Conflict(f"another upload of this image's {part} is under way", code="uploading")
        self._receiving.add((image_id, part))
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise NoSpace("the server's disk is full; its operator must free some and you upload again") from error
            raise
        finally:
            self._receiving.discard((image_id, part))

    def _digest_of(self, path: Path, size_bytes: int) -> hashlib._Hash:
        """Return the digest of what is here already."""
        known = self._digests.pop(path, None)
        if known is not None and known[0] == size_bytes:
            return known[1]
        digest = hashlib.sha256()
        if size_bytes:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(WRITE_BYTES):
                    digest.update(chunk)
        return digest

    def _make_room(self, folder: Path, size_bytes: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size_bytes + self._free_bytes_min:
            room = max(free - self._free_bytes_min, 0)
            raise NoSpace(
                f"the server's disk has room for {room} bytes, the upload has {size_bytes}; its operator must free some"
            )

    async def _pour(self, path: Path, digest: hashlib._Hash, body: AsyncIterator[bytes]) -> int:
        """Write all of the body behind what the file has, and return how much came; it is durable then."""
        size = 0
        with path.open("ab", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            pending = bytearray()
            async for part in body:
                pending += part
                if len(pending) >= WRITE_BYTES:
                    size += len(pending)
                    await asyncio.to_thread(self._append, file, digest, bytes(pending))
                    pending.clear()
            size += len(pending)
            await asyncio.to_thread(self._append, file, digest, bytes(pending))
            await asyncio.to_thread(os.fsync, file.fileno())
        return size

    def _append(self, file: BinaryIO, digest: hashlib._Hash, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = file.write(view)
            digest.update(view[:written])
            view = view[written:]
        if shutil.disk_usage(self._folder).free < self._free_bytes_min:
            raise OSError(errno.ENOSPC, "the disk has less than the reserve")


def _unfinished(target: Path, part: str) -> Path:
    return target.with_name(UNFINISHED + part)


def _publish(temporary: Path, target: Path) -> None:
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_digests(received: Received, digests: tuple[str, ...], part: str) -> None:
    if received.size_bytes == 0:
        raise Invalid(f"the uploaded {part} is empty", code="empty-upload")
    for wanted in digests:
        if wanted and wanted.lower() != received.sha256:
            raise Invalid(
                f"the uploaded {part} has SHA-256 {received.sha256}, not {wanted}; it was changed on the way or is "
                "another file; nothing was kept",
                code="digest-mismatch",
            )
