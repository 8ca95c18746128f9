"""Where a package's files lie when they can be read in any order: a folder, or an archive in a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from pileus.ovf.faults import Faults, refusal, shown
from pileus.ovf.limits import Limits
from pileus.ovf.names import is_ignored
from pileus.ovf.tar import CHUNK_BYTES, members_of_file


class Store(Protocol):
    """A package's files by name; names are safe (see ``names``)."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all files, or of those in the folder itself."""

    def size_of(self, name: str) -> int | None:
        """Return a file's length in bytes; None when there is no such file. Raises: OvfFault, when it is no plain file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Raises: OvfFault."""

    def close(self) -> None:
        """Let go of it."""


class Archive:
    """An ``.ova``: a tar archive, of which one pass has read the headers."""

    def __init__(self, path: Path, faults: Faults, limits: Limits) -> None:
        self._file = _open(path)
        try:
            size = _regular_size(self._file, path)
            found = members_of_file(self._file, size, faults, limits)
            self._members = {member.name: (member.offset, member.size_bytes) for member in found}
        except BaseException:
            self._file.close()
            raise

    def names(self) -> tuple[str, ...]:
        """Return the names of all members, in the archive's order."""
        return tuple(self._members)

    def size_of(self, name: str) -> int | None:
        """Return a member's length in bytes."""
        found = self._members.get(name)
        return found and found[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a member's bytes."""
        offset, left = self._members[name]
        while left:
            chunk = _read(self._file, min(left, CHUNK_BYTES), offset, name)
            offset, left = offset + len(chunk), left - len(chunk)
            yield chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Folder:
    """A folder; no link is followed below it."""

    def __init__(self, path: Path) -> None:
        try:
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            _unreadable(path.name, error)

    def names(self) -> tuple[str, ...]:
        """Return the names of the plain files in it, sorted."""
        with os.scandir(self._folder) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        return tuple(sorted(name for name in files if not is_ignored(name)))

    def size_of(self, name: str) -> int | None:
        """Return a file's length in bytes."""
        try:
            descriptor = self._open(name)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        with open(self._open(name), "rb", buffering=0) as file:
            while chunk := _read(file, CHUNK_BYTES, None, name):
                yield chunk

    def close(self) -> None:
        """Close the folder."""
        os.close(self._folder)

    def _open(self, name: str) -> int:
        """Open a file, part by part. Raises: FileNotFoundError, OvfFault."""
        *folders, last = name.split("/")
        current = os.dup(self._folder)
        try:
            for part in folders:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = below
            # Without blocking: opening a FIFO would wait for its writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            found = os.open(last, flags, dir_fd=current)
        except FileNotFoundError:
            raise
        except OSError as error:
            _unreadable(name, error)
        finally:
            os.close(current)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise refusal("not-a-file", f"{shown(name)} is no plain file", file=name)
        return found


def _open(path: Path) -> BinaryIO:
    try:
        return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    except OSError as error:
        _unreadable(path.name, error)


def _regular_size(file: BinaryIO, path: Path) -> int:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise refusal("not-a-file", f"{shown(path.name)} is no plain file", file=path.name)
    return found.st_size


def _read(file: BinaryIO, count: int, offset: int | None, name: str) -> bytes:
    try:
        chunk = file.read(count) if offset is None else os.pread(file.fileno(), count, offset)
    except OSError as error:
        _unreadable(name, error)
    if not chunk and offset is not None:
        raise refusal("truncated", f"{shown(name)} became shorter while it was read", file=name)
    return chunk


def _unreadable(name: str, error: OSError) -> NoReturn:
    link = " (links are not followed)" if error.errno in (40, 20) else ""
    raise refusal("unreadable", f"{shown(name)} cannot be read: {error.strerror or error}{link}", file=name) from error
