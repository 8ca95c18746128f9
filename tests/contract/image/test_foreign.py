"""Disks of other hypervisors, damaged at random: each is refused with a sentence, or has a sensible size."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from pileus.drivers.host.errors import ImageRefused
from pileus.image.foreign import ForeignFormat, virtual_size_bytes

MIB = 1 << 20
MADE: dict[str, tuple[ForeignFormat, str]] = {
    "VMDK": ("vmdk", "-f vmdk"),
    "streamed VMDK": ("vmdk", "-f vmdk -o subformat=streamOptimized"),
    "VHD": ("vhd", "-f vpc -o force_size=on"),
    "fixed VHD": ("vhd", "-f vpc -o subformat=fixed,force_size=on"),
    "VHDX": ("vhdx", "-f vhdx"),
    "VDI": ("vdi", "-f vdi"),
}


def size_of(path: Path, format: ForeignFormat) -> int:
    file = os.open(path, os.O_RDONLY)
    try:
        return virtual_size_bytes(file, os.fstat(file).st_size, format)
    finally:
        os.close(file)


@pytest.mark.parametrize("case", MADE)
def test_a_damaged_disk_is_refused_or_has_a_size(case: str, tmp_path: Path) -> None:
    format, words = MADE[case]
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", *words.split(), str(path), "1M"], check=True)
    assert size_of(path, format) == MIB
    sound = path.read_bytes()[: 4 * MIB]
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    places = [number for number, byte in enumerate(sound) if byte]
    said: list[str] = []
    for _ in range(100):
        damaged = bytearray(sound)
        for place in dice.sample(places, k=min(len(places), dice.randint(1, 8))):
            damaged[place] = dice.randrange(256)
        path.write_bytes(damaged[: dice.randrange(1, len(damaged))] if dice.random() < 0.2 else damaged)
        try:
            assert size_of(path, format) > 0
        except ImageRefused as refused:
            said.append(refused.message)
    assert all(said)
    assert not any(str(tmp_path) in message for message in said)
