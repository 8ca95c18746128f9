"""Decides from its bytes alone whether an uploaded disk image may be used, and what it really is.

Reads the header and the tables it must, opens nothing else, trusts no length it has not compared with a limit. What it
accepts is converted afterwards in a jail (``jail``); what it refuses is never shown to any program.

Source: QEMU docs/interop/qcow2.rst; limits of block/qcow2.h; magic numbers of the probe functions in QEMU's block/.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from pathlib import Path
from sys import byteorder

from msgspec import Struct

from pileus.drivers.host.disk.base import ImageFacts, UploadFormat
from pileus.drivers.host.errors import ImageRefused
from pileus.image import foreign
from pileus.image.magic import ISO, QCOW2, formats

SECTOR_BYTES = 512

VIRTUAL_SIZE_BYTES_MAX = 16 * 1024**4
"""16 TiB: far above the largest honest disk seen (1.5 TB), far below what makes tables huge."""

L1_BYTES_MAX = 32 * 1024**2
REFCOUNT_TABLE_BYTES_MAX = 8 * 1024**2
CLUSTER_BITS = range(9, 22)
"""QEMU's own limits: QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE, MIN_CLUSTER_BITS to MAX_CLUSTER_BITS."""

REFCOUNT_BYTES_MAX = 256 * 1024**2
"""All refcount blocks together, which we read: 8 TiB of file at QEMU's default of 2 bytes per 64 KiB."""

V2_HEADER_BYTES = 72
V3_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
V3_HEADER_BYTES = V3_HEADER.size

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
KNOWN_FEATURES = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2

END, BACKING_FORMAT, FEATURE_NAMES, BITMAPS = 0, 0xE2792ACA, 0x6803F857, 0x23852875
ENCRYPTION, DATA_FILE = 0x0537BE77, 0x44415441
HARMLESS_EXTENSIONS = {BACKING_FORMAT, FEATURE_NAMES, BITMAPS}

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
"""Bits 9 to 55 of an L1 or refcount table entry: the offset in the file."""


class _Header(Struct, frozen=True):
    """The fields of a qcow2 header, version 3; those that version 2 lacks have their defaults."""

    magic: bytes
    version: int
    backing_offset: int
    backing_bytes: int
    cluster_bits: int
    virtual_size_bytes: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_bytes: int

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def inspect(
    path: Path, claimed_format: UploadFormat, *, virtual_size_bytes_max: int = VIRTUAL_SIZE_BYTES_MAX
) -> ImageFacts:
    """Return what the uploaded file is, once every check has passed; ``sha256`` is left empty.

    Raises: ImageRefused with the reason BackingFile, ExternalData, FormatMismatch, UnknownFormat, Encrypted,
    InternalSnapshots, UnsupportedVersion, UnsupportedFeature, Dirty, Corrupt, TableTooLarge, TooLarge, Truncated,
    BadClusterSize, BadHeader, BadSize, Polyglot or NotAFile.
    """
    # A FIFO must not block us and a link must not lead us elsewhere.
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ImageRefused("NotAFile", "the image cannot be opened as a plain file; upload it again") from exc
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise ImageRefused("NotAFile", "the image is not a plain file; upload a qcow2 or raw file")
        virtual_size_bytes = _inspect(file, state.st_size, claimed_format)
    finally:
        os.close(file)
    if virtual_size_bytes > virtual_size_bytes_max:
        message = f"the disk is {virtual_size_bytes} bytes large, {virtual_size_bytes_max} are allowed; make it smaller"
        raise ImageRefused("TooLarge", message)
    return ImageFacts(format=claimed_format, virtual_size_bytes=virtual_size_bytes, size_bytes=state.st_size)


def _inspect(file: int, size_bytes: int, claimed_format: UploadFormat) -> int:
    """Return the disk's size."""
    if claimed_format == "qcow2":
        return _inspect_qcow2(file, size_bytes)
    if claimed_format == "raw":
        return _inspect_raw(file, size_bytes)
    return foreign.virtual_size_bytes(file, size_bytes, claimed_format)


def _inspect_raw(file: int, size_bytes: int) -> int:
    """Return the disk's size. A raw disk is anything that no program would take for something else."""
    # The first 32 KiB of ISO 9660 are free, so that a bootable raw disk may be one too (a hybrid installer).
    known = [name for name in formats(file, size_bytes) if name != ISO]
    if known:
        message = f"the image is said to be raw but is {known[0]}; unpack it or name its real format"
        raise ImageRefused("FormatMismatch", message)
    if size_bytes == 0 or size_bytes % SECTOR_BYTES:
        message = f"a raw disk has a multiple of {SECTOR_BYTES} bytes, this one has {size_bytes}; upload it again"
        raise ImageRefused("BadSize", message)
    return size_bytes


