"""Disks being written, in any order: a sparse raw file, or qcow2 with its tables.

Both take only what is not zero, and are no disk before ``finish``: until then a qcow2 file has no header.

Source: QEMU docs/interop/qcow2.rst, version 3.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from sys import byteorder
from typing import Protocol

CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS
ENTRIES = CLUSTER_BYTES // 8
"""Of 8 bytes each, in a table of one cluster."""

COPIED = 1 << 63
"""In a table's entry: the cluster is used once and may be written in place."""

HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
MAGIC = b"QFI\xfb"
COUNT_BYTES = 2
COUNT_ORDER = 4


Piece = bytes | memoryview


class Target(Protocol):
    """A disk being written."""

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Put the pieces, one after the other, at ``offset``; no byte twice, none beyond the capacity."""

    def finish(self) -> None:
        """Make it a disk."""


def write_fully(file: int, pieces: Sequence[Piece], offset: int) -> None:
    """Write all pieces, one after the other (pwritev(2) may stop early). Raises: OSError."""
    written = os.pwritev(file, pieces, offset)
    for piece in pieces:
        skipped = min(written, len(piece))
        written -= skipped
        offset += skipped
        view = memoryview(piece)[skipped:]
        while view:
            more = os.pwrite(file, view, offset)
            view, offset = view[more:], offset + more


class RawTarget:
    """A sparse file, as long as the disk."""

    def __init__(self, file: int, capacity_bytes: int) -> None:
        self._file = file
        os.ftruncate(file, capacity_bytes)

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        write_fully(self._file, pieces, offset)

    def finish(self) -> None:
        """Nothing is missing."""


class Qcow2Target:
    """A qcow2 file whose clusters lie in the order in which they were first written, its counts at the end."""

    def __init__(self, file: int, capacity_bytes: int) -> None:
        self._file = file
        self._capacity_bytes = capacity_bytes
        tables = -(-capacity_bytes // (CLUSTER_BYTES * ENTRIES))
        self._tables = array("Q", bytes(8 * tables))
        self._next = 1 + clusters(8 * tables)
        os.ftruncate(file, 0)

    def write(self, offset: int, pieces: Sequence[Piece]) -> None:
        run: list[Piece] = []
        start = end = 0
        for number, within, part in _in_clusters(offset, pieces):
            at = self._place(number) + within
            if run and at != end:
                write_fully(self._file, run, start)
                run = []
            if not run:
                start = at
            run.append(part)
            end = at + len(part)
        if run:
            write_fully(self._file, run, start)

    def _place(self, number: int) -> int:
        """Return where in the file the disk's cluster lies, giving it a place at its first use.

        Tables live in the file, so that memory stays flat however large the disk is.
        """
        table, entry = divmod(number, ENTRIES)
        if not self._tables[table]:
            self._tables[table] = self._allocate()
            os.ftruncate(self._file, self._next * CLUSTER_BYTES)
        at = self._tables[table] + entry * 8
        place = int.from_bytes(os.pread(self._file, 8, at), "big") & ~COPIED
        if not place:
            place = self._allocate()
            write_fully(self._file, [(place | COPIED).to_bytes(8, "big")], at)
        return place

    def _allocate(self) -> int:
        self._next += 1
        return (self._next - 1) * CLUSTER_BYTES

    def finish(self) -> None:
        """Write first table, reference counts and header, in this order."""
        first = array("Q", [place | COPIED if place else 0 for place in self._tables])
        write_fully(self._file, [big_endian(first)], CLUSTER_BYTES)
        table_at, table_clusters, end = self._write_counts()
        os.ftruncate(self._file, end * CLUSTER_BYTES)
        header = HEADER.pack(
            MAGIC, 3, 0, 0, CLUSTER_BITS, self._capacity_bytes, 0, len(self._tables), CLUSTER_BYTES,
            table_at, table_clusters, 0, 0, 0, 0, 0, COUNT_ORDER, HEADER.size,
        )  # fmt: skip
        write_fully(self._file, [header], 0)

    def _write_counts(self) -> tuple[int, int, int]:
        """Count every cluster once, the counts too; return the table's offset and clusters, and all clusters."""
        per_block = CLUSTER_BYTES // COUNT_BYTES
        blocks = table = 0
        while True:
            total = self._next + blocks + table
            needed = -(-total // per_block)
            if (needed, clusters(8 * needed)) == (blocks, table):
                break
            blocks, table = needed, clusters(8 * needed)
        places = [(self._next + number) * CLUSTER_BYTES for number in range(blocks)]
        one = (1).to_bytes(COUNT_BYTES, "big")
        for number, place in enumerate(places):
            write_fully(self._file, [one * min(per_block, total - number * per_block)], place)
        table_at = (self._next + blocks) * CLUSTER_BYTES
        write_fully(self._file, [big_endian(array("Q", places))], table_at)
        return table_at, table, total


def _in_clusters(offset: int, pieces: Sequence[Piece]) -> Iterator[tuple[int, int, Piece]]:
    """Yield the pieces, cut where clusters end: cluster, place within it, part."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            number, within = divmod(offset, CLUSTER_BYTES)
            part = view[: CLUSTER_BYTES - within]
            yield number, within, part
            view, offset = view[len(part) :], offset + len(part)


def clusters(length: int) -> int:
    """Return how many clusters ``length`` bytes take."""
    return -(-length // CLUSTER_BYTES)


def big_endian(numbers: array[int]) -> bytes:
    """Return the numbers as qcow2 stores them."""
    if byteorder == "little":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()
