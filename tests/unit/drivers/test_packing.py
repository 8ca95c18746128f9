"""A disk that is packed while it is carried away: all of it, and no process left when nobody takes it."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from pileus.drivers.host.disk.packing import PART_BYTES, vmdk_parts
from pileus.drivers.host.errors import DriverError
from pileus.ovf.exporting import pack_disk

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Four parts that cannot be made smaller, and a hole."""
    file = tmp_path / "disk.raw"
    with file.open("wb") as raw:
        raw.write(random.Random(3).randbytes(4 * PART_BYTES))
        raw.truncate(64 * MIB)
    return file


def packers(disk: Path) -> list[int]:
    """Return the processes that pack the disk."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile
            if entry.name.isdigit() and str(disk).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


async def test_the_parts_are_the_disk_as_it_is_packed_at_once(disk: Path, tmp_path: Path) -> None:
    parts = [part async for part in vmdk_parts(disk)]
    assert {len(part) for part in parts[:-1]} == {PART_BYTES}
    assert b"".join(parts) == pack_disk(disk, tmp_path / "disk.vmdk").path.read_bytes()


async def test_a_disk_that_nobody_takes_to_its_end_is_let_go(disk: Path) -> None:
    parts = vmdk_parts(disk)
    await anext(parts)
    assert packers(disk)
    await parts.aclose()
    assert not packers(disk)


async def test_a_disk_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No such file") as failed:
        await anext(vmdk_parts(tmp_path / "nothing"))
    assert failed.value.reason == "DiskToolFailed"
