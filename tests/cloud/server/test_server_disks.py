"""What a volume holds goes out only while nobody writes to it, and only to those who may change it."""

from __future__ import annotations

import pytest
from tests.cloud.server.server_world import Caller, World

from pileus.kernel.errors import Transient
from pileus.kernel.transaction import Transaction
from pileus.storage.volume.types import VolumeAssigned, VolumeObserved

pytestmark = pytest.mark.anyio

HOST = "01900000-0000-7000-8000-00000000000a"


class Disk:
    """A volume's bytes as its host sends them."""

    def __init__(self, *parts: bytes, broken: bool = False) -> None:
        self._parts = list(parts)
        self._broken = broken
        self.closed = False

    @property
    def done(self) -> bool:
        """Whether all was read."""
        return not self._parts

    async def read(self) -> bytes:
        """Return the next part."""
        if not self._parts and self._broken:
            raise Transient("the host went away")
        return self._parts.pop(0) if self._parts else b""

    async def write(self, content: bytes, /) -> None:
        """Nobody writes."""

    async def finish(self) -> None:
        """Nobody writes."""

    async def close(self) -> None:
        """Note that it was let go of."""
        self.closed = True


async def _volume(world: World) -> tuple[Caller, str]:
    """Make a volume that is on a host."""
    call = world.caller(await world.account("acme"))
    made = await call("POST", "/v1/storage.volume", {"name": "mine", "desired": {"size_gib": 1}})
    assert made.status == 201, made.body
    volume = await world.store.get(made.json["id"])

    async def place(tx: Transaction) -> None:
        current = await tx.get(volume.id)
        assigned = VolumeAssigned(zone="", vdc="", host=HOST)
        await tx.update(current, assigned=assigned, observed=VolumeObserved(state="present", size_gib=1))

    await world.store.write(place)
    return call, volume.id


async def test_a_volume_that_no_vm_has_is_sent_as_its_host_packs_it(world: World) -> None:
    call, id = await _volume(world)
    disk = world.agents.disks[id] = Disk(b"KDMV", b"rest")
    answer = await call("GET", "/v1/storage.volume/mine/content")
    assert (answer.status, answer.body) == (200, b"KDMVrest")
    assert disk.closed
    entries = (await world.operator("GET", "/v1/audit?account=acme")).json["items"]
    assert any(entry["verb"] == "download" and entry["id"] == id for entry in entries)


async def test_a_host_that_refuses_is_an_error_and_not_an_empty_disk(world: World) -> None:
    call, id = await _volume(world)
    assert (await call("GET", f"/v1/storage.volume/{id}/content")).status == 503
    empty = world.agents.disks[id] = Disk()
    assert (await call("GET", f"/v1/storage.volume/{id}/content")).status == 503
    assert empty.closed


async def test_who_may_only_read_gets_no_disk(world: World) -> None:
    _, id = await _volume(world)
    world.agents.disks[id] = Disk(b"KDMV")
    stranger = world.caller(await world.account("umbrella"))
    reader = world.caller(await world.user("acme", "reader", "reader"))
    path = f"/v1/storage.volume/{id}/content"
    assert (await stranger("GET", path)).status == 404
    assert (await reader("GET", path)).status == 403
    assert (await world.caller()("GET", path)).status == 401


async def test_a_volume_that_is_not_made_has_nothing_to_send(world: World) -> None:
    call = world.caller(await world.account("acme"))
    made = await call("POST", "/v1/storage.volume", {"name": "blank", "desired": {"size_gib": 1}})
    answer = await call("GET", f"/v1/storage.volume/{made.json['id']}/content")
    assert (answer.status, answer.code) == (409, "not-made")
