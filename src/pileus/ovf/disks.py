"""Takes a disk of a package as it streams by and writes it as a disk of ours: sparse raw, or qcow2.

Which way it goes is decided by its first sector, never by what the package claims; a claim that differs is a fault.
Streamed VMDK and raw need one pass and no other program. What needs a seek is spooled, inspected so far that it leads
to no other file, and given to the caller's converter, which has a jail for that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from msgspec import Struct

from pileus.ovf import vmdk
from pileus.ovf.faults import refusal
from pileus.ovf.inflating import inflate
from pileus.ovf.intake import Intake
from pileus.ovf.model import DiskFormat
from pileus.ovf.target import Qcow2Target, RawTarget, Target, write_fully

Form = Literal["qcow2", "raw"]
Converter = Callable[[Path, str, Path, Form], None]
"""Makes the third argument, in the given form, of the first, which is in the format that qemu-img calls the second.

Raises OvfFault, or an error of its caller's.
"""

SPOOLED_SLACK_BYTES = 64 * 1024**2
"""What a file may have beyond its disk's capacity, with one part in 256 for its tables."""

PIECE_BYTES = 65_536

_ZEROS = bytes(PIECE_BYTES)
_QCOW2 = struct.Struct(">4sIQIIQI")
_QCOW2_FEATURES_AT = 72
_QCOW2_COMPRESSION = 1 << 3
_VHD_FIXED, _VHD_DYNAMIC = 2, 3
_VDI_MAGIC = b"\x7f\x10\xda\xbe"
_VDI_DYNAMIC, _VDI_FIXED = 1, 2
_ADVICE = "convert it with qemu-img convert -O vmdk -o subformat=streamOptimized and package it again"

Seen = Literal["vmdk-stream", "vmdk-sparse", "vmdk-text", "qcow2", "vhd", "vhdx", "vdi", "plain"]


class DiskFacts(Struct, frozen=True, kw_only=True):
    """What a disk of the package was, and is now."""

    found: Seen
    capacity_bytes: int
    stored_bytes: int
    """In the package, after its compression was undone."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What is known of a disk before its first byte, and what may become of it."""

    format: DiskFormat = "unknown"
    capacity_bytes: int = 0
    """As the descriptor says; a raw disk is filled up with zeros to it."""
    capacity_bytes_max: int = vmdk.CAPACITY_BYTES_MAX
    form: Form = "qcow2"


def receive(chunks: Iterator[bytes], path: Path, wanted: Wanted, convert: Converter) -> DiskFacts:
    """Write the disk that ``chunks`` hold to the new file ``path``, which is gone again when this fails.

    ``chunks`` is read to its end. A spooled file lies beside ``path``.
    Raises: OvfFault (disk-…), OSError and what ``chunks`` and ``convert`` raise.
    """
    counted = _Counted(chunks)
    intake = Intake(counted)
    head = intake.take(vmdk.SECTOR_BYTES, least=0)
    seen = look(head)
    _check_claim(wanted.format, seen)
    if wanted.capacity_bytes > wanted.capacity_bytes_max:
        raise _too_large(wanted.capacity_bytes, wanted.capacity_bytes_max)
    whole = chain((head,), intake.rest())
    try:
        if seen in ("vmdk-stream", "plain"):
            capacity_bytes = _stream(whole, path, wanted, seen)
        else:
            capacity_bytes = _spool_and_convert(whole, path, wanted, seen, convert)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return DiskFacts(found=seen, capacity_bytes=capacity_bytes, stored_bytes=counted.bytes)


