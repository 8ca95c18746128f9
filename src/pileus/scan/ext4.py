"""Reads the files of an ext2, ext3 or ext4 file system out of a disk: nothing is mounted, no journal is replayed.

What the file system says is never trusted: every number is compared with what can be, every loop has an end, and a file
that cannot be read is one that was not scanned. Source: the Linux kernel's Documentation/filesystems/ext4.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct

from pileus.scan.disks import Readable, Unreadable
from pileus.scan.report import printable

SUPERBLOCK_AT = 1024
ROOT = 2

_MAGIC = 0xEF53
_FILETYPE, _META_BG, _EXTENTS, _64BIT = 0x2, 0x10, 0x40, 0x80
_KNOWN = (
    _FILETYPE
    | 0x4
    | _META_BG
    | _EXTENTS
    | _64BIT
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000
)
"""Those and: recovery, MMP, flexible groups, values in inodes, checksum seed, large folders, inline, encryption, casefold."""

_SPARSE_SUPER = 0x1

_FLAG_EXTENTS, _FLAG_INLINE, _FLAG_ENCRYPTED = 0x8_0000, 0x1000_0000, 0x800
_FOLDER, _FILE = 0x4000, 0x8000
_EXTENT_MAGIC = 0xF30A
_DEPTH_MAX = 5
_PIECES_MAX = 200_000
"""Pieces of one file that are kept in memory; 4 KiB each at worst would still be a file of 800 MB."""

_PATH_LENGTH_MAX = 4096
_FOLDERS_WAITING_MAX = 200_000
_XATTR_MAGIC = 0xEA02_0000
_XATTR_SYSTEM = 7


class Entry(Struct, frozen=True):
    """A name in a folder."""

    inode: int
    name: bytes


class Inode(Struct, frozen=True):
    """What is needed of an inode. ``body``: all its bytes."""

    number: int
    mode: int
    size_bytes: int
    flags: int
    body: bytes

    @property
    def kind(self) -> int:
        return self.mode & 0xF000

    @property
    def map(self) -> bytes:
        return self.body[40:100]


class File:
    """The content of a file, by its pieces: (first block in the file, first on the disk, how many)."""

    def __init__(self, system: FileSystem, size_bytes: int, pieces: list[tuple[int, int, int]]) -> None:
        self.size_bytes = size_bytes
        self._system = system
        self._pieces = pieces
        self._starts = [piece[0] for piece in pieces]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what was written."""
        block = self._system.block_bytes
        for first, _, count in self._pieces:
            if first * block < self.size_bytes:
                yield first * block, min((first + count) * block, self.size_bytes)

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes."""
        block = self._system.block_bytes
        pieces = []
        end = offset + length
        while offset < end:
            at = bisect_right(self._starts, offset // block) - 1
            first, place, count = self._pieces[at] if at >= 0 else (0, 0, 0)
            if offset < (first + count) * block:
                room = min(end, (first + count) * block) - offset
                pieces.append(self._system.disk.read(place * block + offset - first * block, room))
            else:
                following = self._starts[at + 1] * block if at + 1 < len(self._starts) else end
                room = min(end, following) - offset
                pieces.append(bytes(room))
            offset += room
        return b"".join(pieces)


class Inline:
    """The content of a small file that lies in its inode."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the whole."""
        yield 0, self.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes."""
        return self._content[offset : offset + length].ljust(length, b"\0")


class FileSystem:
    """A file system on a disk or a part of one. Raises: Unreadable for one that cannot be."""

    def __init__(self, disk: Readable) -> None:
        self.disk = disk
        block = disk.read(SUPERBLOCK_AT, 1024)
        inodes, blocks, _, _, _, first, log, _, per_group, _, inodes_per_group = struct.unpack_from("<11I", block)
        (magic,) = struct.unpack_from("<H", block, 0x38)
        self._incompatible, self._read_only = struct.unpack_from("<II", block, 0x60)
        if magic != _MAGIC or log > 6 or not 0 < inodes_per_group <= 1 << 22 or not 0 < per_group <= 1 << 22:
            raise Unreadable("BadFileSystem", "its superblock is damaged")
        if self._incompatible & ~_KNOWN:
            unknown = self._incompatible & ~_KNOWN
            raise Unreadable("Unsupported", f"it needs features of ext4 that are not read ({unknown:#x})")
        self.block_bytes: int = 1024 << log
        self.blocks = blocks | (_number(block, 0x150) << 32 if self._incompatible & _64BIT else 0)
        self._inodes: int = inodes
        self._inodes_per_group: int = inodes_per_group
        self._first: int = first
        self._per_group: int = per_group
        revision = _number(block, 0x4C)
        self._inode_bytes: int = struct.unpack_from("<H", block, 0x58)[0] if revision else 128
        described: int = struct.unpack_from("<H", block, 0xFE)[0] if self._incompatible & _64BIT else 32
        self._descriptor_bytes = described
        self._first_meta = _number(block, 0x104)
        if self._inode_bytes not in (128, 256, 512, 1024, 2048, 4096) or described not in (32, 64, 128, 256, 512, 1024):
            raise Unreadable("BadFileSystem", "its superblock has impossible sizes")
        if self.blocks * self.block_bytes > disk.size_bytes + self.block_bytes:
            raise Unreadable("BadFileSystem", "it says that it is larger than what it lies on")

    def inode(self, number: int) -> Inode:
        """Return an inode. Raises: Unreadable."""
        if not 0 < number <= self._inodes:
            raise Unreadable("BadFileSystem", f"there is no inode {number}")
        group, place = divmod(number - 1, self._inodes_per_group)
        at = self._inode_table(group) * self.block_bytes + place * self._inode_bytes
        body = self.disk.read(at, self._inode_bytes)
        (mode,) = struct.unpack_from("<H", body)
        size = _number(body, 4) | _number(body, 0x6C) << 32
        return Inode(number, mode, size, _number(body, 0x20), body)

    def content(self, inode: Inode) -> Readable:
        """Return what a file or folder holds. Raises: Unreadable."""
        if inode.flags & _FLAG_ENCRYPTED:
            raise Unreadable("Encrypted", "it is encrypted")
        if inode.flags & _FLAG_INLINE:
            return Inline((inode.map + _inline_rest(inode.body))[: inode.size_bytes])
        if inode.size_bytes > 1 << 60:
            raise Unreadable("BadFileSystem", "a file has an impossible size")
        found = self._extents(inode.map, _DEPTH_MAX) if inode.flags & _FLAG_EXTENTS else self._mapped(inode)
        pieces: list[tuple[int, int, int]] = []
        for first, place, count in found:
            if pieces and first < pieces[-1][0] + pieces[-1][2]:
                raise Unreadable("BadFileSystem", "pieces of a file lie over each other")
            if place + count > self.blocks:
                raise Unreadable("BadFileSystem", "a piece of a file lies behind the end")
            if pieces and (first, place) == (pieces[-1][0] + pieces[-1][2], pieces[-1][1] + pieces[-1][2]):
                pieces[-1] = (*pieces[-1][:2], pieces[-1][2] + count)
            else:
                pieces.append((first, place, count))
            if len(pieces) > _PIECES_MAX:
                raise Unreadable("TooManyPieces", f"a file lies in more than {_PIECES_MAX} pieces")
        return File(self, inode.size_bytes, pieces)

    def entries(self, folder: Inode) -> Iterator[Entry]:
        """Yield what is in a folder, but for itself and its parent. Raises: Unreadable."""
        content = self.content(folder)
        if isinstance(content, Inline):
            whole = content.read(0, content.size_bytes)
            yield from _names(whole[4:60])
            yield from _names(whole[60:])
            return
        # The content of a folder has no holes; what it says beyond its pieces is nothing.
        for start, end in content.ranges():
            for offset in range(start, end, self.block_bytes):
                yield from _names(content.read(offset, self.block_bytes))

    def _inode_table(self, group: int) -> int:
        """Return the block where the inodes of a group begin."""
        at = self._descriptor_at(group)
        descriptor = self.disk.read(at, self._descriptor_bytes)
        table = _number(descriptor, 8) | (_number(descriptor, 0x28) << 32 if self._descriptor_bytes >= 64 else 0)
        if not 0 < table < self.blocks:
            raise Unreadable("BadFileSystem", f"the inodes of group {group} lie nowhere")
        return table

    def _descriptor_at(self, group: int) -> int:
        in_block = self.block_bytes // self._descriptor_bytes
        meta, place = divmod(group, in_block)
        if not self._incompatible & _META_BG or meta < self._first_meta:
            return (self._first + 1) * self.block_bytes + group * self._descriptor_bytes
        leader = meta * in_block
        block = self._first + leader * self._per_group + self._has_superblock(leader)
        return block * self.block_bytes + place * self._descriptor_bytes

    def _has_superblock(self, group: int) -> bool:
        if group <= 1 or not self._read_only & _SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def _extents(self, node: bytes, depth_max: int) -> Iterator[tuple[int, int, int]]:
        """Yield the pieces of a file; depths get smaller from node to node, so that there is an end."""
        magic, entries, _, depth = struct.unpack_from("<4H", node)
        if magic != _EXTENT_MAGIC or depth > depth_max or 12 + 12 * entries > len(node):
            raise Unreadable("BadFileSystem", "a table of pieces is damaged")
        for number in range(entries):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, 12 + 12 * number)
                yield from self._extents(self._block(low | high << 32), depth - 1)
                continue
            first, count, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * number)
            if count <= 1 << 15:  # more: promised to the file, never written
                yield first, low | high << 32, count

    def _mapped(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks of a file of ext2: twelve, then those of tables, of tables of tables, and so on."""
        needed = -(-inode.size_bytes // self.block_bytes)
        numbers = struct.unpack("<15I", inode.map)
        first = 0
        for place in range(15):
            covered = 1 if place < 12 else (self.block_bytes // 4) ** (place - 11)
            if first < needed and numbers[place]:
                yield from self._tree(numbers[place], first, max(0, place - 11), needed)
            first += covered

    def _tree(self, block: int, first: int, depth: int, needed: int) -> Iterator[tuple[int, int, int]]:
        if not depth:
            yield first, block, 1
            return
        table = struct.unpack(f"<{self.block_bytes // 4}I", self._block(block))
        covered = (self.block_bytes // 4) ** (depth - 1)
        for place, below in enumerate(table):
            if first + place * covered >= needed:
                return
            if below:
                yield from self._tree(below, first + place * covered, depth - 1, needed)

    def _block(self, number: int) -> bytes:
        if not 0 < number < self.blocks:
            raise Unreadable("BadFileSystem", f"there is no block {number}")
        return self.disk.read(number * self.block_bytes, self.block_bytes)


class Walk:
    """All plain files of a file system, each inode once; ``unread`` counts what could not be walked or read."""

    def __init__(self, system: FileSystem) -> None:
        self._system = system
        self._seen: dict[int, bytearray] = {}
        self.unread = 0
        self.first_words = ""

    def files(self) -> Iterator[tuple[str, Readable]]:
        """Yield path and content. Raises: Unreadable when not even the first folder can be read."""
        root = self._system.inode(ROOT)
        if root.kind != _FOLDER:
            raise Unreadable("BadFileSystem", "its first folder is none")
        waiting = [(root, b"")]
        self._is_new(ROOT)
        while waiting:
            folder, path = waiting.pop()
            try:
                for entry in self._system.entries(folder):
                    yield from self._visit(entry, path, waiting)
            except Unreadable as exc:
                self.give_up(path or b"/", exc)

    def give_up(self, path: bytes | str, exc: Unreadable) -> None:
        """Count something that was not read."""
        self.unread += 1
        shown = path if isinstance(path, str) else _shown(path)
        self.first_words = self.first_words or f"{shown}: {exc.message}"

    def _visit(self, entry: Entry, path: bytes, waiting: list[tuple[Inode, bytes]]) -> Iterator[tuple[str, Readable]]:
        where = path + b"/" + entry.name
        try:
            if not self._is_new(entry.inode):
                return
            inode = self._system.inode(entry.inode)
            if inode.kind == _FOLDER:
                if len(where) > _PATH_LENGTH_MAX or len(waiting) >= _FOLDERS_WAITING_MAX:
                    raise Unreadable("TooDeep", "there are too many folders")
                waiting.append((inode, where))
            elif inode.kind == _FILE and inode.size_bytes:
                yield _shown(where), self._system.content(inode)
        except Unreadable as exc:
            self.give_up(where, exc)

    def _is_new(self, inode: int) -> bool:
        """Note the inode: a file with several names is read once, a folder in itself is no way round."""
        chunk = self._seen.setdefault(inode >> 16, bytearray(8192))
        place, bit = (inode & 0xFFFF) >> 3, 1 << (inode & 7)
        known = chunk[place] & bit
        chunk[place] |= bit
        return not known


def _names(block: bytes) -> Iterator[Entry]:
    """Yield the entries of one block of a folder; the inner blocks of an indexed folder look empty. Raises: Unreadable."""
    offset = 0
    while offset + 8 <= len(block):
        inode, length, size, _ = struct.unpack_from("<IHBB", block, offset)
        if length in (0, 65535) and len(block) == 65536:
            length = 65536
        if length < 8 or length % 4 or offset + length > len(block) or size > length - 8:
            raise Unreadable("BadFileSystem", "a folder is damaged")
        name = block[offset + 8 : offset + 8 + size]
        if inode and name not in (b"", b".", b".."):
            yield Entry(inode, name)
        offset += length


def _inline_rest(body: bytes) -> bytes:
    """Return what lies of a small file in the attribute ``system.data`` of its inode, after the first 60 bytes."""
    if len(body) <= 132:
        return b""
    (extra,) = struct.unpack_from("<H", body, 128)
    start = 128 + extra
    if start + 4 > len(body) or _number(body, start) != _XATTR_MAGIC:
        return b""
    at = start = start + 4
    while at + 16 <= len(body) and any(body[at : at + 4]):
        name_bytes, index, offset, _, size, _ = struct.unpack_from("<BBHIII", body, at)
        if index == _XATTR_SYSTEM and body[at + 16 : at + 16 + name_bytes] == b"data":
            return body[start + offset : start + offset + size]
        at += 16 + (name_bytes + 3) // 4 * 4
    return b""


def _number(block: bytes, offset: int) -> int:
    return int.from_bytes(block[offset : offset + 4], "little")


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


def _shown(path: bytes) -> str:
    return printable(path.decode(errors="backslashreplace"))