def _inspect_qcow2(file: int, size_bytes: int) -> int:
    """Return the virtual size, from the header."""
    known = formats(file, size_bytes)
    if QCOW2 not in known:
        message = f"the image is said to be qcow2 but is {known[0] if known else 'of no known format'}"
        raise ImageRefused("UnknownFormat", f"{message}; convert it with qemu-img and upload it")
    if len(known) > 1:
        message = f"the image is qcow2 and {known[1]} at once; convert it with qemu-img and upload it"
        raise ImageRefused("Polyglot", message)
    header = _read_header(file)
    _check_references(header)
    _check_features(file, header)
    _check_sizes(header)
    _check_extensions(file, header)
    _check_tables(file, header, size_bytes)
    return header.virtual_size_bytes


def _read(file: int, offset: int, length: int) -> bytes:
    """Return exactly that part of the file. Raises ImageRefused (Truncated)."""
    content = os.pread(file, length, offset)
    if len(content) != length:
        raise ImageRefused("Truncated", "the image ends before its own tables do; upload it again")
    return content


def _read_header(file: int) -> _Header:
    """Return the header. Raises ImageRefused (UnsupportedVersion, BadHeader, Truncated)."""
    version = int.from_bytes(_read(file, 4, 4), "big")
    if version not in (2, 3):
        message = f"qcow2 version {version} is not known; convert it with a current qemu-img"
        raise ImageRefused("UnsupportedVersion", message)
    if version == 2:
        defaults = struct.pack(">QQQII", 0, 0, 0, 4, V2_HEADER_BYTES)
        return _Header(*V3_HEADER.unpack(_read(file, 0, V2_HEADER_BYTES) + defaults))
    header = _Header(*V3_HEADER.unpack(_read(file, 0, V3_HEADER_BYTES)))
    if header.header_bytes < V3_HEADER_BYTES or header.header_bytes % 8 or header.header_bytes > 4096:
        raise _bad(f"a header of {header.header_bytes} bytes")
    return header


def _check_references(header: _Header) -> None:
    """Refuse whatever names another file or another state of the disk."""
    if header.backing_offset or header.backing_bytes:
        message = (
            "the image has a backing file, which is never followed; flatten it with qemu-img convert and upload it"
        )
        raise ImageRefused("BackingFile", message)
    if header.incompatible & EXTERNAL_DATA:
        raise _external_data()
    if header.encryption:
        raise _encrypted()
    if header.snapshots or header.snapshots_offset:
        message = f"the image has {header.snapshots} internal snapshots; flatten it with qemu-img convert and upload it"
        raise ImageRefused("InternalSnapshots", message)


def _check_features(file: int, header: _Header) -> None:
    """Raises: ImageRefused (UnsupportedFeature, Dirty, Corrupt)."""
    unknown = header.incompatible & ~KNOWN_FEATURES
    if unknown:
        raise ImageRefused("UnsupportedFeature", f"the image needs qcow2 features that are not known ({unknown:#x})")
    if header.incompatible & CORRUPT:
        raise ImageRefused("Corrupt", "the image is marked corrupt; repair it with qemu-img check -r all")
    if header.incompatible & DIRTY:
        raise ImageRefused("Dirty", "the image was not closed cleanly; repair it with qemu-img check -r all")
    compression = _read(file, V3_HEADER_BYTES, 1)[0] if header.header_bytes > V3_HEADER_BYTES else 0
    if compression > 1 or bool(compression) != bool(header.incompatible & COMPRESSION):
        raise ImageRefused("UnsupportedFeature", f"the image has an unknown kind of compression ({compression})")


