"""What only the simulated pool can: fail on demand, and be many."""

from __future__ import annotations

import pytest

from pileus.drivers.host.disk.base import VolumeSpec
from pileus.drivers.host.disk.fake import FakePool, FakePoolWorld, Fault
from pileus.drivers.host.errors import DiskFull, DriverError

pytestmark = pytest.mark.anyio

GIB = 1024**3


async def test_the_kth_call_fails_before_its_work() -> None:
    world = FakePoolWorld(latencies_s={}, faults=(Fault(call="create", k=2),))
    pool = FakePool(world, GIB)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=GIB))
    with pytest.raises(DriverError):
        await pool.create(VolumeSpec(id="volume-2", size_bytes=GIB))
    assert set(world.volumes) == {"volume-1"}
    await pool.create(VolumeSpec(id="volume-2", size_bytes=GIB))
    assert set(world.volumes) == {"volume-1", "volume-2"}


async def test_the_kth_call_loses_only_its_answer() -> None:
    world = FakePoolWorld(latencies_s={}, faults=(Fault(call="create", k=1, error=DiskFull("lost"), after=True),))
    pool = FakePool(world, GIB)
    with pytest.raises(DiskFull):
        await pool.create(VolumeSpec(id="volume-1", size_bytes=GIB))
    assert set(world.volumes) == {"volume-1"}


async def test_a_guest_that_fills_its_disk_fills_the_host() -> None:
    world = FakePoolWorld(latencies_s={})
    pool = FakePool(world, GIB)
    await pool.create(VolumeSpec(id="volume-1", size_bytes=GIB))
    world.write("volume-1", GIB)
    assert (await pool.capacity()).free_bytes == 0
    with pytest.raises(DiskFull):
        await pool.create(VolumeSpec(id="volume-2", size_bytes=GIB))


async def test_a_thousand_hosts_have_a_pool_each() -> None:
    pools = [FakePool(FakePoolWorld(latencies_s={}), GIB) for _ in range(1000)]
    for pool in pools:
        await pool.create(VolumeSpec(id="volume-1", size_bytes=GIB))
    assert all([set(await pool.volumes()) == {"volume-1"} for pool in pools])
