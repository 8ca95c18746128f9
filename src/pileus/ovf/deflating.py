"""Writes a streamOptimized VMDK from a raw disk, forwards only: several threads compress, one writes in order.

Its layout is VMware's own, with grain tables behind their grains, directory and footer at the end, so that any
forward-only sink can take it. Holes and zeros are left out.

Source: VMware, Virtual Disk Format 5.0.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from pileus.ovf import vmdk
from pileus.ovf.faults import refusal

WORKERS = 2
BATCH_GRAINS = 16
BATCHES_MAX = 2 * WORKERS
LEVEL = 1
"""Of zlib: 2.5 times as fast as 6 and 6 % larger, measured on the appliance's disk."""

GRAIN_BYTES = 65_536
GRAIN_SECTORS = GRAIN_BYTES // vmdk.SECTOR_BYTES
FRONT_SECTORS = 128
DESCRIPTOR_SECTORS = 20
TABLE_SECTORS = vmdk.TABLE_ENTRIES * 4 // vmdk.SECTOR_BYTES
SECTORS_MAX = 0xFFFF_FFFF
"""Tables have 32-bit sector numbers: 2 TiB of compressed file."""

PIPE_BYTES = 1 << 20
"""So much goes on while the other end waits for its turn."""

_ZEROS = bytes(GRAIN_BYTES)

Write = Callable[[bytes], object]
Progress = Callable[[int], object]
"""Hears how many bytes of the disk are done."""


def deflate(
    disk: int, capacity_bytes: int, write: Write, *, name: str = "disk.vmdk", progress: Progress | None = None
) -> int:
    """Hand the VMDK of the raw disk open as file descriptor ``disk`` to ``write``; return how many bytes are not zero.

    The bytes are counted in grains of 64 KiB.

    Raises: OvfFault (disk-bad-size, disk-too-large), OSError and what ``write`` raises.
    """
    if capacity_bytes <= 0 or capacity_bytes % vmdk.SECTOR_BYTES:
        raise refusal("disk-bad-size", f"a disk has a multiple of {vmdk.SECTOR_BYTES} bytes, this one {capacity_bytes}")
    out = _Out(write, capacity_bytes, name, progress)
    numbers = _used_grains(disk, capacity_bytes)
    pending: deque[Future[list[tuple[int, bytes]]]] = deque()
    with ThreadPoolExecutor(WORKERS, "deflate") as workers:
        try:
            while batch := list(islice(numbers, BATCH_GRAINS)):
                pending.append(workers.submit(_deflated, disk, capacity_bytes, batch))
                if len(pending) >= BATCHES_MAX:
                    out.put(pending.popleft().result())
            while pending:
                out.put(pending.popleft().result())
        finally:
            workers.shutdown(cancel_futures=True)
    out.finish()
    return out.grains * GRAIN_BYTES


