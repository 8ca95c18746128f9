"""The part of the cloud that concerns this host, as the server last said it, saved so that the agent can go on alone."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from pileus.drivers.host.disk.files import publish
from pileus.kernel.stream import Body


class Saved(Struct, frozen=True):
    """A slice at a revision."""

    revision: int = 0
    bodies: dict[str, Body] = {}


class SliceFile(Protocol):
    """Where the slice is kept."""

    def load(self) -> Saved:
        """Return what was saved last; an empty slice when nothing was."""

    def save(self, saved: Saved) -> None:
        """Keep the slice."""


class DiskSlice:
    """One file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Saved:
        """Return what was saved; a file that cannot be read counts as none, the server says everything again."""
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=Saved)
        except (FileNotFoundError, msgspec.DecodeError):
            return Saved()

    def save(self, saved: Saved) -> None:
        """Write the slice and wait for the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.msgpack.encode(saved))
        publish(temporary, self._path)


class MemorySlice:
    """The slice of a simulated host."""

    def __init__(self) -> None:
        self._saved = Saved()

    def load(self) -> Saved:
        """Return what was kept."""
        return self._saved

    def save(self, saved: Saved) -> None:
        """Keep the slice."""
        self._saved = saved