class _Counted:
    """Chunks, counted."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.bytes = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.bytes += len(chunk)
        return chunk


def look(head: bytes) -> Seen:
    """Return what begins with these 512 bytes."""
    if head[:4] == vmdk.MAGIC and len(head) == vmdk.SECTOR_BYTES:
        flags = vmdk.HEADER.unpack(head)[2]
        return "vmdk-stream" if flags & vmdk.COMPRESSED and flags & vmdk.MARKED else "vmdk-sparse"
    if head[:4] == b"COWD" or b"# Disk DescriptorFile" in head:
        return "vmdk-text"
    known: dict[bytes, Seen] = {b"QFI\xfb": "qcow2", b"conectix": "vhd", b"vhdxfile": "vhdx"}
    for magic, seen in known.items():
        if head.startswith(magic):
            return seen
    return "vdi" if head[64:68] == _VDI_MAGIC else "plain"


def _check_claim(claim: DiskFormat, seen: Seen) -> None:
    """Raises: OvfFault (disk-format-mismatch, disk-external, disk-format-unread)."""
    if seen == "vmdk-text":
        raise refusal("disk-external", f"the disk is a VMDK whose content is in other files, never followed; {_ADVICE}")
    if seen == "vhdx":
        raise refusal("disk-format-unread", f"the disk is a VHDX; {_ADVICE}")
    found = seen.partition("-")[0]
    # A fixed VHD is a raw disk with a footer; it begins like any raw disk.
    fits = claim in (found, "unknown") or (found == "plain" and claim in ("raw", "iso", "vhd"))
    if not fits:
        shown = "of no format known here" if found == "plain" else found
        raise refusal("disk-format-mismatch", f"the disk is said to be {claim} but is {shown}; correct its ovf:format")


def _stream(whole: Iterator[bytes], path: Path, wanted: Wanted, seen: Seen) -> int:
    """Write the disk in one pass and return its capacity."""
    with path.open("x+b", buffering=0) as file:

        def make(capacity_bytes: int) -> Target:
            kind = Qcow2Target if wanted.form == "qcow2" else RawTarget
            return kind(file.fileno(), capacity_bytes)

        if seen == "vmdk-stream":
            return inflate(whole, make, capacity_bytes_max=wanted.capacity_bytes_max).capacity_bytes
        if wanted.format == "vhd":
            raise refusal("disk-format-unread", f"the disk is a VHD of fixed size; {_ADVICE}")
        return _copy(whole, make, wanted)


def _copy(whole: Iterator[bytes], make: Callable[[int], Target], wanted: Wanted) -> int:
    """Write a raw disk without its zeros and return its capacity. Raises: OvfFault (disk-too-large, disk-bad-size)."""
    capacity_bytes = -(-wanted.capacity_bytes // vmdk.SECTOR_BYTES) * vmdk.SECTOR_BYTES
    if not capacity_bytes:
        raise refusal("disk-bad-size", "the descriptor does not say how large the raw disk is; add ovf:capacity")
    target, intake = make(capacity_bytes), Intake(whole)
    while piece := intake.take(PIECE_BYTES, least=0):
        if intake.position > capacity_bytes:
            raise _too_large(intake.position, capacity_bytes)
        if piece != _ZEROS[: len(piece)]:
            target.write(intake.position - len(piece), [piece])
    target.finish()
    return capacity_bytes


def _spool_and_convert(whole: Iterator[bytes], path: Path, wanted: Wanted, seen: Seen, convert: Converter) -> int:
    """Write the file beside ``path``, look into it, have it converted, and return its capacity."""
    spool = path.with_name(path.name + ".spool")
    try:
        with spool.open("x+b", buffering=0) as file:
            _spool(whole, file.fileno(), wanted)
            capacity_bytes = CAPACITIES[seen](file.fileno())
        if not 0 < capacity_bytes <= wanted.capacity_bytes_max:
            raise _too_large(capacity_bytes, wanted.capacity_bytes_max)
        names = {"vmdk-sparse": "vmdk", "vhd": "vpc"}
        convert(spool, names.get(seen, seen), path, wanted.form)
    finally:
        spool.unlink(missing_ok=True)
    return capacity_bytes


def _spool(whole: Iterator[bytes], file: int, wanted: Wanted) -> None:
    """Raises: OvfFault (disk-too-large)."""
    most = wanted.capacity_bytes_max + wanted.capacity_bytes_max // 256 + SPOOLED_SLACK_BYTES
    end = 0
    for chunk in whole:
        if end + len(chunk) > most:
            raise _too_large(end + len(chunk), most)
        write_fully(file, [chunk], end)
        end += len(chunk)


def _vmdk_capacity(file: int) -> int:
    """Return the capacity of a sparse VMDK that has all its content itself. Raises: OvfFault."""
    header = vmdk.read_header(os.pread(file, vmdk.SECTOR_BYTES, 0))
    if not header.descriptor_bytes:
        raise refusal("disk-bad-descriptor", f"the VMDK has no descriptor; {_ADVICE}")
    text = os.pread(file, header.descriptor_bytes, header.descriptor_offset)
    descriptor = vmdk.read_descriptor(text)
    vmdk.check_descriptor(descriptor)
    if descriptor.create_type not in ("monolithicSparse", "streamOptimized"):
        message = f"the VMDK is of the kind {descriptor.create_type[:40]!r}, whose content is elsewhere; {_ADVICE}"
        raise refusal("disk-external", message)
    return header.capacity_bytes


def _qcow2_capacity(file: int) -> int:
    """Raises: OvfFault (disk-has-parent, disk-external, disk-encrypted, disk-bad-header)."""
    head = os.pread(file, 512, 0).ljust(512, b"\0")
    _, version, backing, _, _, capacity_bytes, encryption = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise refusal("disk-bad-header", f"the disk is qcow2 of the unknown version {version}")
    if backing:
        raise refusal("disk-has-parent", f"the qcow2 disk holds only the difference to another file; {_ADVICE}")
    if encryption:
        raise refusal("disk-encrypted", f"the qcow2 disk is encrypted; {_ADVICE}")
    (features,) = struct.unpack_from(">Q", head, _QCOW2_FEATURES_AT) if version == 3 else (0,)
    if features & ~_QCOW2_COMPRESSION:
        raise refusal("disk-external", f"the qcow2 disk is damaged, or has its content in another file; {_ADVICE}")
    return int(capacity_bytes)


def _vhd_capacity(file: int) -> int:
    """Raises: OvfFault (disk-has-parent). Source: Virtual Hard Disk Image Format Specification 1.0."""
    size, kind = struct.unpack_from(">Q4xI", os.pread(file, 512, 0).ljust(512, b"\0"), 48)
    if kind not in (_VHD_FIXED, _VHD_DYNAMIC):
        raise refusal("disk-has-parent", f"the VHD holds only the difference to another disk; {_ADVICE}")
    return int(size)


def _vdi_capacity(file: int) -> int:
    """Raises: OvfFault (disk-has-parent). Source: QEMU block/vdi.c, VdiHeader."""
    head = os.pread(file, 512, 0).ljust(512, b"\0")
    (kind,) = struct.unpack_from("<I", head, 76)
    if kind not in (_VDI_DYNAMIC, _VDI_FIXED):
        raise refusal("disk-has-parent", f"the VDI holds only the difference to another disk; {_ADVICE}")
    return int.from_bytes(head[368:376], "little")


CAPACITIES: dict[Seen, Callable[[int], int]] = {
    "vmdk-sparse": _vmdk_capacity,
    "qcow2": _qcow2_capacity,
    "vhd": _vhd_capacity,
    "vdi": _vdi_capacity,
}
"""How large the disk is that an open file holds, for what needs a seek; what leads to another file is refused."""


def _too_large(found_bytes: int, most_bytes: int) -> Exception:
    return refusal("disk-too-large", f"the disk has {found_bytes} bytes, {most_bytes} are allowed")
