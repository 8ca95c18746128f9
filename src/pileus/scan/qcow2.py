"""Reads a qcow2 file as a disk: tables as they are needed, compressed clusters too, and never another file by name.

Whatever a header or table says is compared with a limit before memory or time is spent on it. What a disk has below it
(the image that a volume is a copy-on-write child of) is given by the caller, who knows; the name in the header counts
only as a sign that there must be one. Source: QEMU docs/interop/qcow2.rst.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator

from pileus.scan.disks import SIZE_BYTES_MAX, Readable, Unreadable, both, pread, too_large

_HEADER = struct.Struct(">4sIQIIQIIQ")
_HEADER_BYTES = 112
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_COMPRESSION_AT = 104

_CLUSTER_BITS = range(9, 22)
_FIRST_TABLE_BYTES_MAX = 32 * 1024**2
"""QEMU's own limit, QCOW_MAX_L1_SIZE."""

_TABLES_KEPT_BYTES = 8 * 1024**2

_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED = 1, 2, 4, 8, 16
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1

_RUN_BYTES_MAX = 64 * 1024**2


class Qcow2Disk:
    """A disk in a qcow2 file, over another one or not. Raises: Unreadable for a header that is not as it must be."""

    def __init__(self, file: int, lower: Readable | None = None) -> None:
        self._file = file
        self._file_bytes = os.fstat(file).st_size
        self._lower = lower
        head = pread(file, 0, _HEADER_BYTES)
        magic, version, backing, _, bits, size, encryption, entries, tables = _HEADER.unpack_from(head)
        self.size_bytes: int = size
        if magic != b"QFI\xfb" or version not in (2, 3) or bits not in _CLUSTER_BITS:
            raise Unreadable("BadHeader", "the file is not qcow2, version 2 or 3, as it is said to be")
        if encryption:
            raise Unreadable("Encrypted", "the disk is encrypted by qcow2; nothing in it can be found")
        if backing and lower is None:
            raise Unreadable("NoBacking", "the disk has an image below it, which was not given")
        if size > SIZE_BYTES_MAX:
            raise too_large(size)
        self._has_zeros = version == 3
        self._check_features(head)
        self._bits: int = bits
        self._cluster = 1 << bits
        self._per_table = self._cluster // 8
        self._first = self._read_first(tables, entries)
        self._tables: OrderedDict[int, array[int]] = OrderedDict()

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of what is written here or below."""
        return self._own_ranges() if self._lower is None else both(self._own_ranges(), self._lower_ranges(self._lower))

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes of the disk."""
        pieces = []
        end = offset + length
        while offset < end:
            piece = self._piece(offset, min(end - offset, _RUN_BYTES_MAX))
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_features(self, head: bytes) -> None:
        (features,) = _FEATURES.unpack_from(head, _FEATURES_AT) if self._has_zeros else (0,)
        if features & _EXTERNAL:
            raise Unreadable("ExternalData", "the disk keeps its content in another file, which is not opened")
        if features & _CORRUPT:
            raise Unreadable("Corrupt", "the disk is marked corrupt")
        if features & _COMPRESSION and head[_COMPRESSION_AT]:
            raise Unreadable("Unsupported", "the disk is compressed with zstd, which is not read; convert it")
        if features & ~(_DIRTY | _COMPRESSION):
            raise Unreadable("Unsupported", f"the disk needs features of qcow2 that are not read ({features:#x})")

    def _read_first(self, offset: int, entries: int) -> array[int]:
        """Return what is needed of the first table."""
        covered = self._cluster * self._per_table
        needed = -(-self.size_bytes // covered)
        if needed > entries or needed * 8 > _FIRST_TABLE_BYTES_MAX:
            raise Unreadable("BadHeader", f"the disk's first table has {entries} entries, of which {needed} are needed")
        return self._table(offset, needed)

    def _table(self, offset: int, entries: int) -> array[int]:
        """Return a table of big-endian 64-bit numbers."""
        if entries and (offset % self._cluster or offset + entries * 8 > self._file_bytes):
            raise Unreadable("Truncated", f"a table of the disk at {offset} is not in the file")
        table = array("Q", pread(self._file, offset, entries * 8))
        if sys.byteorder == "little":
            table.byteswap()
        return table

    def _second(self, number: int) -> array[int] | None:
        """Return the second table of that number; None: nothing was ever written there."""
        offset = self._first[number] & _OFFSET
        if not offset:
            return None
        found = self._tables.get(offset)
        if found is None:
            found = self._table(offset, self._per_table)
            self._tables[offset] = found
            if len(self._tables) * self._cluster > max(_TABLES_KEPT_BYTES, 2 * self._cluster):
                self._tables.popitem(last=False)
        return found

    def _entry(self, cluster: int) -> int:
        """Return what the tables say of a cluster: 0: nothing here; ``_ZERO``: zeros."""
        if cluster << self._bits >= self.size_bytes:
            return _ZERO
        table = self._second(cluster // self._per_table)
        return 0 if table is None else self._meaning(table[cluster % self._per_table])

    def _meaning(self, entry: int) -> int:
        if entry & _COMPRESSED:
            return entry
        if self._has_zeros and entry & _ZERO:
            return _ZERO
        return entry & _OFFSET

    def _own_ranges(self) -> Iterator[tuple[int, int]]:
        for number in range(len(self._first)):
            table = self._second(number)
            if table is None or not any(table):
                continue
            base = number * self._per_table
            start = -1
            for place, entry in enumerate(table):
                written = self._meaning(entry) not in (0, _ZERO)
                if written and start < 0:
                    start = place
                elif not written and start >= 0:
                    yield from self._clipped(base + start, base + place)
                    start = -1
            if start >= 0:
                yield from self._clipped(base + start, base + self._per_table)

    def _clipped(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        if first << self._bits < self.size_bytes:
            yield first << self._bits, min(last << self._bits, self.size_bytes)

    def _lower_ranges(self, lower: Readable) -> Iterator[tuple[int, int]]:
        for start, end in lower.ranges():
            if start >= self.size_bytes:
                return
            yield start, min(end, self.size_bytes)

    def _piece(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on that lie in one place, at most ``length``, at least one."""
        cluster = offset >> self._bits
        within = offset - (cluster << self._bits)
        entry = self._entry(cluster)
        if entry & _COMPRESSED:
            return self._inflated(entry)[within : within + length]
        count, wanted = 1, -(-(within + length) // self._cluster)
        step = self._cluster if entry not in (0, _ZERO) else 0
        while count < wanted and self._entry(cluster + count) == entry + count * step:
            count += 1
        room = min(length, count * self._cluster - within)
        if entry == 0 and self._lower is not None:
            return self._lower.read(offset, room)
        if entry in (0, _ZERO):
            return bytes(room)
        if entry % self._cluster or entry + (count - 1) * self._cluster >= self._file_bytes:
            raise Unreadable("Truncated", f"content of the disk at {offset} is not in the file")
        return pread(self._file, entry + within, room)

    def _inflated(self, entry: int) -> bytes:
        """Return a cluster that was stored compressed; it never grows beyond its size."""
        shift = 62 - (self._bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry & (_COMPRESSED - 1)) >> shift
        length = min((sectors + 1) * 512 - offset % 512, self._file_bytes - offset)
        if length <= 0:
            raise Unreadable("Truncated", f"a compressed cluster at {offset} is not in the file")
        try:
            content = zlib.decompressobj(-15).decompress(pread(self._file, offset, length), self._cluster)
        except zlib.error as exc:
            raise Unreadable("Corrupt", f"a compressed cluster at {offset} cannot be read: {exc}") from exc
        if len(content) != self._cluster:
            raise Unreadable("Corrupt", f"a compressed cluster at {offset} is too short")
        return content
