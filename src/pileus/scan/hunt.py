"""Puts bytes before the rules, piece by piece, and keeps what was found. It knows neither jails nor clocks of its own.

A disk is looked at as bytes first: windows that lie over each other by ``OVERLAP_BYTES``, so that what lies over the
edge of one lies within the next. There a rule must match something: a rule that says only what is *not* there, or how
large a file is, would match anywhere. Then its files one by one, where their file system can be read: these show the
path, and find what lies in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from msgspec import Struct

from pileus.scan.disks import Readable, Span, Unreadable
from pileus.scan.engines import Engine, Sighting, Stopped
from pileus.scan.ext4 import FileSystem, Walk
from pileus.scan.partitions import ENCRYPTED, Place, parts
from pileus.scan.report import FINDINGS_MAX, Finding, Part

WINDOW_BYTES = 8 * 1024**2
OVERLAP_BYTES = 128 * 1024
"""The longest match that is found wherever it lies; longer ones are found within a window."""

GAP_BYTES = 64 * 1024
"""Holes up to this size are read as the zeros they are."""

EDGE_BYTES = 4096
"""Zeros of a longer hole that are read behind content, for patterns that end in zeros."""

FINDINGS_PER_RULE_MAX = 100


class Window(Struct, frozen=True):
    """Bytes from ``start`` on; what ends at or before ``known`` was in the window before."""

    start: int
    known: int
    content: bytes


class Hunt:
    """One scan by one engine. ``clock`` in seconds; ``heard`` gets each finding that is kept, at once.

    ``looked`` is called whenever more was looked at.
    """

    looked: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self, engine: Engine, heard: Callable[[Finding], None], clock: Callable[[], float], until: float
    ) -> None:
        self._engine = engine
        self._heard = heard
        self._clock = clock
        self._until = until
        self._counts: dict[str, int] = {}
        self._kept = 0
        self.left_out = 0
        self.scanned_bytes = 0
        self.files = 0
        self.problems: list[Stopped] = []
        """What was not looked at; the scan goes on."""

    def bytes_of(self, disk: Readable, start: int = 0, partition: int = 0) -> None:
        """Look at everything that is written on a disk, or on the part that begins at ``start``.

        Raises: Stopped, Unreadable.
        """
        self._windows(disk, lambda seen, at: Finding(
            rule=seen.rule, where="disk", pattern=seen.pattern, offset=start + at, length=seen.length,
            partition=partition,
        ))  # fmt: skip

    def files_of(self, disk: Readable) -> Iterator[Part]:
        """Look at the files of each part of a disk, and yield what each part is. Raises: Stopped, Unreadable."""
        for place in parts(disk):
            if place.content == ENCRYPTED:
                words = f"partition {place.number} is encrypted; nothing in it can be found"
                self.problems.append(Stopped("Encrypted", words))
            count = self._files_in(disk, place) if place.content == "ext4" else -1
            if count < 0 and self._engine.looks_at == "files":
                self.bytes_of(Span(disk, place.start, place.size_bytes), place.start, place.number)
            yield _part(place, "files" if count >= 0 else "bytes", max(0, count))

    def _files_in(self, disk: Readable, place: Place) -> int:
        """Return how many files were read; -1: none, because the file system cannot be read."""
        try:
            walk = Walk(FileSystem(Span(disk, place.start, place.size_bytes)))
            before = self.files
            for path, content in walk.files():
                try:
                    self.file(content, path, place.number)
                except Unreadable as exc:
                    walk.give_up(path, exc)
        except Unreadable as exc:
            self.problems.append(Stopped("FilesUnread", f"partition {place.number}: {exc.message}"))
            return -1
        if walk.unread:
            words = f"partition {place.number}: {walk.unread} files or folders cannot be read, first {walk.first_words}"
            self.problems.append(Stopped("FilesUnread", words))
        return self.files - before

    def file(self, content: Readable, path: str, partition: int) -> None:
        """Look at one file. Raises: Stopped, Unreadable."""

        def finding(seen: Sighting, at: int) -> Finding:
            return Finding(
                rule=seen.rule, where="file", pattern=seen.pattern, offset=at, length=seen.length, path=path,
                partition=partition,
            )  # fmt: skip

        self.files += 1
        if content.size_bytes <= self._engine.whole_bytes_max:
            self._look(Window(0, 0, content.read(0, content.size_bytes)), finding, set(), whole=True)
        else:
            self._windows(content, finding)

    def _windows(self, disk: Readable, finding: Callable[[Sighting, int], Finding]) -> None:
        before: set[str] = set()
        for window in ahead(windows(disk)):
            before = self._look(window, finding, before, whole=False)

    def _look(
        self, window: Window, finding: Callable[[Sighting, int], Finding], before: set[str], *, whole: bool
    ) -> set[str]:
        """Return the rules that match here. ``before``: those of the window before. Raises: Stopped."""
        left_s = self._until - self._clock()
        if left_s <= 0:
            raise Stopped("TimedOut", "the scan took longer than it may")
        seen = self._engine.look(window.content, left_s)
        self.scanned_bytes += len(window.content)
        self.looked()
        for one in seen:
            at = window.start + one.offset
            is_known = one.rule in before and at + one.length <= window.known
            if (whole or one.length) and not is_known:
                self._keep(finding(one, at))
        return {one.rule for one in seen}

    def _keep(self, found: Finding) -> None:
        """Let one more finding be heard, unless there are too many, of this rule or in all."""
        count = self._counts[found.rule] = self._counts.get(found.rule, 0) + 1
        # The first of each rule is always kept: many findings of one must not hide another's.
        if (count > FINDINGS_PER_RULE_MAX or self._kept >= FINDINGS_MAX // 2) and (
            count > 1 or self._kept >= FINDINGS_MAX
        ):
            self.left_out += 1
            return
        self._kept += 1
        self._heard(found)


def windows(disk: Readable) -> Iterator[Window]:
    """Yield what is written on a disk, in windows, as soon as each is known to be full. Raises: Unreadable."""
    at = known = 0
    end = -GAP_BYTES - 1
    for low, high in disk.ranges():
        if low > end + GAP_BYTES:
            if known < end:
                yield Window(at, known, disk.read(at, end - at))
            at = known = low
        end = max(end, min(high + EDGE_BYTES, disk.size_bytes))
        while end - at > WINDOW_BYTES:
            yield Window(at, known, disk.read(at, WINDOW_BYTES))
            known = at + WINDOW_BYTES
            at = known - OVERLAP_BYTES
    if known < end:
        yield Window(at, known, disk.read(at, end - at))


def ahead(found: Iterable[Window]) -> Iterator[Window]:
    """Yield the same; the next one is read while this one is looked at."""
    source = iter(found)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, source, None)
        while (window := coming.result()) is not None:
            coming = reader.submit(next, source, None)
            yield window


def _part(place: Place, read: Literal["files", "bytes"], files: int) -> Part:
    return Part(
        partition=place.number,
        start_bytes=place.start,
        size_bytes=place.size_bytes,
        content=place.content,
        read=read,
        files=files,
    )
