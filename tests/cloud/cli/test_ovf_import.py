"""``pileus ovf import`` against a real server: all of a package or nothing."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.appliances import MIB, System, boot_disk, descriptor, ova, packed, vmdk_of

from pileus.cli import sending
from pileus.cli.client import Client
from pileus.cli.commands import upload
from pileus.cli.failure import INTERRUPTED, OK, REFUSED, UNREACHABLE, USAGE, Failure

if TYPE_CHECKING:
    from tests.cloud.cli.conftest import Run
else:
    Run = Any

PROPERTIES = """<ProductSection ovf:class="app"><Info>App</Info>
<Property ovf:key="name" ovf:type="string" ovf:userConfigurable="true" ovf:value="none"/>
<Property ovf:key="port" ovf:type="uint16" ovf:userConfigurable="true" ovf:value="80"/></ProductSection>"""
EULA = "<EulaSection><Info>Licence</Info><License>Do no evil.</License></EulaSection>"


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """A streamed VMDK."""
    return vmdk_of(boot_disk(tmp_path / "boot.raw", "hello"))


def single(folder: Path, disk: bytes, *, spoil: str = "", **more: Any) -> Path:
    """An archive of one VM."""
    text = descriptor(
        {"web.vmdk": len(disk)}, {"root": ("web.vmdk", 16 * MIB)}, (System(name="Web 1", disks=("root",), **more),)
    )
    return ova(folder / "web.ova", packed("web", text, {"web.vmdk": disk}, spoil=spoil))


def names(pileus: Run, account: str, kind: str) -> list[str]:
    items = pileus("get", kind, "--account", account, "-o", "json").json["items"]
    return sorted(one["name"] for one in items if one["account"] == account)


def nothing_left(pileus: Run, account: str) -> bool:
    return not any(names(pileus, account, kind) for kind in ("image", "volume", "vm"))


def imported(pileus: Run, account: str, file: Path, *more: str) -> Any:
    return pileus("ovf", "import", str(file), "--account", account, *more)


def test_a_package_becomes_a_vm(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    ran = imported(pileus, account, single(tmp_path, disk), "--network", "VM Network=default")
    assert (ran.code, ran.out) == (OK, f"vm web-1 of account {account} is imported\n"), ran.err
    vm = pileus("get", "vm", "web-1", "--account", account, "-o", "json").json
    desired = vm["desired"]
    assert (desired["vcpus"], desired["memory_mib"], desired["disk_gib"]) == (1, 128, 1)
    assert (desired["power"], desired["image"], desired["ovf_environment"]) == ("stopped", "web-1-root", "")
    assert [nic["network"] for nic in desired["nics"]] == ["default"]
    image = pileus("get", "image", "web-1-root", "--account", account, "-o", "json").json
    assert image["desired"]["format"] == "vmdk"
    again = imported(pileus, account, single(tmp_path, disk), "--network", "default")
    assert (again.code, again.out) == (OK, ran.out), again.err
    assert names(pileus, account, "vm") == ["web-1"]


def test_firmware_is_the_images(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    ran = imported(pileus, account, single(tmp_path, disk, firmware="efi"), "--network", "default")
    assert ran.code == OK, ran.err
    assert (
        pileus("get", "image", "web-1-root", "--account", account, "-o", "json").json["desired"]["firmware"] == "uefi"
    )
    assert pileus("get", "vm", "web-1", "--account", account, "-o", "json").json["assigned"]["firmware"] == "uefi"
    systems = (System(name="old", disks=("root",)), System(name="new", disks=("root",), firmware="efi"))
    text = descriptor({"a.vmdk": len(disk)}, {"root": ("a.vmdk", 16 * MIB)}, systems)
    both = imported(
        pileus, account, ova(tmp_path / "b.ova", packed("b", text, {"a.vmdk": disk})), "--network", "default"
    )
    assert (both.code, 'disk "root" starts one VM by BIOS and another one by UEFI' in both.err) == (REFUSED, True)


def test_several_vms_with_further_and_blank_disks(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    systems = (System(name="db", disks=("root", "more", "blank")), System(name="web", disks=("root",)))
    disks = {"root": ("a.vmdk", 16 * MIB), "more": ("b.vmdk", 16 * MIB), "blank": ("", 3 << 30)}
    text = descriptor({"a.vmdk": len(disk), "b.vmdk": len(disk)}, disks, systems)
    file = ova(tmp_path / "shop.ova", packed("shop", text, {"a.vmdk": disk, "b.vmdk": disk}))
    ran = imported(pileus, account, file, "--network", "default", "--name", "shop")
    assert ran.code == OK, ran.err
    assert names(pileus, account, "vm") == ["shop-db", "shop-web"]
    assert names(pileus, account, "image") == ["shop-more", "shop-root"]
    volumes = {
        name: pileus("get", "volume", name, "--account", account, "-o", "json").json["desired"]
        for name in ("shop-db-disk2", "shop-db-disk3")
    }
    assert {name: (one["size_gib"], one["image"]) for name, one in volumes.items()} == {
        "shop-db-disk2": (1, "shop-more"), "shop-db-disk3": (3, "")
    }  # fmt: skip
    vm = pileus("get", "vm", "shop-db", "--account", account, "-o", "json").json
    assert [one["volume"] for one in vm["desired"]["volumes"]] == ["shop-db-disk2", "shop-db-disk3"]


def test_properties_reach_the_vm(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    file = single(tmp_path, disk, sections=PROPERTIES)
    bad = imported(pileus, account, file, "--network", "default", "--property", "app.port=many")
    assert bad.code == REFUSED
    assert 'web.ovf:15: property "app.port" cannot be "many"' in bad.err
    ran = imported(pileus, account, file, "--network", "default", "--property", "app.name=shop & co")
    assert ran.code == OK, ran.err
    told = pileus("get", "vm", "web-1", "--account", account, "-o", "json").json["desired"]["ovf_environment"]
    assert '<Property oe:key="app.name" oe:value="shop &amp; co"/>' in told
    assert '<Property oe:key="app.port" oe:value="80"/>' in told


def test_a_licence_is_shown_and_must_be_accepted(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    file = single(tmp_path, disk, sections=EULA)
    refused = imported(pileus, account, file, "--network", "default")
    assert refused.code == USAGE
    assert "Do no evil." in refused.err
    assert "--accept-eulas" in refused.err
    assert nothing_left(pileus, account)
    assert imported(pileus, account, file, "--network", "default", "--accept-eulas").code == OK


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"network": "Front"}, 'which network is "Front"? Say --network Front=NETWORK'),
        ({"firmware": "coreboot"}, "neither bios nor efi"),
    ],
)
def test_what_cannot_be_is_said_with_its_line(
    pileus: Run, account: str, tmp_path: Path, disk: bytes, more: dict[str, str], message: str
) -> None:
    ran = imported(pileus, account, single(tmp_path, disk, **more), "--network", "Elsewhere=default")
    assert ran.code == REFUSED
    assert message in ran.err
    assert "web.ovf:" in ran.err
    assert nothing_left(pileus, account)


def test_a_wrong_digest_leaves_nothing(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    ran = imported(pileus, account, single(tmp_path, disk, spoil="web.vmdk"), "--network", "default")
    assert ran.code == REFUSED
    assert 'web.mf:2: "web.vmdk" is not what was packed' in ran.err
    assert nothing_left(pileus, account)


def test_a_failure_in_the_middle_leaves_nothing_and_others_things_alone(
    pileus: Run, account: str, tmp_path: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pileus("create", "volume", "shop-db-disk2", "--account", account, "--size-gib", "1").code == OK
    systems = (System(name="db", disks=("root", "blank")), System(name="web", disks=("root",)))
    text = descriptor({"a.vmdk": len(disk)}, {"root": ("a.vmdk", 16 * MIB), "blank": ("", 1 << 30)}, systems)
    file = ova(tmp_path / "shop.ova", packed("shop", text, {"a.vmdk": disk}))
    ran = imported(pileus, account, file, "--network", "default", "--name", "shop")
    assert ran.code == USAGE
    assert "shop-db-disk2" in ran.err
    assert names(pileus, account, "image") == names(pileus, account, "vm") == []
    assert names(pileus, account, "volume") == ["shop-db-disk2"]
    assert pileus("delete", "volume", "shop-db-disk2", "--account", account, "--wait").code == OK

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(Client, "append", broken)
        with pytest.raises(OSError, match="cut"):
            imported(pileus, account, file, "--network", "default", "--name", "shop")
    assert nothing_left(pileus, account)
    assert imported(pileus, account, file, "--network", "default", "--name", "shop").code == OK


def test_a_run_that_was_cut_off_is_gone_on_with(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    file = single(tmp_path, disk)
    assert imported(pileus, account, file, "--network", "default").code == OK
    assert pileus("delete", "vm", "web-1", "--account", account, "--wait").code == OK  # as if it had not come so far
    ran = imported(pileus, account, file, "--network", "default")
    assert (ran.code, names(pileus, account, "vm")) == (OK, ["web-1"]), ran.err
    assert pileus("delete", "vm", "web-1", "--account", account, "--wait").code == OK
    other = single(tmp_path, disk, memory_mib=256)
    ran = imported(pileus, account, other, "--network", "default")
    assert (ran.code, "is there already, and is not of this import" in ran.err) == (USAGE, True)


def test_a_package_of_a_manager(pileus: Run, account: str, tmp_path: Path, disk: bytes) -> None:
    assert pileus("create", "manager", "walls", "--account", account).code == OK
    file = single(tmp_path, disk)
    said = ("--package", "wall-1", "--manager", "walls", "--version", "1.0")
    ran = imported(pileus, account, file, *said)
    assert (ran.code, ran.out) == (OK, f"package wall-1 of account {account} is imported\n"), ran.err
    package = pileus("get", "package", "wall-1", "--account", account, "-o", "json").json
    assert (package["assigned"]["vcpus"], package["assigned"]["memory_mib"], package["assigned"]["nics"]) == (1, 128, 1)
    assert package["desired"]["image"] == "wall-1-root"
    assert (
        pileus("get", "image", "wall-1-root", "--account", account, "-o", "json").json["desired"]["manager"] == "walls"
    )
    uefi = ("--package", "wall-3", "--manager", "walls", "--version", "3.0")
    ran = imported(pileus, account, single(tmp_path, disk, firmware="efi"), *uefi)
    assert ran.code == OK, ran.err
    assert pileus("delete", "package", "wall-3", "--account", account, "--wait").code == OK
    assert pileus("delete", "image", "wall-3-root", "--account", account, "--wait").code == OK
    refused = imported(pileus, account, single(tmp_path, disk, memory_mib=64), "--package", "wall-2", *said[2:])
    assert refused.code == REFUSED  # that version is there
    assert names(pileus, account, "image") == ["wall-1-root"]


def test_an_upload_goes_on_where_a_broken_connection_stopped(
    pileus: Run, account: str, tmp_path: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second piece reaches the server and its answer gets lost; every third does not leave."""
    monkeypatch.setattr(sending, "PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(sending, "RETRY_S", 0.01)
    append, calls = Client.append, itertools.count(1)

    def flaky(client: Client, *words: Any) -> Any:
        number = next(calls)
        if number % 3 == 0:
            client.close()
            raise Failure("the line is cut", exit_code=UNREACHABLE)
        answer = append(client, *words)
        if number % 2 == 0:
            client.close()
            raise Failure("the line is cut", exit_code=UNREACHABLE)
        return answer

    monkeypatch.setattr(Client, "append", flaky)
    raw = tmp_path / "random.raw"
    raw.write_bytes(os.urandom(1 << 20))
    ran = pileus("create", "image", "cut", "--account", account, "--file", str(raw), "--wait")
    assert ran.code == OK, ran.err
    assert f"disk: sha256 {hashlib.sha256(raw.read_bytes()).hexdigest()}" in ran.err
    assert imported(pileus, account, single(tmp_path, disk), "--network", "default").code == OK


def test_a_command_that_was_ended_goes_on_in_the_next(
    pileus: Run, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PIECE_BYTES", 1 << 18)
    append, sent = Client.append, list[int]()

    def ended(client: Client, path: str, query: Any, parts: Any, headers: Any) -> Any:
        if sum(sent) >= 2 << 18 and len(sent) == 2:
            sent.append(0)
            raise KeyboardInterrupt
        sent.append(sum(map(len, parts)))
        return append(client, path, query, parts, headers)

    monkeypatch.setattr(upload, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(Client, "append", ended)
    raw = tmp_path / "random.raw"
    raw.write_bytes(os.urandom(1 << 20))
    words = ("create", "image", "ended", "--account", account, "--file", str(raw), "--wait")
    assert pileus(*words).code == INTERRUPTED
    assert pileus(*words).code == OK
    assert sum(sent) == 1 << 20  # nothing twice
