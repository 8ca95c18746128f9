"""A disk that only UEFI starts: GRUB on an EFI system partition, and Debian's kernel, which says by what it was started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pileus.image.packages import candidates, current_kernel, default_cache, fetch, unpack
from pileus.image.types import BuildError

SECTOR_BYTES = 512
FIRST_SECTOR = 2048
PARTITION_SECTORS = 60 << 11
DISK_BYTES = 64 << 20
GRUB_SAYS = "GRUB-WAS-STARTED"
KERNEL_SAYS = r"efi: EFI v[0-9.]+ by EDK II"
_MENU = f"echo {GRUB_SAYS}\nlinux /vmlinuz console=ttyS0 panic=0\nboot\n"


def efi_disk(folder: Path) -> Path:
    """Write the raw disk, of what Debian's packages hold; without them this is a visible skip."""
    unpacked = folder / "unpacked"
    try:
        names = ("grub-efi-amd64-signed", current_kernel("linux-image-cloud-amd64"))
        unpack(fetch(candidates(names), default_cache(), lambda line: None), unpacked)
    except BuildError as error:
        pytest.skip(f"no EFI boot loader: {error}")
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    menu = folder / "grub.cfg"
    menu.write_text(_MENU)
    disk = folder / "efi.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    table = f"label: gpt\nstart={FIRST_SECTOR}, size={PARTITION_SECTORS}, type=U\n"
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=table, text=True, check=True)
    for words in (
        ("mformat", "-T", str(PARTITION_SECTORS), "-h", "64", "-s", "32", "::"),
        ("mmd", "::EFI", "::EFI/BOOT", "::EFI/debian"),
        ("mcopy", str(unpacked / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"), "::EFI/BOOT/BOOTX64.EFI"),
        ("mcopy", str(menu), "::EFI/debian/grub.cfg"),
        ("mcopy", str(kernel), "::vmlinuz"),
    ):
        within = [words[0], "-i", f"{disk}@@{FIRST_SECTOR * SECTOR_BYTES}", *words[1:]]
        subprocess.run(within, check=True, capture_output=True, env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})
    return disk
