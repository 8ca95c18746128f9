"""Volumes that are read: their own files while nobody has them open, else a copy that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from tests.contract.disk.test_disk_pool import MIB, PARTS, fetch_from, opened, spec_of
from tests.contract.disk.test_disk_snapshots import leave, qemu_io

from pileus.drivers.host.disk.base import DiskLayer, VolumeSpec
from pileus.drivers.host.errors import DiskFull, DriverError

if TYPE_CHECKING:
    from tests.contract.disk.conftest import RealRig, Rig

pytestmark = pytest.mark.anyio


def is_there(path: str) -> bool:
    return os.path.lexists(path)


async def copied(path: str) -> float:
    """Be a machine that writes its disk there."""
    return 1234.5


async def test_a_volume_that_nobody_has_open_is_read_where_it_is(rig: Rig) -> None:
    pool = await opened(rig)
    made = await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    async with pool.layers("volume-1") as layers:
        assert layers == (DiskLayer(made.path, "qcow2"),)
    with pytest.raises(DriverError) as caught:
        async with pool.layers("volume-2"):
            raise AssertionError("there is none")
    assert caught.value.reason == "NoVolume"


async def test_one_that_goes_or_is_made_anew_meanwhile_was_not_read(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    with pytest.raises(DriverError) as caught:
        async with pool.layers("volume-1"):
            await pool.resize("volume-1", 8 * MIB)
    assert caught.value.reason == "VolumeChanged"
    with pytest.raises(DriverError) as caught:
        async with pool.layers("volume-1"):
            await pool.delete("volume-1")
    assert caught.value.reason == "VolumeChanged"


async def test_one_that_a_machine_has_open_is_read_from_a_copy_that_does_not_stay(rig: Rig) -> None:
    pool = await opened(rig)
    made = await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    targets: list[str] = []

    async def copy(path: str) -> float:
        targets.append(path)
        return await copied(path)

    before = await pool.capacity()
    async with pool.layers("volume-1", copy) as layers:
        assert layers == (DiskLayer(targets[0], "qcow2"),)
        assert targets[0] != made.path
        await pool.resize("volume-1", 8 * MIB)  # what becomes of the volume is nothing to the copy
        assert (set(await pool.volumes()), await pool.snapshots()) == ({"volume-1"}, {})
    assert (await pool.capacity()).total_bytes == before.total_bytes
    assert not is_there(targets[0])
    with pytest.raises(ValueError, match="whoever reads"):
        async with pool.layers("volume-1", copy):
            raise ValueError("whoever reads it failed")
    assert not is_there(targets[1])


async def test_a_copy_that_fails_is_nothing_to_read(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))

    async def copy(path: str) -> float:
        raise DriverError("CopyFailed", "the machine ended")

    with pytest.raises(DriverError, match="machine ended"):
        async with pool.layers("volume-1", copy):
            raise AssertionError("there is nothing to read")


async def test_a_pool_without_room_makes_no_copy(small_rig: Rig) -> None:
    pool = await opened(small_rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    copies = contextlib.AsyncExitStack()
    async with copies:
        while True:
            try:
                await copies.enter_async_context(pool.layers("volume-1", copied))
            except DiskFull:
                break
    async with pool.layers("volume-1", copied) as layers:
        assert len(layers) == 1


async def test_what_lies_in_the_image_is_said_with_it_and_what_is_written_is_noticed(real: RealRig) -> None:
    pool = await opened(real)
    image = await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    made = await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB, image="image-1"))
    async with pool.layers("volume-1") as layers:
        assert layers == (DiskLayer(made.path, "qcow2"), DiskLayer(image.path, "raw"))
    with pytest.raises(DriverError) as caught:
        async with pool.layers("volume-1"):
            qemu_io(made.path, "write -P 0x21 512k 64k")
    assert caught.value.reason == "VolumeChanged"


async def test_what_an_agent_that_died_had_copied_is_gone_when_the_next_begins(real: RealRig) -> None:
    pool = await opened(real)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB))
    leave(real.paths.pool / "volumes", "volume-1-0123abcd.qcow2.tmp")
    before = real.names()
    pool = await opened(real)
    assert before - real.names() == {"volumes/volume-1-0123abcd.qcow2.tmp"}
    assert set(await pool.volumes()) == {"volume-1"}
