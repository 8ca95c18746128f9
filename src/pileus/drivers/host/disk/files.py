"""File steps that are done wholly or not at all, also when the power fails. Blocking: call them by ``in_thread``."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from pileus.drivers.host.disk.base import ImagePart, PoolCapacity
from pileus.drivers.host.errors import DiskFull, ImageRefused

P = ParamSpec("P")
T = TypeVar("T")

TEMPORARY = ".tmp"
"""The end of every name that an interrupted call may leave; ids have no dot, so no real file ends like this."""


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``function`` returns; a cancelled caller goes on only once the thread is done with the disk."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        # Read it, or asyncio reports an exception that nobody took.
        work.exception()
        raise


def is_full(exc: OSError) -> bool:
    """Return whether the file system (or a quota on it) had no room."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT)


def capacity(folder: Path) -> PoolCapacity:
    """Return size and room of the file system under ``folder``, without what is reserved for root."""
    room = os.statvfs(folder)
    return PoolCapacity(total_bytes=room.f_blocks * room.f_frsize, free_bytes=room.f_bavail * room.f_frsize)


def full(pool: str, folder: Path, subject: str, needed_bytes: int) -> DiskFull:
    """Return the error that says what was needed, what is free, and what to do."""
    free_bytes = capacity(folder).free_bytes
    return DiskFull(
        f"the {pool} has no room for {subject}: it needs {needed_bytes} bytes and {free_bytes} are free; "
        "delete volumes or images, or give the pool more room"
    )


def mark(path: Path) -> tuple[int, ...]:
    """Return what differs once somebody wrote to the file, or put another in its place; nothing for one that is gone."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return ()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def sync(path: Path) -> None:
    """Return once the file's content, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file or folder its real name, durably."""
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)


def write(path: Path, content: bytes) -> None:
    """Make ``path`` hold ``content``: after a crash it has the old content or the new, never a part."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.write_bytes(content)
        publish(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file or a whole folder, durably; gone already is success."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
    sync(path.parent)


class VerifiedFile:
    """A file being written whose size and digest must come out as announced."""

    def __init__(self, path: Path, part: ImagePart, name: str) -> None:
        self._part = part
        self._name = name
        self._digest = hashlib.sha256()
        self._written_bytes = 0
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def __enter__(self) -> VerifiedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, content: bytes) -> None:
        """Write on. Raises ImageRefused (SizeMismatch) as soon as it is too long."""
        self._written_bytes += len(content)
        if self._written_bytes > self._part.size_bytes:
            raise ImageRefused(
                "SizeMismatch", f"{self._name} is longer than the {self._part.size_bytes} bytes announced"
            )
        self._digest.update(content)
        self._file.write(content)

    def finish(self) -> None:
        """Return once all is on the disk and right. Raises ImageRefused (SizeMismatch, DigestMismatch)."""
        if self._written_bytes != self._part.size_bytes:
            message = (
                f"{self._name} has {self._written_bytes} bytes, {self._part.size_bytes} were announced; send it again"
            )
            raise ImageRefused("SizeMismatch", message)
        if self._digest.hexdigest() != self._part.sha256:
            raise ImageRefused("DigestMismatch", f"{self._name} does not have the announced SHA-256; send it again")
        self._file.flush()
        os.fsync(self._file.fileno())
