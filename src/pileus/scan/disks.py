"""A disk as what reads it sees it: bytes at offsets, and where something was written at all. Raw files are one kind.

Everything here runs in the jail, on open descriptors: no file is opened by a name that a disk says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Protocol

SIZE_BYTES_MAX = 16 * 1024**4
"""The largest disk that is scanned: as large as one that is taken as an image."""


class Unreadable(Exception):
    """What was to be scanned cannot be read: broken, hostile, or of a kind that is not known. Never clean."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Readable(Protocol):
    """A disk, a part of one, or a file in one."""

    @property
    def size_bytes(self) -> int:
        """How long it is."""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what may be other than zeros, ascending. Raises: Unreadable."""

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes; zeros where nothing was written or nothing is any more. Raises: Unreadable."""


class RawDisk:
    """A disk as a plain file, whose holes are skipped."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.size_bytes = os.fstat(file).st_size
        if self.size_bytes > SIZE_BYTES_MAX:
            raise too_large(self.size_bytes)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what the file has."""
        end = 0
        while end < self.size_bytes:
            try:
                start = os.lseek(self._file, end, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left
                return
            end = os.lseek(self._file, start, os.SEEK_HOLE)
            yield start, min(end, self.size_bytes)

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes."""
        return pread(self._file, offset, length)


class Span:
    """A part of a disk, as a disk of its own."""

    def __init__(self, whole: Readable, start: int, size_bytes: int) -> None:
        self._whole = whole
        self._start = start
        self.size_bytes = size_bytes

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what may be written in it. Raises: Unreadable."""
        for low, high in self._whole.ranges():
            if low >= self._start + self.size_bytes:
                return
            if high > self._start:
                yield max(low - self._start, 0), min(high - self._start, self.size_bytes)

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes of it; zeros behind its end, which are not the next part's."""
        kept = max(0, min(length, self.size_bytes - offset))
        return self._whole.read(self._start + offset, kept) + bytes(length - kept)


def pread(file: int, offset: int, length: int) -> bytes:
    """Return that many bytes of a file; zeros behind its end. Raises: Unreadable."""
    try:
        content = os.pread(file, length, offset)
        while len(content) < length and (more := os.pread(file, length - len(content), offset + len(content))):
            content += more
    except OSError as exc:
        raise Unreadable("ReadFailed", f"the disk cannot be read at {offset}: {exc.strerror}") from exc
    return content if len(content) == length else content + bytes(length - len(content))


def joined(ranges: Iterable[tuple[int, int]], gap: int) -> Iterator[tuple[int, int]]:
    """Yield ascending ranges with those made one that lie nearer than ``gap`` to each other, or over each other."""
    start, end = -1, -1
    for low, high in ranges:
        if start >= 0 and low <= end + gap:
            end = max(end, high)
            continue
        if start >= 0:
            yield start, end
        start, end = low, high
    if start >= 0:
        yield start, end


def both(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what lies in either, ascending."""
    return joined(merge(one, other), 0)


def too_large(size_bytes: int) -> Unreadable:
    """Return the refusal of a disk that says it is so large."""
    return Unreadable("TooLarge", f"the disk says it has {size_bytes} bytes, {SIZE_BYTES_MAX} are scanned at most")
