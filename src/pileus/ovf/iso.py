"""Makes small ISO 9660 images in memory, with Joliet names: what a CD with an OVF environment needs, and no more.

The same files give the same image: it has no times. Source: ECMA-119 (4th edition); Joliet Specification (1995).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Literal

SECTOR_BYTES = 2048
_SYSTEM_SECTORS = 16
_NO_TIME = b"0" * 16 + b"\0"
_FOLDER = 2
_JOLIET_NAME_MAX = 64
_JOLIET_ESCAPE = b"%/E"

Names = Literal["plain", "joliet"]


def iso_image(files: Mapping[str, bytes], label: str) -> bytes:
    """Return the image. A key is a path with slashes; ``label`` has at most 16 characters.

    Raises: ValueError for a name that Joliet cannot say.
    """
    root = _Folder(None)
    for path, content in files.items():
        root.put(path.split("/"), content)
    image = _Image(root, label)
    return image.build()


class _File:
    """A file's content and, later, its place."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sector = 0


class _Folder:
    """A folder's entries and, for each way to name things, its place and its number in the path table."""

    def __init__(self, parent: _Folder | None) -> None:
        self.parent = parent or self
        self.entries: dict[str, _Folder | _File] = {}
        self.sectors: dict[Names, int] = {}
        self.numbers: dict[Names, int] = {}
        self._named: dict[Names, list[tuple[bytes, _Folder | _File]]] = {}

    def put(self, path: list[str], content: bytes) -> None:
        """Add a file. Raises: ValueError."""
        name, *rest = path
        if not name or len(name) > _JOLIET_NAME_MAX or name in (".", "..") or re.search(r"[*:;?\\\x00-\x1f]", name):
            raise ValueError(f"{name[:80]!r} is no name for a file on a CD")
        if not rest:
            if name in self.entries:
                raise ValueError(f"{name!r} is there twice")
            self.entries[name] = _File(content)
            return
        folder = self.entries.setdefault(name, _Folder(self))
        if isinstance(folder, _File):
            raise ValueError(f"{name!r} is a file and a folder")
        folder.put(rest, content)

    def folders(self) -> Iterator[_Folder]:
        """Yield this folder and those below it, level by level, as path tables want them."""
        level = [self]
        while level:
            yield from level
            level = [part for one in level for _, part in sorted(one.entries.items()) if isinstance(part, _Folder)]

    def named(self, names: Names) -> list[tuple[bytes, _Folder | _File]]:
        """Return the entries in the order of their names on the disk; none is added afterwards."""
        if names not in self._named:
            self._named[names] = self._name(names)
        return self._named[names]

    def _name(self, names: Names) -> list[tuple[bytes, _Folder | _File]]:
        if names == "joliet":
            found = [(name.encode("utf-16-be"), part) for name, part in self.entries.items()]
        else:
            found = list(zip(self._plain(), self.entries.values(), strict=True))
        return sorted(found, key=lambda entry: entry[0])

    def _plain(self) -> list[bytes]:
        """Return names of 8 and 3 characters, all different, as ISO 9660 level 1 demands."""
        taken: dict[bytes, None] = {}
        for name, part in self.entries.items():
            stem, _, ending = name.upper().rpartition(".") if "." in name.strip(".") else (name.upper(), "", "")
            stem, ending = re.sub("[^A-Z0-9_]", "_", stem)[:8], re.sub("[^A-Z0-9_]", "_", ending)[:3]
            tail = "" if isinstance(part, _Folder) else f".{ending};1"
            number = 0
            while (said := f"{stem}{tail}".encode()) in taken:
                number += 1
                stem = f"{stem[: 8 - len(str(number))]}{number}"
            taken[said] = None
        return list(taken)


