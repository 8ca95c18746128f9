"""A file tree in memory, owned by root and without times: what goes into an image, whoever builds it and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from pileus.kernel.errors import Bug


class Entry(Struct, frozen=True, kw_only=True):
    """One folder, file or symbolic link. ``mode`` holds permission bits; ``content`` the file's bytes or the target."""

    path: str
    kind: Literal["folder", "file", "link"]
    mode: int
    content: bytes = b""


class Tree:
    """Entries by path without leading slash. Parents come into being with their children."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder, or set the mode of one."""
        self._add(Entry(path=path, kind="folder", mode=mode))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add or replace a file."""
        self._add(Entry(path=path, kind="file", mode=mode, content=content))

    def link(self, path: str, target: str) -> None:
        """Add or replace a symbolic link."""
        self._add(Entry(path=path, kind="link", mode=0o777, content=target.encode()))

    def passes_link(self, path: str) -> bool:
        """Tell whether a folder above ``path`` is a symbolic link here."""
        parts = path.split("/")
        above = (self._entries.get("/".join(parts[:depth])) for depth in range(1, len(parts)))
        return any(entry is not None and entry.kind == "link" for entry in above)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries in the order of their paths: parents before children, the same each time."""
        return iter(self._entries[path] for path in sorted(self._entries))

    def _add(self, entry: Entry) -> None:
        parts = entry.path.split("/")
        if "" in parts or ".." in parts or any(character in entry.path for character in "\n\"'\\ "):
            raise Bug(f"not a path for an image: {entry.path!r}")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            self._entries.setdefault(parent, Entry(path=parent, kind="folder", mode=0o755))
        self._entries[entry.path] = entry
