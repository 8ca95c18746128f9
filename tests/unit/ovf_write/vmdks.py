"""VMDKs for tests: honest ones by qemu-img, hostile ones written sector by sector."""

from __future__ import annotations

import random
import subprocess
import zlib
from pathlib import Path

import pytest

from pileus.ovf import vmdk

MIB = 1024**2
GRAIN = 65_536


def qemu_img(*words: str | Path) -> str:
    """Run qemu-img; its absence skips the test."""
    try:
        ended = subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs qemu-img")
    except subprocess.CalledProcessError as exc:
        pytest.fail(f"qemu-img {words}: {exc.stdout}{exc.stderr}")
    return ended.stdout


def sparse_disk(path: Path, size_bytes: int = 70 * MIB, seed: int = 7) -> Path:
    """Write a raw disk with content at its start, across tables, and in its last, odd sector."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, length in ((0, 300_000), (33 * MIB + 512, 70_000), (48 * MIB, 4096), (size_bytes - 512, 512)):
            file.seek(offset)
            file.write(chance.randbytes(length // 2) + b"text " * (length // 10))
        file.truncate(size_bytes)
    return path


def streamed(raw: Path, vmdk_file: Path) -> Path:
    """Convert with qemu-img."""
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk_file)
    return vmdk_file


def sector(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def header(
    *, capacity: int = 10 * MIB, grain: int = GRAIN, front: int = 128, flags: int = 0x30001, directory: int = vmdk.AT_THE_END,
    version: int = 3, entries: int = 512, descriptor: int = 20,
) -> bytes:  # fmt: skip
    return vmdk.HEADER.pack(
        b"KDMV", version, flags, capacity // 512, grain // 512, 1, descriptor, entries, 0, directory, front, 0,
        b"\n \r\n", 1,
    )  # fmt: skip


DESCRIPTOR = (
    '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="streamOptimized"\n'
    'RW 20480 SPARSE "x.vmdk"\n'
)


def front(descriptor: str = DESCRIPTOR, **fields: int) -> bytes:
    """Return header and descriptor, padded to the first grain."""
    return (header(**fields) + descriptor.encode().ljust(20 * 512, b"\0")).ljust(fields.get("front", 128) * 512, b"\0")


def grain(number: int, content: bytes = b"x" * GRAIN, *, size: int | None = None) -> bytes:
    packed = zlib.compress(content)
    return sector(vmdk.MARKER.pack(number * GRAIN // 512, len(packed) if size is None else size) + packed)


def marker(kind: int, sectors: int = 0) -> bytes:
    return sector(vmdk.MARKER_KIND.pack(sectors, 0, kind))


def ending(**fields: int) -> bytes:
    """Return footer and end of stream."""
    return marker(vmdk.FOOTER, 1) + header(**fields) + marker(vmdk.END_OF_STREAM)
