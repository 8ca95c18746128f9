"""Finds the parts of a disk: MBR with logical partitions, GPT, or none; and what begins in each, by its first bytes.

Sources: UEFI specification 2.10, chapter 5 (GPT and protective MBR); the magic numbers of blkid(8)'s probes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec import Struct

from pileus.scan.disks import Readable
from pileus.scan.report import PARTS_MAX

SECTOR_BYTES = 512

_ENTRY = struct.Struct("<B3xB3xII")
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_GPT = struct.Struct("<QII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_LOGICAL_MAX = 64

_MAGIC = (
    ("ext4", 1080, b"\x53\xef"),
    ("encrypted (LUKS)", 0, b"LUKS\xba\xbe"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("LVM", 536, b"LVM2 001"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("NTFS", 3, b"NTFS    "),
    ("FAT", 82, b"FAT32"),
    ("FAT", 54, b"FAT"),
    ("squashfs", 0, b"hsqs"),
)
ENCRYPTED = "encrypted (LUKS)"


class Place(Struct, frozen=True, kw_only=True):
    """A part of a disk, in bytes; ``number`` as the system calls it, 0 for a disk that has no table."""

    number: int
    start: int
    size_bytes: int
    content: str


def parts(disk: Readable) -> list[Place]:
    """Return the parts of the disk that lie within it, at most ``PARTS_MAX``. Raises: Unreadable."""
    if _content(disk, 0) in ("", "FAT", "NTFS"):  # a boot sector and a partition table end alike
        found = list(_table(disk))
        if found:
            return [_place(disk, *one) for one in found[:PARTS_MAX]]
    return [_place(disk, 0, 0, disk.size_bytes)]


def _place(disk: Readable, number: int, start: int, size_bytes: int) -> Place:
    return Place(number=number, start=start, size_bytes=size_bytes, content=_content(disk, start) or "unknown")


def _content(disk: Readable, start: int) -> str:
    head = disk.read(start, 0x10048)
    return next((name for name, offset, magic in _MAGIC if head.startswith(magic, offset)), "")


def _table(disk: Readable) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and size of each partition that lies on the disk."""
    entries = _entries(disk, 0)
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        yield from _gpt(disk)
        return
    for number, (kind, start, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            yield from _logical(disk, start)
        elif kind:
            yield from _within(disk, number, start * SECTOR_BYTES, count * SECTOR_BYTES)


def _entries(disk: Readable, sector: int) -> list[tuple[int, int, int]]:
    """Return type, first sector and number of sectors of the four entries; nothing where there is no table."""
    head = disk.read(sector * SECTOR_BYTES, SECTOR_BYTES)
    if head[510:] != b"\x55\xaa":
        return []
    found = [_ENTRY.unpack_from(head, 446 + 16 * number) for number in range(4)]
    return [(kind, start, count) for flag, kind, start, count in found if flag in (0, 0x80)]


def _logical(disk: Readable, first: int) -> Iterator[tuple[int, int, int]]:
    """Yield the logical partitions: a chain of tables, which may be a loop in a hostile one."""
    sector, seen = first, set[int]()
    while sector not in seen and len(seen) < _LOGICAL_MAX:
        seen.add(sector)
        entries = _entries(disk, sector)
        for kind, start, count in entries:
            if kind and kind not in _EXTENDED:
                number = 4 + len(seen)
                yield from _within(disk, number, (sector + start) * SECTOR_BYTES, count * SECTOR_BYTES)
        following = [start for kind, start, _ in entries if kind in _EXTENDED]
        if not following:
            return
        sector = first + following[0]


def _gpt(disk: Readable) -> Iterator[tuple[int, int, int]]:
    head = disk.read(SECTOR_BYTES, SECTOR_BYTES)
    table, count, entry_bytes = _GPT.unpack_from(head, 72)
    if not head.startswith(b"EFI PART") or not 128 <= entry_bytes <= 4096 or table > disk.size_bytes // SECTOR_BYTES:
        return
    for number in range(min(count, PARTS_MAX)):
        entry = disk.read(table * SECTOR_BYTES + number * entry_bytes, _GPT_ENTRY.size)
        kind, _, first, last = _GPT_ENTRY.unpack(entry)
        if any(kind):
            yield from _within(disk, number + 1, first * SECTOR_BYTES, (last + 1 - first) * SECTOR_BYTES)


def _within(disk: Readable, number: int, start: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
    kept = min(size_bytes, disk.size_bytes - start)
    if kept > 0:
        yield number, start, kept
