"""What every disk pool does, asked of the fake and of the one on qemu-img."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.disk.base import DiskPool, ImagePart, ImageSpec, PartName, VolumeSpec
from pileus.drivers.host.errors import DiskFull, DriverError, ImageRefused
from pileus.ovf.vmdk import read_header

if TYPE_CHECKING:
    from tests.contract.disk.conftest import Rig

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
PARTS: dict[PartName, bytes] = {"disk": b"\x07" * 65536, "kernel": b"kernel", "initrd": b"initrd"}


def fetch_from(parts: dict[PartName, bytes]) -> Callable[[PartName], AsyncIterator[bytes]]:
    async def fetch(name: PartName) -> AsyncIterator[bytes]:
        for start in range(0, len(parts[name]), 4096):
            yield parts[name][start : start + 4096]

    return fetch


def spec_of(parts: dict[PartName, bytes], image: str = "image-1") -> ImageSpec:
    described = {
        name: ImagePart(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in parts.items()
    }
    return ImageSpec(id=image, format="raw", virtual_size_bytes=len(parts["disk"]), parts=described)


async def opened(rig: Rig) -> DiskPool:
    pool = rig.pool()
    await pool.open()
    return pool


async def test_an_empty_pool_has_room_and_nothing_in_it(rig: Rig) -> None:
    pool = await opened(rig)
    assert await pool.volumes() == {}
    assert await pool.images() == {}
    room = await pool.capacity()
    assert 0 < room.free_bytes <= room.total_bytes


async def test_a_volume_is_as_large_as_asked_and_thin(rig: Rig) -> None:
    pool = await opened(rig)
    made = await pool.create(VolumeSpec(id="volume-1", size_bytes=1024 * MIB))
    assert (made.id, made.format, made.size_bytes, made.image) == ("volume-1", "qcow2", 1024 * MIB, None)
    assert made.used_bytes < MIB
    assert await pool.volumes() == {"volume-1": made}


async def test_making_a_volume_twice_gives_the_first(rig: Rig) -> None:
    pool = await opened(rig)
    first = await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB))
    assert await pool.create(VolumeSpec(id="volume-1", size_bytes=2 * MIB)) == first


async def test_calls_at_once_for_one_volume_make_one(rig: Rig) -> None:
    pool = await opened(rig)
    spec = VolumeSpec(id="volume-1", size_bytes=MIB)
    made = await asyncio.gather(*(pool.create(spec) for _ in range(5)))
    assert await pool.volumes() == {"volume-1": made[0]}
    assert made == [made[0]] * 5


async def test_a_volume_grows_and_never_shrinks(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=2 * MIB))
    await pool.resize("volume-1", 3 * MIB)
    assert (await pool.volumes())["volume-1"].size_bytes == 3 * MIB
    await pool.resize("volume-1", MIB)
    assert (await pool.volumes())["volume-1"].size_bytes == 3 * MIB


async def test_a_deleted_volume_is_gone_and_deleting_it_again_succeeds(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB))
    await pool.delete("volume-1")
    await pool.delete("volume-1")
    assert await pool.volumes() == {}


@pytest.mark.parametrize("size_bytes", [0, -512, 513])
async def test_a_volume_of_an_impossible_size_is_refused(rig: Rig, size_bytes: int) -> None:
    pool = await opened(rig)
    with pytest.raises(DriverError) as refused:
        await pool.create(VolumeSpec(id="volume-1", size_bytes=size_bytes))
    assert refused.value.reason == "SizeRefused"
    assert await pool.volumes() == {}


async def test_a_volume_that_is_not_there_cannot_grow(rig: Rig) -> None:
    pool = await opened(rig)
    with pytest.raises(DriverError) as refused:
        await pool.resize("volume-1", MIB)
    assert refused.value.reason == "NoVolume"


async def test_an_image_is_cached_with_its_kernel(rig: Rig) -> None:
    pool = await opened(rig)
    image = await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    assert image.kernel
    assert image.initrd
    assert (image.format, image.size_bytes, image.virtual_size_bytes) == ("raw", 65536, 65536)
    assert await pool.images() == {"image-1": image}


async def test_an_image_that_is_there_is_not_fetched_again(rig: Rig) -> None:
    pool = await opened(rig)
    first = await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    assert await pool.put_image(spec_of(PARTS), fetch_from({})) == first


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"\x08" * 65536, "DigestMismatch"), (b"\x07" * 65535, "SizeMismatch"), (b"\x07" * 65537, "SizeMismatch")],
)
async def test_an_image_that_is_not_what_was_announced_is_refused(rig: Rig, sent: bytes, reason: str) -> None:
    pool = await opened(rig)
    with pytest.raises(ImageRefused) as refused:
        await pool.put_image(spec_of(PARTS), fetch_from({**PARTS, "disk": sent}))
    assert refused.value.reason == reason
    assert await pool.images() == {}
    await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    assert set(await pool.images()) == {"image-1"}


async def test_a_download_that_breaks_off_leaves_no_image(rig: Rig) -> None:
    pool = await opened(rig)

    async def fetch(name: PartName) -> AsyncIterator[bytes]:
        yield PARTS[name][:100]
        raise ConnectionResetError("the server went away")

    with pytest.raises(ConnectionResetError):
        await pool.put_image(spec_of(PARTS), fetch)
    assert await pool.images() == {}


async def test_a_volume_of_an_image_that_is_not_cached_is_refused(rig: Rig) -> None:
    pool = await opened(rig)
    with pytest.raises(DriverError) as refused:
        await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB, image="image-1"))
    assert refused.value.reason == "NoImage"
    assert await pool.volumes() == {}


async def test_a_volume_smaller_than_its_image_is_refused(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    with pytest.raises(DriverError) as refused:
        await pool.create(VolumeSpec(id="volume-1", size_bytes=32768, image="image-1"))
    assert refused.value.reason == "VolumeTooSmall"
    await pool.delete_image("image-1")


async def test_an_image_stays_while_a_volume_is_its_child(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
    made = await pool.create(VolumeSpec(id="volume-1", size_bytes=MIB, image="image-1"))
    assert made.image == "image-1"
    with pytest.raises(DriverError) as refused:
        await pool.delete_image("image-1")
    assert refused.value.reason == "ImageInUse"
    assert "volume-1" in refused.value.message
    await pool.delete("volume-1")
    await pool.delete_image("image-1")
    await pool.delete_image("image-1")
    assert await pool.images() == {}


async def test_no_volume_is_left_without_its_image_when_both_change_at_once(rig: Rig) -> None:
    pool = await opened(rig)
    for round_number in range(10):
        await pool.put_image(spec_of(PARTS), fetch_from(PARTS))
        spec = VolumeSpec(id=f"volume-{round_number}", size_bytes=MIB, image="image-1")
        calls = [pool.create(spec), pool.delete_image("image-1")]
        await asyncio.gather(*(calls if round_number % 2 else reversed(calls)), return_exceptions=True)
        children = {fact.image for fact in (await pool.volumes()).values()}
        assert children <= set(await pool.images())
        await pool.delete(spec.id)


async def test_a_new_agent_finds_what_the_old_one_made(rig: Rig) -> None:
    old = await opened(rig)
    await old.put_image(spec_of(PARTS), fetch_from(PARTS))
    await old.create(VolumeSpec(id="volume-1", size_bytes=MIB, image="image-1"))
    await old.resize("volume-1", 2 * MIB)
    new = await opened(rig)
    assert await new.volumes() == await old.volumes()
    assert await new.images() == await old.images()
    assert (await new.volumes())["volume-1"].size_bytes == 2 * MIB


async def fill(pool: DiskPool) -> None:
    for number in range(100):
        await pool.create(VolumeSpec(id=f"volume-{number}", size_bytes=MIB))


async def test_a_full_disk_refuses_volumes_keeps_the_others_and_takes_new_ones_after_a_deletion(small_rig: Rig) -> None:
    pool = await opened(small_rig)
    with pytest.raises(DiskFull) as refused:
        await fill(pool)
    made = sorted(await pool.volumes())
    assert "pool" in refused.value.message
    assert "are free" in refused.value.message
    assert made
    await pool.delete(made.pop())
    await pool.create(VolumeSpec(id="volume-new", size_bytes=MIB))
    assert set(await pool.volumes()) == {*made, "volume-new"}


async def test_an_image_larger_than_the_room_is_refused_before_it_is_fetched(small_rig: Rig) -> None:
    pool = await opened(small_rig)
    with pytest.raises(DiskFull) as refused:
        await pool.put_image(spec_of({"disk": bytes(2 * MIB)}), fetch_from({}))
    assert f"needs {2 * MIB} bytes" in refused.value.message
    assert await pool.images() == {}


async def test_a_packed_volume_is_a_streamed_vmdk_of_its_size(rig: Rig) -> None:
    pool = await opened(rig)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=4 * MIB))
    packed = b"".join([part async for part in pool.packed("volume-1")])
    header = read_header(packed[:512])
    assert (header.streamed, header.capacity_bytes) == (True, 4 * MIB)


async def test_a_volume_that_is_not_there_cannot_be_packed(rig: Rig) -> None:
    pool = await opened(rig)
    with pytest.raises(DriverError) as refused:
        await anext(pool.packed("volume-1"))
    assert refused.value.reason == "NoVolume"
