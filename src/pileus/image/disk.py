"""Puts a kernel and a root file system on a disk that boots by itself on a BIOS: MBR, FAT with syslinux, root."""

from __future__ import annotations

import struct
from pathlib import Path

from msgspec import Struct

from pileus.image.tools import run
from pileus.image.types import BuildError

_SECTOR = 512
_FIRST_SECTOR = 2048
_FAT_ROOT_ENTRY = 32
_MBR_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
_DISK_SIGNATURE = 0x534C4950


class Boot(Struct, frozen=True, kw_only=True):
    """What the boot partition holds."""

    kernel: bytes
    initrd: bytes
    config: bytes
    """syslinux.cfg."""


def write_boot_partition(boot: Boot, image: Path, scratch: Path) -> None:
    """Write a FAT file system with the loader installed. Raises: BuildError (ToolFailed, MissingPackages)."""
    files = {"vmlinuz": boot.kernel, "initrd": boot.initrd, "syslinux.cfg": boot.config}
    size_kib = (sum(map(len, files.values())) // 1024 + 2048) // 1024 * 1024 + 1024
    if image.exists():
        image.unlink()
    run(["mkfs.fat", "--invariant", "-C", "-F", "16", "-h", str(_FIRST_SECTOR), "-n", "BOOT", image, str(size_kib)])
    for name, content in files.items():
        (scratch / name).write_bytes(content)
        run(["mcopy", "-i", image, scratch / name, f"::{name}"])
    run(["syslinux", "--install", image])
    _fix_times(image)


def write_disk(boot: Path, root: Path, disk: Path, scratch: Path) -> int:
    """Write the qcow2 disk of both partitions and return its virtual size in bytes. Raises: BuildError."""
    raw = scratch / "disk.raw"
    lengths = [_sectors(boot), _sectors(root)]
    with raw.open("wb") as out:
        out.write(_mbr(lengths))
        out.seek(_FIRST_SECTOR * _SECTOR)
        out.write(boot.read_bytes())
        out.write(root.read_bytes())
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    return raw.stat().st_size


def _mbr(lengths: list[int]) -> bytes:
    if not _MBR_CODE.is_file():
        raise BuildError("MissingPackages", f"{_MBR_CODE} is not there: install syslinux-common")
    code = _MBR_CODE.read_bytes()[:440].ljust(440, b"\0")
    root_start = _FIRST_SECTOR + lengths[0]
    table = _partition(0x80, 0x0E, _FIRST_SECTOR, lengths[0]) + _partition(0, 0x83, root_start, lengths[1])
    return code + struct.pack("<IH", _DISK_SIGNATURE, 0) + table + bytes(32) + b"\x55\xaa"


def _partition(active: int, kind: int, start: int, length: int) -> bytes:
    no_chs = b"\xfe\xff\xff"  # addressed by sector number only
    return struct.pack("<B3sB3sII", active, no_chs, kind, no_chs, start, length)


def _sectors(file: Path) -> int:
    return file.stat().st_size // _SECTOR


def _fix_times(image: Path) -> None:
    """Zero the times of the root folder's entries: mtools and syslinux write the clock's."""
    content = bytearray(image.read_bytes())
    reserved, copies, entries = struct.unpack_from("<HBH", content, 14)
    (fat_sectors,) = struct.unpack_from("<H", content, 22)
    start = (reserved + copies * fat_sectors) * _SECTOR
    for at in range(start, start + entries * _FAT_ROOT_ENTRY, _FAT_ROOT_ENTRY):
        # Byte 11 holds the attributes; 0x0F marks a part of a long name, which has no times.
        if content[at] and content[at + 11] != 0x0F:
            content[at + 13 : at + 20] = bytes(7)
            content[at + 22 : at + 26] = bytes(4)
    image.write_bytes(content)
