"""What becomes of uploaded images, with conversions that take as long as a test says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from pileus.kernel.errors import Conflict, QuotaExceeded
from pileus.storage.image.controller import ImageController, upload_noted
from pileus.storage.image.types import ImageObserved
from tests.cloud.world import GIB, Cloud, cloud
from tests.virtual_time import run


class Made(msgspec.Struct, frozen=True):
    """What a conversion says of its result."""

    size_bytes: int = 1000
    virtual_size_bytes: int = GIB
    sha256: str = "1" * 64


class Folder:
    """The images of a server, in memory: which of them have an upload."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def present(self, image_id: str, file: str) -> Path | None:
        found = self.path / image_id / file
        return found if found.exists() else None

    def remove(self, image_id: str) -> None:
        for file in (self.path / image_id).glob("*"):
            file.unlink()


class Conversion:
    """Makes an image once the test says so."""

    def __init__(self) -> None:
        self.allowed = asyncio.Event()
        self.running = self.most = 0

    async def __call__(self, source: Path, format: str, target: Path) -> Made:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.allowed.wait()
        self.running -= 1
        return Made()


def convert_with(world: Cloud, folder: Path) -> Conversion:
    """Let the images of the world lie in ``folder``, and be converted when the test says so."""
    conversion = Conversion()
    world.servers[0].loop._controllers["storage.image"] = ImageController(Folder(folder), conversion)  # type: ignore[index]
    return conversion


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*/*")]


async def upload(world: Cloud, folder: Path, name: str) -> None:
    image = await world.create("storage.image", name, "acme")
    (folder / image["id"]).mkdir()
    (folder / image["id"] / "upload").write_bytes(b"a disk")
    inspecting = ImageObserved(state="inspecting")
    found = await world.store.get(image["id"])
    await world.store.write(lambda tx: tx.update(found, observed=inspecting))


def test_many_uploaded_images_do_not_keep_a_vm_of_another_account_from_starting(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud() as world:
            conversion = convert_with(world, tmp_path)
            await world.create("tenancy.account", "acme")
            await world.create("tenancy.account", "victim")
            for number in range(70):
                await upload(world, tmp_path, f"i{number}")
            await asyncio.sleep(5)
            await world.create("compute.vm", "web", "victim", nics=[])
            await world.until(lambda: world.is_ready("compute.vm", "web", "victim"), limit_s=30)
            reasons = {each["conditions"][0]["reason"] for each in await world.list("storage.image")}
            assert reasons == {"AsDesired", "Inspecting", "Queued"}
            conversion.allowed.set()

            async def all_ready() -> bool:
                return {each["conditions"][0]["reason"] for each in await world.list("storage.image")} == {"AsDesired"}

            await world.until(all_ready)
            assert conversion.most == 2

    run(main)


def test_an_upload_is_removed_once_its_image_is_available_and_not_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud() as world:
            conversion = convert_with(world, tmp_path)
            await world.create("tenancy.account", "acme")
            await upload(world, tmp_path, "mine")
            await asyncio.sleep(60)
            assert names(tmp_path) == ["upload"]
            conversion.allowed.set()
            await world.until(lambda: world.is_ready("storage.image", "mine", "acme"))
            await world.settle()
            assert names(tmp_path) == []

    run(main)


@pytest.mark.parametrize("part", ["disk", "kernel", "initrd"])
@pytest.mark.parametrize("state", ["inspecting", "available"])
def test_an_upload_that_ends_after_another_changes_nothing(
    part: str, state: Literal["inspecting", "available"]
) -> None:
    with pytest.raises(Conflict) as refused:
        upload_noted(ImageObserved(state=state), part, "1" * 64, 1)
    assert refused.value.code == "already-uploaded"


def test_an_account_has_a_bounded_number_of_images_and_the_others_theirs() -> None:
    async def main() -> None:
        async with cloud() as world:
            for account in ("acme", "other"):
                await world.create("tenancy.account", account)
            for number in range(100):
                await world.create("storage.image", f"i{number}", "acme")
            with pytest.raises(QuotaExceeded, match="acme has 100 images"):
                await world.create("storage.image", "more", "acme")
            await world.create("storage.image", "more", "other")
            await world.create("storage.image", "more")
            await world.delete("storage.image", "i7", "acme")
            await world.settle()
            await world.create("storage.image", "more", "acme")

    run(main)
