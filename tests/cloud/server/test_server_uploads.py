"""Uploads to images: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.cloud.server.server_world import Caller, World

from pileus.server.images import ImageStore
from pileus.storage.image.types import ImageObserved

pytestmark = pytest.mark.anyio

CONTENT = os.urandom(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_an_upload_lands_whole_and_is_announced(world: World) -> None:
    call, id = await _image(world)
    answer = await call(
        "PUT", "/v1/storage.image/mine/disk", [CONTENT[:1000], CONTENT[1000:]], {"x-content-sha256": DIGEST}
    )
    assert answer.status == 200
    assert answer.json["id"] == id
    assert world.uploads == [(id, "disk", DIGEST, len(CONTENT))]
    assert world.parts.images.path(id, "upload").read_bytes() == CONTENT
    assert (world.parts.images.path(id, "upload").stat().st_mode & 0o777) == 0o600
    entries = (await world.operator("GET", "/v1/audit?account=acme")).json["items"]
    assert any(entry["verb"] == "upload" and entry["id"] == id for entry in entries)


async def test_a_wrong_digest_keeps_nothing(world: World) -> None:
    call, id = await _image(world)
    answer = await call("PUT", f"/v1/storage.image/{id}/disk", CONTENT, {"x-content-sha256": "0" * 64})
    assert (answer.status, answer.code) == (400, "digest-mismatch")
    _nothing_kept(world, id)


async def test_the_digest_in_the_wish_counts_too(world: World) -> None:
    call, id = await _image(world, sha256="1" * 64)
    assert (await call("PUT", f"/v1/storage.image/{id}/disk", CONTENT)).code == "digest-mismatch"
    assert (await call("PUT", f"/v1/storage.image/{id}/kernel", CONTENT)).status == 200


async def test_a_too_large_upload_keeps_nothing(world: World) -> None:
    call, id = await _image(world)
    announced = await call("PUT", f"/v1/storage.image/{id}/disk", b"x", {"content-length": "1000001"})
    streamed = await call("PUT", f"/v1/storage.image/{id}/disk", [b"x" * 400_000] * 3)
    assert (announced.status, streamed.status) == (413, 413)
    _nothing_kept(world, id)


async def test_an_empty_upload_is_refused(world: World) -> None:
    call, id = await _image(world)
    assert (await call("PUT", f"/v1/storage.image/{id}/disk", b"")).code == "empty-upload"
    _nothing_kept(world, id)


async def test_a_second_upload_of_the_same_part_is_refused_while_the_first_runs(world: World) -> None:
    call, id = await _image(world)

    async def body() -> AsyncIterator[bytes]:
        inner = await call("PUT", f"/v1/storage.image/{id}/disk", CONTENT)
        assert (inner.status, inner.code) == (409, "uploading")
        yield CONTENT

    received = await world.parts.images.receive(id, "disk", body(), announced=None, digests=())
    assert received.sha256 == DIGEST


@pytest.mark.parametrize("state", ["inspecting", "available"])
async def test_content_that_is_used_cannot_be_replaced(world: World, state: str) -> None:
    call, id = await _image(world)
    image = await world.store.get(id)
    await world.store.write(lambda tx: tx.update(image, observed=ImageObserved(state=state)))  # type: ignore[arg-type]
    answer = await call("PUT", f"/v1/storage.image/{id}/disk", CONTENT)
    assert (answer.status, answer.code) == (409, "already-uploaded")


async def test_nobody_else_may_upload(world: World) -> None:
    _, id = await _image(world)
    public = (await world.operator("POST", "/v1/storage.image", {"name": "tiny", "desired": {}})).json["id"]
    stranger = world.caller(await world.account("umbrella"))
    reader = world.caller(await world.user("acme", "reader", "reader"))
    assert (await stranger("PUT", f"/v1/storage.image/{id}/disk", CONTENT)).status == 404
    assert (await reader("PUT", f"/v1/storage.image/{id}/disk", CONTENT)).status == 403
    assert (await stranger("PUT", f"/v1/storage.image/{public}/disk", CONTENT)).status == 403
    assert (await world.caller()("PUT", f"/v1/storage.image/{id}/disk", CONTENT)).status == 401
    assert world.uploads == []


async def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path) -> None:
    images = ImageStore(small_disk, free_bytes_min=0)
    images.open()
    id = "01900000-0000-7000-8000-000000000001"

    async def body(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield b"x" * 65_536

    for announced in (None, 4_000_000):
        with pytest.raises(Exception, match="the server's disk") as raised:
            await images.receive(id, "disk", body(4_000_000), announced=announced, digests=())
        assert raised.value.status == 507  # type: ignore[attr-defined]
        assert list((small_disk / id).iterdir()) == []
    assert (await images.receive(id, "disk", body(131_072), announced=None, digests=())).size_bytes == 131_072


async def test_room_is_left_for_the_database(small_disk: Path) -> None:
    images = ImageStore(small_disk, free_bytes_min=600_000)
    images.open()

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 500_000

    with pytest.raises(Exception, match="room for"):
        await images.receive("01900000-0000-7000-8000-000000000001", "disk", body(), announced=500_000, digests=())


async def test_what_an_earlier_life_left_unfinished_is_removed_and_only_that(tmp_path: Path) -> None:
    images = ImageStore(tmp_path, "one")
    id = "01900000-0000-7000-8000-000000000001"

    async def body() -> AsyncIterator[bytes]:
        yield CONTENT

    images.open()
    await images.receive(id, "disk", body(), announced=None, digests=())
    mine = tmp_path / id / f"{images._prefix}x"
    mine.write_bytes(b"half")
    others = tmp_path / id / f"{ImageStore(tmp_path, 'two')._prefix}x"
    others.write_bytes(b"half")
    ImageStore(tmp_path, "one").open()
    assert sorted(path.name for path in (tmp_path / id).iterdir()) == sorted(["upload", others.name])
    images.remove(id)
    assert not (tmp_path / id).exists()


async def _image(world: World, **desired: str) -> tuple[Caller, str]:
    call = world.caller(await world.account("acme"))
    made = await call("POST", "/v1/storage.image", {"name": "mine", "desired": desired})
    assert made.status == 201, made.body
    return call, made.json["id"]


def _nothing_kept(world: World, id: str) -> None:
    assert world.uploads == []
    folder = world.parts.images.path(id, "upload").parent
    assert not folder.exists() or list(folder.iterdir()) == []


def _piece(at: int, *, last: bool = False, **more: str) -> dict[str, str]:
    return {"upload-offset": str(at), "upload-complete": "?1" if last else "?0", **more}


async def test_an_upload_in_pieces_lands_whole_with_the_last(world: World) -> None:
    call, id = await _image(world)
    path = f"/v1/storage.image/{id}/disk"
    assert (await call("HEAD", path)).headers["upload-offset"] == "0"
    first = await call("PATCH", path, CONTENT[:1000], _piece(0))
    assert (first.status, first.headers["upload-offset"]) == (204, "1000")
    wrong = await call("PATCH", path, CONTENT[900:], _piece(900))
    assert (wrong.status, wrong.code) == (409, "upload-offset")
    assert (await call("HEAD", path)).headers["upload-offset"] == "1000"
    assert world.uploads == []
    last = await call("PATCH", path, CONTENT[1000:], _piece(1000, last=True, **{"x-content-sha256": DIGEST}))
    assert (last.status, last.headers["x-content-sha256"]) == (200, DIGEST)
    assert world.uploads == [(id, "disk", DIGEST, len(CONTENT))]
    assert world.parts.images.path(id, "upload").read_bytes() == CONTENT
    assert [path.name for path in world.parts.images.path(id, "upload").parent.iterdir()] == ["upload"]


async def test_a_piece_that_breaks_off_stays_as_far_as_it_came_also_for_the_next_server(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        yield CONTENT * 4
        raise ConnectionResetError

    store = ImageStore(tmp_path)
    image = "01900000-0000-7000-8000-000000000001"
    with pytest.raises(ConnectionResetError):
        await store.append(image, "disk", broken(), at=0, digests=None)
    next_store = ImageStore(tmp_path, "another")
    next_store.open()
    here = next_store.offset(image, "disk")
    assert here == 5 * len(CONTENT)

    async def rest() -> AsyncIterator[bytes]:
        yield b"end"

    whole = hashlib.sha256(CONTENT * 5 + b"end").hexdigest()
    received = await next_store.append(image, "disk", rest(), at=here, digests=(whole,))
    assert received is not None
    assert (received.sha256, received.size_bytes) == (whole, here + 3)


async def test_pieces_of_another_file_are_not_taken_for_this_one(world: World) -> None:
    call, id = await _image(world)
    path = f"/v1/storage.image/{id}/disk"
    await call("PATCH", path, b"another file", _piece(0))
    last = await call("PATCH", path, CONTENT[12:], _piece(12, last=True, **{"x-content-sha256": DIGEST}))
    assert (last.status, last.code) == (400, "digest-mismatch")
    assert (await call("HEAD", path)).headers["upload-offset"] == "0"
    assert (await call("PUT", path, CONTENT)).status == 200


async def test_an_unfinished_upload_is_forgotten_after_a_day(world: World) -> None:
    call, id = await _image(world)
    path = f"/v1/storage.image/{id}/disk"
    await call("PATCH", path, CONTENT, _piece(0))
    written = time.time()
    world.parts.images.forget_unfinished(written + 80_000)
    assert (await call("HEAD", path)).headers["upload-offset"] == str(len(CONTENT))
    world.parts.images.forget_unfinished(written + 90_000)
    assert (await call("HEAD", path)).headers["upload-offset"] == "0"
