"""Snapshots of a pool: whole copies that outlive their volumes, made whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.disk.test_disk_pool import MIB, PARTS, fetch_from, opened, spec_of

from pileus.drivers.host.disk.base import VolumeSpec
from pileus.drivers.host.errors import DiskFull, DriverError

if TYPE_CHECKING:
    from tests.contract.disk.conftest import RealRig, Rig

pytestmark = pytest.mark.anyio


def qemu_io(path: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *words, path], check=True, capture_output=True, timeout=60)
    assert b"failed" not in done.stdout, done.stdout


def leave(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"{}")


async def test_a_snapshot_outlives_its_volume_and_taking_it_twice_gives_the_first(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    before = time.time()
    first = await pool.take_snapshot("snapshot-1", "volume-1")
    assert (first.id, first.volume, first.size_bytes) == ("snapshot-1", "volume-1", 4 * MIB)
    assert before <= first.taken_at <= time.time()
    await pool.resize("volume-1", 8 * MIB)
    assert await pool.take_snapshot("snapshot-1", "volume-1") == first
    await pool.delete("volume-1")
    assert await pool.snapshots() == {"snapshot-1": first}
    assert await (await opened(rig)).snapshots() == {"snapshot-1": first}
    for _ in range(2):
        await pool.delete_snapshot("snapshot-1")
    assert await pool.snapshots() == {}


async def test_the_moment_of_a_volume_in_use_is_what_its_machine_says(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))

    async def copy(path: str) -> float:
        return 1234.5

    assert (await pool.take_snapshot("snapshot-1", "volume-1", copy)).taken_at == 1234.5
    assert set(await pool.volumes()) == {"volume-1"}


async def test_a_copy_that_fails_leaves_nothing(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))

    async def copy(path: str) -> float:
        raise DriverError("CopyFailed", "the machine ended")

    with pytest.raises(DriverError, match="machine ended"):
        await pool.take_snapshot("snapshot-1", "volume-1", copy)
    assert await pool.snapshots() == {}
    with pytest.raises(DriverError) as caught:
        await pool.take_snapshot("snapshot-1", "volume-2")
    assert caught.value.reason == "NoVolume"


async def test_a_volume_begins_as_a_copy_of_a_snapshot(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    await pool.take_snapshot("snapshot-1", "volume-1")
    made = await pool.create(VolumeSpec(id="volume-2", size_bytes=8 * MIB, snapshot="snapshot-1"))
    assert (made.size_bytes, made.image) == (8 * MIB, None)
    for size_bytes, snapshot, reason in ((MIB, "snapshot-1", "VolumeTooSmall"), (8 * MIB, "nothing", "NoSnapshot")):
        with pytest.raises(DriverError) as caught:
            await pool.create(VolumeSpec(id="volume-3", size_bytes=size_bytes, snapshot=snapshot))
        assert caught.value.reason == reason
    await pool.delete_snapshot("snapshot-1")
    assert set(await pool.volumes()) == {"volume-1", "volume-2"}


async def test_what_was_written_is_in_it_with_what_lies_in_the_image_and_needs_neither(real: RealRig) -> None:
    pool = await opened(real)
    await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    volume = await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB, image="image-1"))
    qemu_io(volume.path, "write -P 0x21 512k 64k")
    kept = await pool.take_snapshot("snapshot-1", "volume-1")
    qemu_io(volume.path, "write -P 0x22 512k 64k")
    again = await pool.create(VolumeSpec(id="volume-2", size_bytes=2 * MIB, snapshot="snapshot-1"))
    await pool.delete("volume-1")
    await pool.delete_image("image-1")
    for path in (kept.path, again.path):
        qemu_io(path, "read -P 0x07 0 64k", "read -P 0x21 512k 64k", "read -P 0 576k 64k")
    qemu_io(again.path, "write -P 1 1536k 64k")
    assert stat.S_IMODE(os.stat(kept.path).st_mode) == 0o400


async def test_an_agent_that_dies_before_the_end_leaves_nothing_half_made(real: RealRig) -> None:
    pool = await opened(real)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    folder = real.paths.pool / "snapshots"
    leave(folder, "snapshot-1.qcow2.tmp", "snapshot-2.json", "snapshot-3.json.tmp")
    pool = await opened(real)
    assert os.listdir(folder) == []
    assert await pool.snapshots() == {}
    await pool.take_snapshot("snapshot-1", "volume-1")


async def test_a_pool_without_room_refuses_a_snapshot_and_keeps_what_it_has(small_rig: Rig) -> None:
    pool = await opened(small_rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    for number in range(20):
        try:
            await pool.take_snapshot(f"snapshot-{number}", "volume-1")
        except DiskFull:
            break
    else:
        pytest.fail("the pool took more than it has room for")
    assert len(await pool.snapshots()) == number
