"""What a streamOptimized VMDK consists of, and how one is read in one pass from a stream that nobody trusts.

It inflates nothing and writes nothing: ``read`` yields compressed grains, each with the place it fills on the disk. No
length is believed that was not compared with a limit, no grain is yielded twice, none beyond the capacity.

Source: VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents"; what qemu-img 7.2 writes, which
has its tables in front, no footer and no end-of-stream marker.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator
from sys import byteorder

from msgspec import Struct

from pileus.ovf.faults import OvfFault, refusal
from pileus.ovf.intake import Intake

SECTOR_BYTES = 512
MAGIC = b"KDMV"

HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
MARKER = struct.Struct("<QI")
MARKER_KIND = struct.Struct("<QII")
END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)

NEWLINES = b"\n \r\n"
CHECKED_NEWLINES, COMPRESSED, MARKED = 1 << 0, 1 << 16, 1 << 17
DEFLATE = 1
AT_THE_END = 0xFFFF_FFFF_FFFF_FFFF
"""In place of the grain directory's offset: a footer has it."""

VERSIONS = (1, 2, 3)
TABLE_ENTRIES = 512
"""Grains per table, the only number that any program writes."""

GRAIN_BYTES_MIN, GRAIN_BYTES_MAX = 4096, 1024**2
"""4 KiB is VMware's least; 64 KiB is what programs write."""

DESCRIPTOR_BYTES_MAX = 64 * 1024
"""Descriptors are under 2 KiB in a reserve of 10 KiB."""

CAPACITY_BYTES_MAX = 16 * 1024**4
FRONT_SLACK_BYTES = 1024**2
"""What may lie before the first grain, beside the descriptor and twice the tables."""

_PAGE_GRAINS = 4096
_ASSIGNMENT = re.compile(r'^\s*([A-Za-z0-9_.]+)\s*=\s*"?([^"\n]*?)"?\s*$', re.MULTILINE)
_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+([A-Z]+)(?:\s+"([^"]*)")?', re.MULTILINE)


class Header(Struct, frozen=True, kw_only=True):
    """The first sector of a sparse extent, its numbers in bytes."""

    version: int
    flags: int
    capacity_bytes: int
    grain_bytes: int
    descriptor_offset: int
    descriptor_bytes: int
    directory_offset: int | None
    """Where the grain directory is; None: behind the grains, where a footer says."""

    front_bytes: int
    """Everything before the first grain."""

    @property
    def streamed(self) -> bool:
        """Whether grains are compressed and announce themselves, so that one pass suffices."""
        return bool(self.flags & COMPRESSED) and bool(self.flags & MARKED)


class Descriptor(Struct, frozen=True, kw_only=True):
    """The text inside a VMDK: what kind of disk it is, and the files that it wants to be read too."""

    create_type: str
    parent: bool
    extents: tuple[tuple[str, str], ...]
    """Kind and file name of each."""


class Grain(Struct, frozen=True):
    """One grain as the stream has it, to be inflated to ``filled`` bytes, of which the disk takes ``length``.

    Both are the same but for the disk's last grain, which programs write whole or not.
    """

    offset: int
    length: int
    filled: int
    deflated: bytes | memoryview


