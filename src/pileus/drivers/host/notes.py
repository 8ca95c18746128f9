"""Small notes of an agent about resources, by id, on disk before they are acted on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pileus.drivers.host.disk.files import publish
from pileus.drivers.host.errors import DriverError


class Notes(Protocol):
    """Notes by resource id."""

    def get(self, id: str) -> bytes | None:
        """Return the note, if there is one."""

    def put(self, id: str, note: bytes) -> None:
        """Write the note; durable when this returns."""

    def remove(self, id: str) -> None:
        """Remove the note; none there: nothing."""

    def ids(self) -> list[str]:
        """Return the ids that have a note."""


class FileNotes:
    """One file per note in a folder, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".tmp")}

    def get(self, id: str) -> bytes | None:
        """Return the note, if there is one."""
        return self._known.get(id)

    def put(self, id: str, note: bytes) -> None:
        """Write the note and wait for the disk. Raises DriverError (NoteRefused)."""
        temporary = self._folder / f"{id}.tmp"
        try:
            temporary.write_bytes(note)
            publish(temporary, self._folder / id)
        except OSError as error:
            message = f"the host cannot keep what it must remember of it: {error.strerror}"
            raise DriverError("NoteRefused", message) from error
        self._known[id] = note

    def remove(self, id: str) -> None:
        """Remove the note."""
        self._known.pop(id, None)
        (self._folder / id).unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """Return the ids that have a note."""
        return list(self._known)


class MemoryNotes:
    """Notes of a simulated host: they live as long as its world."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def get(self, id: str) -> bytes | None:
        """Return the note, if there is one."""
        return self._known.get(id)

    def put(self, id: str, note: bytes) -> None:
        """Keep the note."""
        self._known[id] = note

    def remove(self, id: str) -> None:
        """Forget the note."""
        self._known.pop(id, None)

    def ids(self) -> list[str]:
        """Return the ids that have a note."""
        return list(self._known)