class _Image:
    """Where everything lies: descriptors, path tables, folders, files."""

    def __init__(self, root: _Folder, label: str) -> None:
        self._root = root
        self._label = label
        self._folders = list(root.folders())
        self._next = _SYSTEM_SECTORS + 3
        self._tables: dict[Names, tuple[int, int]] = {}
        for names in ("plain", "joliet"):
            self._place(names)
        for folder in self._folders:
            for _, part in sorted(folder.entries.items()):
                if isinstance(part, _File):
                    part.sector = self._take(len(part.content))

    def _place(self, names: Names) -> None:
        for number, folder in enumerate(self._folders, 1):
            folder.numbers[names] = number
            folder.sectors[names] = 0
        length = len(self._path_table(names, "<"))
        self._tables[names] = self._take(length), self._take(length)
        for folder in self._folders:
            folder.sectors[names] = self._take(len(_records(folder, names)))

    def _take(self, length: int) -> int:
        first = self._next
        self._next += -(-length // SECTOR_BYTES)
        return first

    def build(self) -> bytes:
        """Return all sectors."""
        parts = [(_SYSTEM_SECTORS, self._volume("plain")), (_SYSTEM_SECTORS + 1, self._volume("joliet"))]
        parts.append((_SYSTEM_SECTORS + 2, b"\xffCD001\x01"))
        for names, (little, big) in self._tables.items():
            parts += [(little, self._path_table(names, "<")), (big, self._path_table(names, ">"))]
            parts += [(folder.sectors[names], _records(folder, names)) for folder in self._folders]
        files = (part for folder in self._folders for part in folder.entries.values() if isinstance(part, _File))
        parts += [(file.sector, file.content) for file in files]
        image = bytearray(self._next * SECTOR_BYTES)
        for sector, content in parts:
            image[sector * SECTOR_BYTES : sector * SECTOR_BYTES + len(content)] = content
        return bytes(image)

    def _path_table(self, names: Names, order: Literal["<", ">"]) -> bytes:
        table = b""
        for folder in self._folders:
            name = next((said for said, part in folder.parent.named(names) if part is folder), b"\0")
            table += struct.pack(f"{order}BBIH", len(name), 0, folder.sectors[names], folder.parent.numbers[names])
            table += name + bytes(len(name) % 2)
        return table

    def _volume(self, names: Names) -> bytes:
        """Return the volume's descriptor (ECMA-119 8.4, 8.5)."""
        joliet = names == "joliet"
        little, big = self._tables[names]

        def text(value: str, length: int) -> bytes:
            if joliet:
                return value.ljust(length // 2).encode("utf-16-be")[: length // 2 * 2].ljust(length, b"\0")
            return value.encode("ascii", "replace").ljust(length)[:length]

        root = _record(b"\0", self._root.sectors[names], len(_records(self._root, names)), _FOLDER)
        return b"".join((
            struct.pack("<B5sBB", 2 if joliet else 1, b"CD001", 1, 0), text("", 32), text(self._label, 32), bytes(8),
            _both32(self._next), (_JOLIET_ESCAPE if joliet else b"").ljust(32, b"\0"), _both16(1), _both16(1),
            _both16(SECTOR_BYTES), _both32(len(self._path_table(names, "<"))), struct.pack("<II", little, 0),
            struct.pack(">II", big, 0), root, text("", 512), text("", 37 * 3), _NO_TIME * 4, b"\1",
        ))  # fmt: skip


def _records(folder: _Folder, names: Names) -> bytes:
    """Return the folder's records in whole sectors: itself, its parent, its entries."""
    sectors = [b""]

    def add(record: bytes) -> None:
        # A record never goes over the end of a sector (ECMA-119 6.8.1.1).
        if len(sectors[-1]) + len(record) > SECTOR_BYTES:
            sectors[-1] = sectors[-1].ljust(SECTOR_BYTES, b"\0")
            sectors.append(b"")
        sectors[-1] += record

    for name, place in ((b"\0", folder), (b"\1", folder.parent)):
        add(_record(name, place.sectors[names], _folder_bytes(place, names), _FOLDER))
    for name, part in folder.named(names):
        if isinstance(part, _File):
            add(_record(name, part.sector, len(part.content), 0))
        else:
            add(_record(name, part.sectors[names], _folder_bytes(part, names), _FOLDER))
    sectors[-1] = sectors[-1].ljust(SECTOR_BYTES, b"\0")
    return b"".join(sectors)


def _folder_bytes(folder: _Folder, names: Names) -> int:
    """Return how long the folder's records are, with the same care for the ends of sectors."""
    used, sectors = 0, 1
    for name in (b"\0", b"\1", *(name for name, _ in folder.named(names))):
        length = 33 + len(name) + (len(name) + 1) % 2
        if used + length > SECTOR_BYTES:
            used, sectors = 0, sectors + 1
        used += length
    return sectors * SECTOR_BYTES


def _record(name: bytes, sector: int, length: int, flags: int) -> bytes:
    """Return a directory record (ECMA-119 9.1)."""
    padded = name + bytes((len(name) + 1) % 2)
    head = struct.pack("<BB", 33 + len(padded), 0) + _both32(sector) + _both32(length) + bytes(7)
    return head + struct.pack("<BBB", flags, 0, 0) + _both16(1) + struct.pack("<B", len(name)) + padded


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _both32(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)