def _check_sizes(header: _Header) -> None:
    """Raises: ImageRefused (BadClusterSize, BadSize, TableTooLarge, BadHeader)."""
    if header.cluster_bits not in CLUSTER_BITS or (header.incompatible & EXTENDED_L2 and header.cluster_bits < 14):
        raise ImageRefused("BadClusterSize", f"clusters of 2^{header.cluster_bits} bytes are not possible in qcow2")
    if header.refcount_order > 6:
        raise _bad(f"reference counts of 2^{header.refcount_order} bits")
    if header.virtual_size_bytes == 0 or header.virtual_size_bytes % SECTOR_BYTES:
        raise ImageRefused(
            "BadSize", f"a disk of {header.virtual_size_bytes} bytes is not a multiple of {SECTOR_BYTES}"
        )
    if header.l1_entries * 8 > L1_BYTES_MAX:
        raise ImageRefused(
            "TableTooLarge", f"the image's first table has {header.l1_entries} entries, more than QEMU reads"
        )
    if header.refcount_table_clusters * header.cluster_bytes > REFCOUNT_TABLE_BYTES_MAX:
        raise ImageRefused("TableTooLarge", "the image's table of reference counts is larger than QEMU reads")
    entry_bytes = 16 if header.incompatible & EXTENDED_L2 else 8
    covered_bytes = header.l1_entries * header.cluster_bytes * (header.cluster_bytes // entry_bytes)
    if covered_bytes < header.virtual_size_bytes:
        raise _bad("a first table too small for its disk")


def _check_extensions(file: int, header: _Header) -> None:
    """Refuse extensions that name a file or a key, or that nobody knows, and anything hidden behind the last."""
    cluster = _read(file, 0, header.cluster_bytes)
    offset = header.header_bytes
    while offset + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, offset)
        offset += 8
        if kind == END:
            break
        _check_extension(kind)
        if length > len(cluster) - offset:
            raise _bad("a header extension that is longer than the header")
        offset += (length + 7) // 8 * 8
    if any(cluster[offset:]):
        message = "the image hides other content behind its header; convert it with qemu-img and upload it"
        raise ImageRefused("Polyglot", message)


def _check_extension(kind: int) -> None:
    """Raises: ImageRefused (ExternalData, Encrypted, UnsupportedFeature)."""
    if kind == DATA_FILE:
        raise _external_data()
    if kind == ENCRYPTION:
        raise _encrypted()
    if kind not in HARMLESS_EXTENSIONS:
        raise ImageRefused("UnsupportedFeature", f"the image has an unknown header extension ({kind:#010x})")


def _check_tables(file: int, header: _Header, size_bytes: int) -> None:
    """Raises: ImageRefused (Truncated, BadHeader, TableTooLarge): tables in the file, and all that is counted too."""
    table_bytes = header.refcount_table_clusters * header.cluster_bytes
    places = ((header.l1_offset, header.l1_entries * 8), (header.refcount_table_offset, table_bytes))
    for offset, length in places:
        if offset % header.cluster_bytes or offset == 0 or length == 0:
            raise _bad("a table at an impossible place")
        if offset + length > size_bytes:
            raise ImageRefused("Truncated", "the image ends before its own tables do; upload it again")
    for entry in _entries(file, header.l1_offset, header.l1_entries * 8):
        if entry & OFFSET_MASK and (entry & OFFSET_MASK) + header.cluster_bytes > size_bytes:
            raise ImageRefused("Truncated", "the image ends before its second tables do; upload it again")
    _check_counted(file, header, size_bytes)


def _check_counted(file: int, header: _Header, size_bytes: int) -> None:
    """Raises: ImageRefused (Truncated) when a cluster that is in use begins behind the end of the file.

    A cut-off upload would otherwise read as zeros without any error.
    """
    counts_per_block = header.cluster_bytes * 8 >> header.refcount_order
    table_bytes = header.refcount_table_clusters * header.cluster_bytes
    table = _entries(file, header.refcount_table_offset, table_bytes)
    used = [(number, entry & OFFSET_MASK) for number, entry in enumerate(table) if entry & OFFSET_MASK]
    if len(used) * header.cluster_bytes > REFCOUNT_BYTES_MAX:
        raise ImageRefused("TableTooLarge", "the image's reference counts are larger than is read")
    for number, offset in used:
        block = _read(file, offset, header.cluster_bytes)
        last_byte = len(block.rstrip(b"\0")) - 1
        if last_byte < 0:
            continue
        last_count = (last_byte * 8) >> header.refcount_order
        first_bytes = (number * counts_per_block + last_count) * header.cluster_bytes
        if first_bytes >= size_bytes:
            raise ImageRefused("Truncated", "the image ends before its own content does; upload it again")


def _entries(file: int, offset: int, length: int) -> array[int]:
    """Return a table of big-endian 64-bit numbers."""
    table = array("Q", _read(file, offset, length))
    if byteorder == "little":
        table.byteswap()
    return table


def _bad(what: str) -> ImageRefused:
    return ImageRefused("BadHeader", f"the image has {what}; convert it with a current qemu-img and upload it")


def _external_data() -> ImageRefused:
    message = "the image keeps its content in another file, which is never followed; flatten it with qemu-img convert"
    return ImageRefused("ExternalData", message)


def _encrypted() -> ImageRefused:
    return ImageRefused("Encrypted", "the image is encrypted; decrypt it with qemu-img convert and upload it")
