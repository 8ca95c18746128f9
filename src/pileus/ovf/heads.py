"""What the first bytes of a disk say: its format and how big the disk is, before anything is converted."""

from __future__ import annotations

import struct

from msgspec import Struct

from pileus.ovf.model import DiskFormat

HEAD_BYTES = 1024
_SECTOR = 512


class Head(Struct, frozen=True, kw_only=True):
    """A disk's header."""

    format: DiskFormat
    """``unknown`` for raw bytes, which have none."""
    capacity_bytes: int | None = None
    """None when it is not in the first bytes."""
    text_only: bool = False
    """Whether it is a VMDK's text that names other files."""


def head_of(first: bytes) -> Head:
    """Return what a file's first ``HEAD_BYTES`` say."""
    if first.startswith(b"KDMV") and len(first) >= 20:
        (sectors,) = struct.unpack_from("<Q", first, 12)
        return Head(format="vmdk", capacity_bytes=sectors * _SECTOR)
    if first.startswith(b"COWD"):
        return Head(format="vmdk")
    if first.lstrip(b" \t\r\n")[:21].lower() == b"# disk descriptorfile":
        return Head(format="vmdk", text_only=True)
    if first.startswith(b"QFI\xfb") and len(first) >= 32:
        (size,) = struct.unpack_from(">Q", first, 24)
        return Head(format="qcow2", capacity_bytes=size)
    if first.startswith(b"conectix") and len(first) >= 56:
        (size,) = struct.unpack_from(">Q", first, 48)
        return Head(format="vhd", capacity_bytes=size)
    if first.startswith(b"vhdxfile"):
        return Head(format="vhdx")
    if first[64:68] == b"\x7f\x10\xda\xbe" and len(first) >= 376:
        (size,) = struct.unpack_from("<Q", first, 368)
        return Head(format="vdi", capacity_bytes=size)
    return Head(format="unknown")
