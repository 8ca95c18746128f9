"""What is in a real seed, read back from the ISO and parsed as a guest does."""

from __future__ import annotations

import asyncio
import os
import random
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Seed, SeedNic
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.guest.seed import seed_files
from pileus.drivers.host.paths import HostPaths

if TYPE_CHECKING:
    from tests.contract.guest.guest_rigs import MACHINE, read_iso
else:
    from guest_rigs import MACHINE, read_iso

pytestmark = pytest.mark.anyio

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0r6Z5z0QmYqQmJv0m1hJc2n1d0o3V5b8l7k9x2w4yz"


def volume_label(image: Path) -> bytes:
    """Return the volume identifier of the primary descriptor (ECMA-119, 8.4)."""
    return image.read_bytes()[32808:32840].strip()


async def test_the_iso_says_what_the_seed_says(paths: HostPaths, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho 'ä: \"quoted\"'\n"
    seed = Seed(
        instance_id="i-1",
        hostname="123",
        ssh_keys=(KEY + " me@home", KEY + " a: b # c"),
        user_data=script,
        ovf_environment="<Environment/>",
        nics=(
            SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.10/24",), gateway="10.1.1.1", dns=("9.9.9.9",)),
            SeedNic(mac="52:54:00:12:34:57", addresses=("10.2.0.5/32", "fd00::5/64"), gateway="10.9.9.9"),
            SeedNic(mac="52:54:00:12:34:58", addresses=()),
        ),
    )
    image = await GuestChannel(paths).write_seed(MACHINE, seed)
    assert image == str(paths.seed(MACHINE))
    assert volume_label(paths.seed(MACHINE)) == b"cidata"
    assert stat.S_IMODE(os.stat(image).st_mode) == 0o640
    files = read_iso(image, tmp_path / "iso")
    assert sorted(files) == ["meta-data", "network-config", "ovf-env.xml", "user-data"]
    assert files["ovf-env.xml"] == b"<Environment/>"
    assert files["user-data"].decode() == script
    assert yaml.safe_load(files["meta-data"]) == {
        "instance-id": "i-1",
        "local-hostname": "123",
        "public-keys": [KEY + " me@home", KEY],
    }
    assert yaml.safe_load(files["network-config"]) == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": "52:54:00:12:34:56"},
                "addresses": ["10.1.1.10/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.1.1.1"}],
                "nameservers": {"addresses": ["9.9.9.9"]},
            },
            "nic1": {
                "match": {"macaddress": "52:54:00:12:34:57"},
                "addresses": ["10.2.0.5/32", "fd00::5/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.9.9.9", "on-link": True}],
            },
            "nic2": {"match": {"macaddress": "52:54:00:12:34:58"}, "dhcp4": True},
        },
    }


async def test_a_seed_without_nics_has_no_network_config(paths: HostPaths, tmp_path: Path) -> None:
    image = await GuestChannel(paths).write_seed(MACHINE, Seed(instance_id="i-1", hostname="a"))
    files = read_iso(image, tmp_path / "iso")
    assert sorted(files) == ["meta-data", "user-data"]
    assert files["user-data"] == b""


async def test_nothing_but_the_seed_is_left_in_the_folder_also_when_it_is_refused(paths: HostPaths) -> None:
    guest = GuestChannel(paths)
    await guest.write_seed(MACHINE, Seed(instance_id="i-1", hostname="a"))
    with pytest.raises(DriverError):
        await guest.write_seed(MACHINE, Seed(instance_id="i-1", hostname="a b"))
    assert [file.name for file in paths.machine(MACHINE).iterdir()] == ["seed.iso"]


async def test_seeds_written_at_once_leave_one_whole_seed(paths: HostPaths, tmp_path: Path) -> None:
    guest = GuestChannel(paths)
    seeds = [Seed(instance_id=f"i-{n}", hostname="a", user_data="x" * n * 1000) for n in range(1, 9)]
    await asyncio.gather(*(guest.write_seed(MACHINE, seed) for seed in seeds))
    files = read_iso(str(paths.seed(MACHINE)), tmp_path / "iso")
    number = int(yaml.safe_load(files["meta-data"])["instance-id"].removeprefix("i-"))
    assert files["user-data"] == b"x" * number * 1000
    assert [file.name for file in paths.machine(MACHINE).iterdir()] == ["seed.iso"]


async def test_removing_the_only_thing_of_a_machine_removes_its_folder(paths: HostPaths) -> None:
    guest = GuestChannel(paths)
    await guest.write_seed(MACHINE, Seed(instance_id="i-1", hostname="a"))
    await guest.remove(MACHINE)
    assert not paths.machine(MACHINE).exists()


async def test_a_log_that_was_made_a_link_is_not_followed(paths: HostPaths, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 500)
    paths.machine(MACHINE).mkdir(parents=True)
    paths.console_log(MACHINE).symlink_to(secret)
    guest = GuestChannel(paths)
    await guest.rotate(100)
    assert await guest.log(MACHINE, 1000) == b""
    assert secret.read_bytes() == b"s" * 500


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a.b", "a\n"])
async def test_a_name_that_is_no_id_never_becomes_a_path(paths: HostPaths, name: str) -> None:
    guest = GuestChannel(paths)
    for call in (guest.log(name, 1), guest.remove(name), guest.console(name)):
        with pytest.raises(DriverError, match="no machine id"):
            await call


def test_no_text_of_a_tenant_makes_a_line_of_its_own() -> None:
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    chance = random.Random(number)
    alphabet = "ab1:-. \n\r\t\"'#{}[]&*!|>%@`\\\x00\x85\u2028é"
    for _ in range(3000):
        text = "".join(chance.choices(alphabet, k=chance.randrange(1, 8)))
        for seed in (
            Seed(instance_id=text, hostname="a"),
            Seed(instance_id="i", hostname=text),
            Seed(instance_id="i", hostname="a", ssh_keys=(f"{KEY} {text}",)),
        ):
            try:
                meta = yaml.safe_load(seed_files(seed)["meta-data"])
            except DriverError:
                continue
            assert meta["instance-id"] == seed.instance_id
            assert meta["local-hostname"] == seed.hostname
            assert set(meta) <= {"instance-id", "local-hostname", "public-keys"}
            assert all(key.startswith(KEY) for key in meta.get("public-keys", []))
