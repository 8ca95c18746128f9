"""Decides from its bytes alone whether a disk made for another hypervisor (VMDK, VHD, VHDX, VDI) may be converted.

What names other files, or holds only the difference to another disk, is refused before any program sees it.

Source: VMware Virtual Disk Format 5.0; Virtual Hard Disk Image Format Specification 1.0; MS-VHDX 2.2 and 2.6; QEMU
block/vdi.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Literal
from uuid import UUID

from pileus.drivers.host.errors import ImageRefused
from pileus.image.magic import FIXED_VHD, VHD, formats
from pileus.ovf.disks import CAPACITIES
from pileus.ovf.faults import OvfFault

ForeignFormat = Literal["vmdk", "vhd", "vhdx", "vdi"]

_MAGIC: dict[ForeignFormat, tuple[str, ...]] = {
    "vmdk": ("a VMDK image",), "vhd": (VHD, FIXED_VHD), "vhdx": ("a VHDX image",), "vdi": ("a VDI image",)
}  # fmt: skip

_REASONS = {
    "disk-external": "ExternalData", "disk-has-parent": "BackingFile", "disk-encrypted": "Encrypted",
    "disk-too-large": "TooLarge", "disk-truncated": "Truncated",
}  # fmt: skip

SECTOR_BYTES = 512
_FOOTER = struct.Struct(">Q4xI")
_FOOTER_SIZE_AT = 48
_FIXED = 2

_REGIONS_AT = 3 * 65_536
_TABLE_BYTES = 65_536
_ENTRIES_MAX = 2047
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VIRTUAL_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_HAS_PARENT = 1 << 1


def virtual_size_bytes(file: int, size_bytes: int, format: ForeignFormat) -> int:
    """Return the disk's size as a guest sees it.

    Raises: ImageRefused (UnknownFormat, Polyglot, ExternalData, BackingFile, Encrypted, BadHeader, BadSize, TooLarge).
    """
    known = formats(file, size_bytes)
    if not known or known[0] not in _MAGIC[format]:
        found = known[0] if known else "of no known format"
        raise ImageRefused("UnknownFormat", f"the image is said to be {format} but is {found}; name its real format")
    if any(name not in _MAGIC[format] for name in known[1:]):
        message = f"the image is {known[0]} and {known[1]} at once; convert it with qemu-img and upload it"
        raise ImageRefused("Polyglot", message)
    try:
        found_bytes = _capacity(file, size_bytes, format, fixed=known[0] == FIXED_VHD)
    except OvfFault as fault:
        first = fault.faults[0]
        raise ImageRefused(_REASONS.get(first.code, "BadHeader"), first.message) from None
    if found_bytes <= 0 or found_bytes % SECTOR_BYTES:
        raise ImageRefused("BadSize", f"a disk of {found_bytes} bytes is not a multiple of {SECTOR_BYTES}")
    return found_bytes


def _capacity(file: int, size_bytes: int, format: ForeignFormat, *, fixed: bool) -> int:
    if format == "vhdx":
        return _vhdx_capacity(file)
    if fixed:
        footer = os.pread(file, SECTOR_BYTES, size_bytes - SECTOR_BYTES)
        found_bytes, kind = _FOOTER.unpack_from(footer, _FOOTER_SIZE_AT)
        if kind != _FIXED or found_bytes > size_bytes - SECTOR_BYTES:
            raise _bad("a footer that does not fit its content")
        return int(found_bytes)
    return CAPACITIES["vmdk-sparse" if format == "vmdk" else format](file)


def _vhdx_capacity(file: int) -> int:
    """Raises: ImageRefused (BadHeader, BackingFile). Both region tables say the same; the first is read."""
    table = os.pread(file, _TABLE_BYTES, _REGIONS_AT)
    if table[:4] != b"regi":
        raise _bad("no table of its regions")
    at = next((entry[0] for guid, entry in _entries(table, 8, 16, "<QII") if guid == _METADATA), None)
    if at is None or at >= 1 << 62:
        raise _bad("no metadata")
    metadata = os.pread(file, _TABLE_BYTES, at)
    if metadata[:8] != b"metadata":
        raise _bad("no metadata")
    items = {guid: entry for guid, entry in _entries(metadata, 10, 32, "<IIII")}
    if _VIRTUAL_SIZE not in items or _PARAMETERS not in items:
        raise _bad("no size")
    _, flags = struct.unpack("<II", os.pread(file, 8, at + items[_PARAMETERS][0]).ljust(8, b"\0"))
    if flags & _HAS_PARENT:
        raise ImageRefused("BackingFile", "the VHDX holds only the difference to another disk; merge them first")
    return int.from_bytes(os.pread(file, 8, at + items[_VIRTUAL_SIZE][0]), "little")


def _entries(table: bytes, count_at: int, first_at: int, shape: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Yield GUID and fields of each entry of a table; each entry has 32 bytes."""
    if len(table) < first_at:
        return
    (count,) = struct.unpack_from("<H", table, count_at)
    for number in range(min(count, _ENTRIES_MAX)):
        offset = first_at + 32 * number
        if offset + 32 > len(table):
            return
        yield table[offset : offset + 16], struct.unpack_from(shape, table, offset + 16)


def _bad(what: str) -> ImageRefused:
    return ImageRefused("BadHeader", f"the image has {what}; convert it with a current qemu-img and upload it")
