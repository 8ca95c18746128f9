"""How big and how many a package's parts may be; every limit is far above what honest packages need."""

from __future__ import annotations

from msgspec import Struct

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


class Limits(Struct, frozen=True, kw_only=True):
    """What a package may cost. The largest honest disk seen is 1.5 TB, the largest honest descriptor some MB."""

    descriptor_bytes: int = 16 * MIB
    elements: int = 100_000
    depth: int = 64
    names: int = 10_000
    """Different names of elements and attributes."""
    namespaces: int = 1_000
    text_chars: int = 1 * MIB
    """Of one text."""
    tree_bytes: int = 18 * MIB
    """Of a descriptor's elements, attributes and texts together, in memory."""
    token_bytes: int = MIB // 2
    """Of one tag with its attributes."""
    manifest_bytes: int = 1 * MIB
    certificate_bytes: int = MIB // 4
    members: int = 10_000
    name_bytes: int = 1024
    capacity_bytes: int = 16 * TIB
    """Of one disk."""
    file_bytes: int = 16 * TIB
    """Of one stored file."""
    unpacked_bytes: int = 16 * GIB
    """Of a compressed file that is no disk; a disk may be as long as its capacity and ``slack_bytes``."""
    slack_bytes: int = 64 * MIB
    ratio: int = 300
    """Unpacked to stored, for a compressed file that is no disk, after the first MiB."""
    systems: int = 1_000
    disks: int = 1_000
    properties: int = 10_000
    hardware_items: int = 1_000
    """Of one VM."""
    optional_items: int = 50_000
    """All hardware items times deployment options, since each option is a choice of items."""
    memory_mib: int = 64 << 20
    vcpus: int = 8_192


DEFAULT = Limits()
