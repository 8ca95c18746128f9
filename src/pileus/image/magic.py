"""Names the format of a file from its first and last bytes, as the programs that guess formats would."""

from __future__ import annotations

import os
import re

QCOW2 = "qcow2"
ISO = "an ISO 9660 image"
VHD = "a VHD image"
FIXED_VHD = "a fixed VHD image"
VMDK_DESCRIPTOR = "a VMDK descriptor"

HEAD_BYTES = 2048
"""As much as QEMU's probes read (BLOCK_PROBE_BUF_SIZE, block/block_int.h)."""

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", QCOW2),
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK (COWD) image"),
    (0, b"SE\xcd\xca", "a VMDK (seSparse) image"),
    (0, b"conectix", VHD),
    (0, b"vhdxfile", "a VHDX image"),
    (64, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"LUKS\xba\xbe", "a LUKS-encrypted disk"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    (0, b"\x1f\x8b", "gzip-compressed"),
    (0, b"BZh", "bzip2-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive (an OVA is one)"),
)
"""Offset, bytes, name. Each of these would be opened as such by QEMU or unpacked by whoever meets it."""

ISO_OFFSETS = (0x8001, 0x8801, 0x9001)
"""Where the volume descriptors of ISO 9660 have ``CD001`` (ECMA-119 8.1.2)."""

TRAILER_BYTES = 512
TRAILERS: tuple[tuple[bytes, str], ...] = ((b"conectix", FIXED_VHD), (b"koly", "a DMG image"))
"""What the last ``TRAILER_BYTES`` of formats begin with that have their header at the end."""

VMDK_TEXT = re.compile(rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*(?:# Disk DescriptorFile|version=\d)")
"""QEMU skips blank lines and comments before ``version=`` (block/vmdk.c, vmdk_probe)."""


def formats(file: int, size_bytes: int) -> list[str]:
    """Return every format the open ``file`` could be taken for, the likeliest first; empty for a plain raw disk."""
    head = os.pread(file, HEAD_BYTES, 0)
    found = [name for offset, magic, name in MAGIC if head.startswith(magic, offset)]
    if VMDK_TEXT.match(head):
        found.append(VMDK_DESCRIPTOR)
    if any(os.pread(file, 5, offset) == b"CD001" for offset in ISO_OFFSETS):
        found.append(ISO)
    tail = os.pread(file, TRAILER_BYTES, max(0, size_bytes - TRAILER_BYTES))
    found += [name for magic, name in TRAILERS if tail.startswith(magic) and name not in found]
    return found
