"""Uploaded images, written byte by byte: what is accepted, and what is refused with which reason."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.drivers.host.disk.base import DiskFormat
from pileus.drivers.host.errors import ImageRefused
from pileus.image.inspect import inspect

CLUSTER = 65536
MIB = 1024 * 1024

FIELDS: dict[str, tuple[int, str]] = {
    "magic": (0, ">4s"),
    "version": (4, ">I"),
    "backing_offset": (8, ">Q"),
    "backing_bytes": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "virtual_size": (24, ">Q"),
    "encryption": (32, ">I"),
    "l1_entries": (36, ">I"),
    "l1_offset": (40, ">Q"),
    "refcount_offset": (48, ">Q"),
    "refcount_clusters": (56, ">I"),
    "snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_bytes": (100, ">I"),
}
"""Offset and kind of each field (QEMU docs/interop/qcow2.rst)."""


def qcow2(extensions: bytes = b"", /, **changes: int | bytes) -> bytearray:
    """Return an empty 64 MiB qcow2 with the fields changed: header, refcount table, refcounts, first table."""
    image = bytearray(4 * CLUSTER)
    sound: dict[str, int | bytes] = {
        "magic": b"QFI\xfb",
        "version": 3,
        "cluster_bits": 16,
        "virtual_size": 64 * MIB,
        "l1_entries": 1,
        "l1_offset": 3 * CLUSTER,
        "refcount_offset": CLUSTER,
        "refcount_clusters": 1,
        "refcount_order": 4,
        "header_bytes": 104,
    }
    for name, value in {**sound, **changes}.items():
        offset, kind = FIELDS[name]
        struct.pack_into(kind, image, offset, value)
    image[104 : 104 + len(extensions)] = extensions
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">4H", image, 2 * CLUSTER, 1, 1, 1, 1)
    return image


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


def refusal(folder: Path, content: bytes | bytearray, format: DiskFormat = "qcow2") -> tuple[str, str]:
    """Return reason and message."""
    path = folder / "image"
    path.write_bytes(content)
    with pytest.raises(ImageRefused) as refused:
        inspect(path, format)
    assert str(folder) not in refused.value.message
    return refused.value.reason, refused.value.message


def with_bytes(image: bytearray, offset: int, content: bytes) -> bytearray:
    image[offset : offset + len(content)] = content
    return image


def test_a_sound_qcow2_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2())
    facts = inspect(path, "qcow2")
    assert (facts.format, facts.virtual_size_bytes, facts.size_bytes) == ("qcow2", 64 * MIB, 4 * CLUSTER)


def test_a_sound_qcow2_of_version_2_is_accepted(tmp_path: Path) -> None:
    image = qcow2(version=2, refcount_order=0, header_bytes=0)
    path = tmp_path / "image"
    path.write_bytes(image)
    assert inspect(path, "qcow2").virtual_size_bytes == 64 * MIB


def test_a_raw_disk_is_accepted_with_any_content(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(with_bytes(bytearray(MIB), 510, b"\x55\xaa"))
    facts = inspect(path, "raw")
    assert (facts.format, facts.virtual_size_bytes, facts.size_bytes) == ("raw", MIB, MIB)


def test_harmless_extensions_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2(extension(0x6803F857, bytes(48)) + extension(0xE2792ACA, b"qcow2") + extension(0, b"")))
    assert inspect(path, "qcow2").virtual_size_bytes == 64 * MIB


REFUSED: dict[str, tuple[bytearray, str]] = {
    "backing file": (qcow2(backing_offset=512, backing_bytes=11), "BackingFile"),
    "backing file without a length": (qcow2(backing_offset=512), "BackingFile"),
    "backing file of version 2": (qcow2(version=2, backing_offset=512, backing_bytes=11), "BackingFile"),
    "external data bit": (qcow2(incompatible=4), "ExternalData"),
    "external data name without the bit": (qcow2(extension(0x44415441, b"/etc/shadow")), "ExternalData"),
    "encrypted by AES": (qcow2(encryption=1), "Encrypted"),
    "encrypted by LUKS": (qcow2(encryption=2), "Encrypted"),
    "encryption header": (qcow2(extension(0x0537BE77, bytes(16))), "Encrypted"),
    "internal snapshots": (qcow2(snapshots=1, snapshots_offset=CLUSTER), "InternalSnapshots"),
    "version 1": (qcow2(version=1), "UnsupportedVersion"),
    "version 4": (qcow2(version=4), "UnsupportedVersion"),
    "unknown feature": (qcow2(incompatible=1 << 5), "UnsupportedFeature"),
    "unknown high feature": (qcow2(incompatible=1 << 63), "UnsupportedFeature"),
    "compression bit without a kind": (qcow2(incompatible=8), "UnsupportedFeature"),
    "unknown extension": (qcow2(extension(0x12345678, b"x")), "UnsupportedFeature"),
    "dirty": (qcow2(incompatible=1), "Dirty"),
    "corrupt": (qcow2(incompatible=2), "Corrupt"),
    "huge first table": (qcow2(l1_entries=0xFFFF_FFFF), "TableTooLarge"),
    "first table over QEMU's limit": (qcow2(l1_entries=32 * MIB // 8 + 1), "TableTooLarge"),
    "huge refcount table": (qcow2(refcount_clusters=0xFFFF_FFFF), "TableTooLarge"),
    "first table too small": (qcow2(virtual_size=1024**4), "BadHeader"),
    "first table in the header": (qcow2(l1_offset=0), "BadHeader"),
    "first table between clusters": (qcow2(l1_offset=3 * CLUSTER + 8), "BadHeader"),
    "first table behind the end": (qcow2(l1_offset=1 << 40), "Truncated"),
    "refcount table behind the end": (qcow2(refcount_offset=1 << 63), "Truncated"),
    "second table behind the end": (
        with_bytes(qcow2(), 3 * CLUSTER, struct.pack(">Q", 1 << 40 | 1 << 63)),
        "Truncated",
    ),
    "refcounts behind the end": (with_bytes(qcow2(), CLUSTER + 8, struct.pack(">Q", 1 << 40)), "Truncated"),
    "used cluster behind the end": (with_bytes(qcow2(), 2 * CLUSTER + 8, b"\0\1"), "Truncated"),
    "no refcount table": (qcow2(refcount_clusters=0), "BadHeader"),
    "cluster bits 8": (qcow2(cluster_bits=8), "BadClusterSize"),
    "cluster bits 22": (qcow2(cluster_bits=22), "BadClusterSize"),
    "cluster bits 2^32-1": (qcow2(cluster_bits=0xFFFF_FFFF), "BadClusterSize"),
    "refcount order 7": (qcow2(refcount_order=7), "BadHeader"),
    "header too short": (qcow2(header_bytes=72), "BadHeader"),
    "header too long": (qcow2(header_bytes=0xFFFF_FFF8), "BadHeader"),
    "extension longer than the header": (qcow2(struct.pack(">II", 0x6803F857, 0xFFFF_FFFF)), "BadHeader"),
    "no size": (qcow2(virtual_size=0), "BadSize"),
    "half a sector": (qcow2(virtual_size=64 * MIB - 256), "BadSize"),
    "cut off in the header": (qcow2()[:100], "Truncated"),
    "cut off behind the header": (qcow2()[:CLUSTER], "Truncated"),
    "ISO too": (with_bytes(qcow2(), 0x8001, b"CD001"), "Polyglot"),
    "tar too": (with_bytes(qcow2(), 257, b"ustar"), "Polyglot"),
    "fixed VHD too": (with_bytes(qcow2(), 4 * CLUSTER - 512, b"conectix"), "Polyglot"),
    "boot sector too": (with_bytes(qcow2(), 510, b"\x55\xaa"), "Polyglot"),
    "hidden bytes": (with_bytes(qcow2(), 4096, b"#!/bin/sh"), "Polyglot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_qcow2_is_refused_for_its_reason(tmp_path: Path, case: str) -> None:
    content, reason = REFUSED[case]
    assert refusal(tmp_path, content)[0] == reason


KNOWN: dict[str, bytes] = {
    "VMDK image": b"KDMV" + bytes(508),
    "VMDK descriptor": b'# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n'.ljust(512),
    "VHD image": b"conectix" + bytes(504),
    "fixed VHD": bytes(512) + b"conectix" + bytes(504),
    "VHDX": b"vhdxfile" + bytes(504),
    "VDI": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe" + bytes(444),
    "QED": b"QED\0" + bytes(508),
    "Parallels": b"WithoutFreeSpace" + bytes(496),
    "LUKS": b"LUKS\xba\xbe" + bytes(506),
    "DMG": bytes(512) + b"koly" + bytes(508),
    "gzip": b"\x1f\x8b" + bytes(510),
    "xz": b"\xfd7zXZ\0" + bytes(506),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(508),
    "zip": b"PK\x03\x04" + bytes(508),
    "tar": bytes(257) + b"ustar" + bytes(250),
}
"""A word of the message, and a file of that format."""


@pytest.mark.parametrize("word", KNOWN)
def test_another_format_claimed_to_be_qcow2_is_named(tmp_path: Path, word: str) -> None:
    reason, message = refusal(tmp_path, KNOWN[word])
    assert reason == "UnknownFormat"
    assert word in message


@pytest.mark.parametrize("word", KNOWN)
def test_another_format_claimed_to_be_raw_is_named(tmp_path: Path, word: str) -> None:
    reason, message = refusal(tmp_path, KNOWN[word], "raw")
    assert reason == "FormatMismatch"
    assert word in message


def test_an_iso_claimed_to_be_qcow2_is_named(tmp_path: Path) -> None:
    reason, message = refusal(tmp_path, with_bytes(bytearray(CLUSTER), 0x8001, b"CD001"))
    assert (reason, "ISO 9660" in message) == ("UnknownFormat", True)


def test_random_bytes_claimed_to_be_qcow2_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"\x01" * 512)[0] == "UnknownFormat"
    assert refusal(tmp_path, b"")[0] == "UnknownFormat"


def test_qcow2_bytes_in_a_file_claimed_raw_are_refused(tmp_path: Path) -> None:
    reason, message = refusal(tmp_path, qcow2(), "raw")
    assert (reason, "qcow2" in message) == ("FormatMismatch", True)


@pytest.mark.parametrize("text", [b"\n\n# my disk\nversion=1\n", b" \t\n#\r\nversion=2\n", b"version=1\n"])
def test_a_vmdk_descriptor_behind_comments_claimed_raw_is_refused(tmp_path: Path, text: bytes) -> None:
    assert refusal(tmp_path, text.ljust(512), "raw")[0] == "FormatMismatch"


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 513])
def test_a_raw_disk_of_part_of_a_sector_is_refused(tmp_path: Path, size_bytes: int) -> None:
    assert refusal(tmp_path, bytes(size_bytes), "raw")[0] == "BadSize"


@pytest.mark.parametrize(("format", "content"), [("qcow2", qcow2()), ("raw", bytes(MIB))])
def test_a_disk_over_the_callers_limit_is_refused(tmp_path: Path, format: DiskFormat, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(ImageRefused) as refused:
        inspect(path, format, virtual_size_bytes_max=MIB - 512)
    assert refused.value.reason == "TooLarge"


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    sound, link, pipe = tmp_path / "sound", tmp_path / "link", tmp_path / "pipe"
    sound.write_bytes(bytes(512))
    link.symlink_to(sound)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(ImageRefused) as refused:
            inspect(path, "raw")
        assert refused.value.reason == "NotAFile"


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(4, 160), st.binary(min_size=1, max_size=8)), max_size=4),
    tables=st.lists(st.tuples(st.integers(CLUSTER, 4 * CLUSTER - 8), st.binary(min_size=1, max_size=8)), max_size=3),
    length=st.integers(0, 4 * CLUSTER),
)
def test_no_header_leads_to_anything_but_facts_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, bytes]],
    tables: list[tuple[int, bytes]],
    length: int,
) -> None:
    image = qcow2()
    for offset, content in (*changes, *tables):
        with_bytes(image, offset, content)
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(image[:length] if length % 2 else image)
    try:
        facts = inspect(path, "qcow2")
    except ImageRefused:
        return
    assert 0 < facts.virtual_size_bytes <= 16 * 1024**4
    assert image[8:20] == bytes(12)
    assert struct.unpack_from(">I", image, 60) == (0,)