def _used_grains(disk: int, capacity_bytes: int) -> Iterator[int]:
    """Yield the numbers of the grains that are not wholly a hole, ascending."""
    begin = number = 0
    while begin < capacity_bytes:
        try:
            begin = os.lseek(disk, begin, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole behind (lseek(2))
                return
            raise
        end = min(os.lseek(disk, begin, os.SEEK_HOLE), capacity_bytes)
        number = max(number, begin // GRAIN_BYTES)
        while number * GRAIN_BYTES < end:
            yield number
            number += 1
        begin = end


def _deflated(disk: int, capacity_bytes: int, numbers: list[int]) -> list[tuple[int, bytes]]:
    """Return each grain that is not zero as it stands in the file, behind its marker and padded."""
    ready = []
    for number in numbers:
        offset = number * GRAIN_BYTES
        content = os.pread(disk, min(GRAIN_BYTES, capacity_bytes - offset), offset)
        if content == _ZEROS[: len(content)]:
            continue
        packed = zlib.compress(content.ljust(GRAIN_BYTES, b"\0"), LEVEL)
        ready.append((number, _padded(vmdk.MARKER.pack(number * GRAIN_SECTORS, len(packed)) + packed)))
    return ready


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % vmdk.SECTOR_BYTES)


class _Out:
    """The file so far: how long it is, the table being filled, where finished tables lie."""

    def __init__(self, write: Write, capacity_bytes: int, name: str, progress: Progress | None) -> None:
        self._write = write
        self._progress = progress
        self.grains = 0
        self._capacity_sectors = capacity_bytes // vmdk.SECTOR_BYTES
        self._sectors = 0
        self._table = array("I", bytes(4 * vmdk.TABLE_ENTRIES))
        self._table_number = 0
        tables = -(-capacity_bytes // (GRAIN_BYTES * vmdk.TABLE_ENTRIES))
        self._directory = array("I", bytes(4 * tables))
        text = describe(self._capacity_sectors, name)
        front = self._header(vmdk.AT_THE_END) + text.ljust(DESCRIPTOR_SECTORS * vmdk.SECTOR_BYTES, b"\0")
        self._append(front.ljust(FRONT_SECTORS * vmdk.SECTOR_BYTES, b"\0"))

    def put(self, grains: list[tuple[int, bytes]]) -> None:
        """Append grains, and a table whenever its last grain is past."""
        for number, content in grains:
            table, entry = divmod(number, vmdk.TABLE_ENTRIES)
            if table != self._table_number:
                self._end_table()
                self._table_number = table
            self._table[entry] = self._sectors
            self._append(content)
        self.grains += len(grains)
        if grains and self._progress is not None:
            self._progress((grains[-1][0] + 1) * GRAIN_BYTES)

    def finish(self) -> None:
        """Append the last table, the directory, the footer and the end."""
        self._end_table()
        directory = _padded(_little_endian(self._directory))
        self._mark(vmdk.GRAIN_DIRECTORY, len(directory) // vmdk.SECTOR_BYTES)
        at = self._sectors
        self._append(directory)
        self._mark(vmdk.FOOTER, 1)
        self._append(self._header(at))
        self._mark(vmdk.END_OF_STREAM, 0)

    def _end_table(self) -> None:
        if not any(self._table):
            return
        self._mark(vmdk.GRAIN_TABLE, TABLE_SECTORS)
        self._directory[self._table_number] = self._sectors
        self._append(_little_endian(self._table))
        self._table = array("I", bytes(4 * vmdk.TABLE_ENTRIES))

    def _mark(self, kind: int, sectors: int) -> None:
        self._append(_padded(vmdk.MARKER_KIND.pack(sectors, 0, kind)))

    def _append(self, content: bytes) -> None:
        self._write(content)
        self._sectors += len(content) // vmdk.SECTOR_BYTES
        if self._sectors > SECTORS_MAX:
            raise refusal("disk-too-large", "a streamOptimized VMDK ends at 2 TiB; export the disk as qcow2")

    def _header(self, directory_sector: int) -> bytes:
        flags = vmdk.CHECKED_NEWLINES | vmdk.COMPRESSED | vmdk.MARKED
        return vmdk.HEADER.pack(
            vmdk.MAGIC, 3, flags, self._capacity_sectors, GRAIN_SECTORS, 1, DESCRIPTOR_SECTORS, vmdk.TABLE_ENTRIES,
            0, directory_sector, FRONT_SECTORS, 0, vmdk.NEWLINES, vmdk.DEFLATE,
        )  # fmt: skip


def describe(capacity_sectors: int, name: str) -> bytes:
    """Return the descriptor inside the VMDK, with the geometry that VMware gives disks of a SCSI controller."""
    heads, sectors = (255, 63) if capacity_sectors * vmdk.SECTOR_BYTES > 1024**3 else (64, 32)
    cylinders = min(capacity_sectors // (heads * sectors), 65_535)
    return f"""# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW {capacity_sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "{sectors}"
ddb.toolsVersion = "2147483647"
ddb.virtualHWVersion = "10"
""".encode()


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()


def main() -> None:
    """Write the VMDK of the raw disk that is named to standard output."""
    with suppress(OSError):  # not a pipe
        fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with open(sys.argv[1], "rb") as disk:
        deflate(disk.fileno(), os.fstat(disk.fileno()).st_size, sys.stdout.buffer.write)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