def read_header(sector: bytes, capacity_bytes_max: int = CAPACITY_BYTES_MAX) -> Header:
    """Return the header in the first 512 bytes. Raises: OvfFault (disk-not-vmdk, disk-bad-header, disk-too-large)."""
    if len(sector) < SECTOR_BYTES or sector[:4] != MAGIC:
        raise refusal("disk-not-vmdk", "the disk does not begin as a sparse VMDK does")
    fields = HEADER.unpack_from(sector)
    _, version, flags, capacity, grain, descriptor_at, descriptor, entries, _, directory, front = fields[:11]
    newlines, algorithm = fields[12:]
    _check_geometry(version, grain, entries, capacity)
    if flags & CHECKED_NEWLINES and newlines != NEWLINES:
        raise _bad("was changed by a transfer that took it for text; send it as binary")
    if flags & COMPRESSED and algorithm != DEFLATE:
        raise _bad(f"is compressed by an unknown algorithm ({algorithm})")
    if capacity * SECTOR_BYTES > capacity_bytes_max:
        message = f"the disk holds {capacity * SECTOR_BYTES} bytes, {capacity_bytes_max} are allowed"
        raise refusal("disk-too-large", message)
    if descriptor * SECTOR_BYTES > DESCRIPTOR_BYTES_MAX or (descriptor and not 0 < descriptor_at <= front):
        raise _bad("has its descriptor at an impossible place")
    tables = 8 * (capacity // grain + TABLE_ENTRIES)
    if front * SECTOR_BYTES > 2 * tables + DESCRIPTOR_BYTES_MAX + FRONT_SLACK_BYTES:
        raise _bad(f"has {front} sectors before its first grain, more than its tables need")
    return Header(
        version=version,
        flags=flags,
        capacity_bytes=capacity * SECTOR_BYTES,
        grain_bytes=grain * SECTOR_BYTES,
        descriptor_offset=descriptor_at * SECTOR_BYTES,
        descriptor_bytes=descriptor * SECTOR_BYTES,
        directory_offset=None if directory == AT_THE_END else directory * SECTOR_BYTES,
        front_bytes=max(front, 1) * SECTOR_BYTES,
    )


def _check_geometry(version: int, grain: int, entries: int, capacity: int) -> None:
    """Raises: OvfFault (disk-bad-header)."""
    if version not in VERSIONS:
        raise _bad(f"has the unknown version {version}")
    if not GRAIN_BYTES_MIN <= grain * SECTOR_BYTES <= GRAIN_BYTES_MAX or grain & (grain - 1):
        raise _bad(f"has grains of {grain} sectors; a power of two from 8 to 2048 is read")
    if entries != TABLE_ENTRIES:
        raise _bad(f"has {entries} grains per table; {TABLE_ENTRIES} are read")
    if capacity == 0:
        raise _bad("has no capacity")


def read_descriptor(text: bytes) -> Descriptor:
    """Return what the descriptor says. Raises: OvfFault (disk-bad-descriptor)."""
    content = text.rstrip(b"\0").decode("utf-8", "replace")
    if "# Disk DescriptorFile" not in content[:64]:
        raise refusal("disk-bad-descriptor", "the VMDK's descriptor does not begin with '# Disk DescriptorFile'")
    found = {key.lower(): value for key, value in _ASSIGNMENT.findall(content)}
    parent = found.get("parentcid", "ffffffff").lower() != "ffffffff" or "parentfilenamehint" in found
    extents = tuple(_EXTENT.findall(content))
    return Descriptor(create_type=found.get("createtype", ""), parent=parent, extents=extents)


def check_descriptor(descriptor: Descriptor) -> None:
    """Refuse a disk whose content is elsewhere. Raises: OvfFault (disk-external, disk-has-parent)."""
    if descriptor.parent:
        message = "the VMDK holds only the difference to another disk; export the VM with its snapshots consolidated"
        raise refusal("disk-has-parent", message)
    foreign = [name for kind, name in descriptor.extents if kind != "SPARSE" or "/" in name or "\\" in name]
    if foreign or len(descriptor.extents) > 1:
        message = f"the VMDK keeps its content in other files ({(foreign or ['several'])[0][:80]!r}), never followed"
        raise refusal("disk-external", f"{message}; convert it: qemu-img convert -O vmdk -o subformat=streamOptimized")


def read(chunks: Iterator[bytes], *, capacity_bytes_max: int, on_header: Callable[[Header], None]) -> Iterator[Grain]:
    """Yield every grain of the stream in the order found, once the whole front has been checked.

    ``on_header`` hears the header before the first grain. The stream is read to its end.
    Raises: OvfFault (those of ``read_header``; disk-not-streamed, disk-bad-descriptor, disk-external,
    disk-has-parent, disk-bad-marker, disk-overlap, disk-truncated).
    """
    intake = Intake(chunks)
    header = read_header(intake.take(SECTOR_BYTES), capacity_bytes_max)
    if not header.streamed:
        raise refusal("disk-not-streamed", "the VMDK is sparse but not streamOptimized; it cannot be read in one pass")
    announced = _read_front(intake, header)
    on_header(header)
    found = 0
    for grain in _Body(intake, header).grains():
        yield grain
        found += 1
    if announced is not None and found != announced:
        raise refusal("disk-truncated", f"the VMDK has {found} grains, its tables announce {announced}; send it again")
    intake.drain()


def _read_front(intake: Intake, header: Header) -> int | None:
    """Check the descriptor, skip the tables, which the markers make superfluous, and return how many grains they name.

    None: they are elsewhere, or not in the order in which one pass could read them.
    """
    if header.descriptor_bytes:
        intake.skip(header.descriptor_offset - SECTOR_BYTES)
        check_descriptor(read_descriptor(intake.take(header.descriptor_bytes)))
    if intake.position > header.front_bytes:
        raise _bad("has its first grain before the end of its descriptor")
    announced = _count_grains(intake, header)
    if intake.position > header.front_bytes:
        raise _bad("has its first grain within its tables")
    intake.skip(header.front_bytes - intake.position)
    return announced


def _count_grains(intake: Intake, header: Header) -> int | None:
    """Return how many grains the tables in front name, as qemu-img lays them out: the only sign of a cut-off file."""
    if header.directory_offset is None or not intake.position <= header.directory_offset < header.front_bytes:
        return None
    intake.skip(header.directory_offset - intake.position)
    tables = -(-header.capacity_bytes // (header.grain_bytes * TABLE_ENTRIES))
    directory = _numbers(intake.take(tables * 4))
    first, sectors = directory[0], TABLE_ENTRIES * 4 // SECTOR_BYTES
    in_order = all(entry == first + number * sectors for number, entry in enumerate(directory))
    if not in_order or first * SECTOR_BYTES < intake.position:
        return None
    intake.skip(first * SECTOR_BYTES - intake.position)
    return sum(_named(intake.take(TABLE_ENTRIES * 4)) for _ in directory)


def _named(table: bytes) -> int:
    """Return how many entries are neither absent (0) nor zeros (1)."""
    entries = _numbers(table)
    return TABLE_ENTRIES - entries.count(0) - entries.count(1)


def _numbers(content: bytes) -> array[int]:
    """Return little-endian 32-bit numbers."""
    numbers = array("I", content)
    if byteorder == "big":
        numbers.byteswap()
    return numbers


class _Body:
    """Everything behind the front: grains and metadata, each behind its marker."""

    def __init__(self, intake: Intake, header: Header) -> None:
        self._intake = intake
        self._header = header
        self._grain_sectors = header.grain_bytes // SECTOR_BYTES
        self._deflated_bytes_max = header.grain_bytes + header.grain_bytes // 64 + SECTOR_BYTES
        self._seen: dict[int, bytearray] = {}
        self._footer = False

    def grains(self) -> Iterator[Grain]:
        """Yield grains to the end-of-stream marker. Raises: OvfFault (disk-bad-marker, disk-overlap, disk-truncated)."""
        # qemu-img ends the file after the last grain, without a marker and without padding.
        while self._header.directory_offset is None or not self._intake.ended():
            marker = self._intake.take(MARKER.size)
            sector, size = MARKER.unpack(marker)
            if size:
                yield self._grain(sector, size)
            elif not self._metadata(sector):
                return

    def _grain(self, sector: int, size: int) -> Grain:
        if size > self._deflated_bytes_max:
            raise _marker(f"a grain of {size} compressed bytes")
        offset = sector * SECTOR_BYTES
        if sector % self._grain_sectors or offset >= self._header.capacity_bytes:
            raise _marker(f"a grain at sector {sector}, where none can be")
        self._claim(sector // self._grain_sectors)
        length = min(self._header.grain_bytes, self._header.capacity_bytes - offset)
        deflated = self._intake.view(size)
        self._intake.take(-(MARKER.size + size) % SECTOR_BYTES, least=0)
        return Grain(offset, length, self._header.grain_bytes, deflated)

    def _claim(self, grain: int) -> None:
        """Note the grain. Raises: OvfFault (disk-overlap) when it was there: each byte of a disk is written once."""
        page, index = divmod(grain, _PAGE_GRAINS)
        seen = self._seen.setdefault(page, bytearray(_PAGE_GRAINS // 8))
        bit = 1 << (index & 7)
        if seen[index >> 3] & bit:
            at = grain * self._header.grain_bytes
            raise refusal("disk-overlap", f"the VMDK fills the disk at byte {at} twice; export it again")
        seen[index >> 3] |= bit

    def _metadata(self, sectors: int) -> bool:
        """Skip what a marker announces; False: it was the last."""
        rest = self._intake.take(SECTOR_BYTES - MARKER.size)
        kind = int.from_bytes(rest[:4], "little")
        tables = self._header.capacity_bytes // self._header.grain_bytes // TABLE_ENTRIES + 1
        sectors_max = {END_OF_STREAM: 0, GRAIN_TABLE: 4, GRAIN_DIRECTORY: tables // 128 + 1, FOOTER: 1}.get(kind)
        if sectors_max is None or sectors > sectors_max:
            raise _marker(f"a marker of kind {kind} for {sectors} sectors")
        if kind == FOOTER and sectors:
            self._check_footer(self._intake.take(SECTOR_BYTES))
        else:
            self._intake.skip(sectors * SECTOR_BYTES)
        if kind != END_OF_STREAM:
            return True
        if self._header.directory_offset is None and not self._footer:
            raise _marker("an end without a footer")
        return False

    def _check_footer(self, sector: bytes) -> None:
        """Refuse a footer that speaks of another disk. Raises: OvfFault."""
        footer = read_header(sector)
        if (footer.capacity_bytes, footer.grain_bytes) != (self._header.capacity_bytes, self._header.grain_bytes):
            raise _marker("a footer that contradicts the header")
        self._footer = True


def _bad(what: str) -> OvfFault:
    return refusal("disk-bad-header", f"the VMDK {what}")


def _marker(what: str) -> OvfFault:
    return refusal("disk-bad-marker", f"the VMDK has {what}; export it again")
