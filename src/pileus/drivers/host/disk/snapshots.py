"""Snapshots of one pool: whole copies of volumes, each a file that depends on no other and is never written again.

A snapshot is there when ``<id>.qcow2`` is; its record is written before and removed after it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from pileus.drivers.host.disk import files
from pileus.drivers.host.disk.base import SnapshotFact

SUFFIX, RECORD_SUFFIX = ".qcow2", ".json"
STAT_BLOCK_BYTES = 512

Fill = Callable[[Path], Awaitable[float]]
"""Makes the file at a path, and returns the moment that it shows (Unix seconds)."""


class SnapshotRecord(Struct, frozen=True, kw_only=True):
    """What the pool knows of a snapshot, kept beside it."""

    volume: str
    size_bytes: int
    taken_at: float


class SnapshotFolder:
    """The snapshots in ``folder``; its owner sees to it that one is not made and removed at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def make(self, snapshot: str, volume: str, size_bytes: int, fill: Fill) -> SnapshotFact:
        """Let ``fill`` write the file, and give it its name when all of it is on the disk; or leave nothing."""
        final = self._path(snapshot)
        temporary = final.with_name(final.name + files.TEMPORARY)
        fact = None
        try:
            taken_at = await fill(temporary)
            record = SnapshotRecord(volume=volume, size_bytes=size_bytes, taken_at=taken_at)
            await files.in_thread(files.write, self._record(snapshot), msgspec.json.encode(record))
            await files.in_thread(_publish, temporary, final)
            fact = self.find(snapshot)
        finally:
            if fact is None:
                await files.in_thread(self.remove, snapshot)
        assert fact is not None
        return fact

    def find(self, snapshot: str) -> SnapshotFact | None:
        """Return the snapshot; None when its file or its record is not there."""
        path = self._path(snapshot)
        try:
            stat = path.stat()
            record = msgspec.json.decode(self._record(snapshot).read_bytes(), type=SnapshotRecord)
        except FileNotFoundError:
            return None
        used_bytes = stat.st_blocks * STAT_BLOCK_BYTES
        return SnapshotFact(id=snapshot, path=str(path), used_bytes=used_bytes, **msgspec.structs.asdict(record))

    def scan(self) -> dict[str, SnapshotFact]:
        """Return every snapshot."""
        found = (self.find(path.stem) for path in self._folder.glob("*" + SUFFIX))
        return {fact.id: fact for fact in found if fact is not None}

    def remove(self, snapshot: str) -> None:
        """Remove the snapshot, its record last, and what a half-made one left."""
        final = self._path(snapshot)
        for path in (final.with_name(final.name + files.TEMPORARY), final, self._record(snapshot)):
            files.remove(path)

    def clear(self) -> None:
        """Make the folder and remove what an interrupted call left; a file without a record stays."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.glob("*" + files.TEMPORARY):
            files.remove(path)
        for path in self._folder.glob("*" + RECORD_SUFFIX):
            if not self._path(path.stem).exists():
                files.remove(path)

    def _path(self, snapshot: str) -> Path:
        return self._folder / (snapshot + SUFFIX)

    def _record(self, snapshot: str) -> Path:
        return self._folder / (snapshot + RECORD_SUFFIX)


def _publish(temporary: Path, final: Path) -> None:
    os.chmod(temporary, 0o400)
    files.publish(temporary, final)
