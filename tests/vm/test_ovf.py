"""OVF packages of other tools and of ours on real VMs: imported, booted, exported, read by others, imported again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.appliances import System, descriptor, ova, packed, vmdk_of

from pileus.cli.failure import REFUSED
from pileus.image.recipes import ensure_image
from pileus.ovf.machines import machines
from pileus.ovf.package import open_package
from pileus.ovf.validation import validate

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, split, until
else:
    from realcloud import RealCloud, split, until

GIB = 1 << 30
READY = r"PILEUS-READY (\S+) [0-9.]+$"
IMPORT_S = 300.0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The tiny image's disk as qemu-img packs it, and its capacity."""
    raw = tmp_path_factory.mktemp("disk") / "tiny.raw"
    built = ensure_image("tiny", lambda line: None)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(built.disk), str(raw)], check=True)
    return vmdk_of(raw), raw.stat().st_size


def of_one(folder: Path, disk: tuple[bytes, int], *, spoil: str = "") -> Path:
    """An archive of one VM, with properties."""
    content, capacity = disk
    properties = (
        '<ProductSection ovf:class="app"><Info>App</Info><Property ovf:key="greeting" ovf:type="string" '
        'ovf:userConfigurable="true" ovf:value="hello"/></ProductSection>'
    )
    system = System(name="Lone Star", disks=("root", "room"), sections=properties)
    text = descriptor({"lone.vmdk": len(content)}, {"root": ("lone.vmdk", capacity), "room": ("", GIB)}, (system,))
    return ova(folder / "lone.ova", packed("lone", text, {"lone.vmdk": content}, spoil=spoil))


def of_several(folder: Path, disk: tuple[bytes, int]) -> Path:
    """A folder of two VMs that are started one after the other."""
    content, capacity = disk
    systems = (System(name="front", disks=("root",), order=2), System(name="base", disks=("root",), order=1, delay_s=1))
    text = descriptor({"both.vmdk": len(content)}, {"root": ("both.vmdk", capacity)}, systems)
    (folder / "both").mkdir()
    for name, what in packed("both", text, {"both.vmdk": content}).items():
        (folder / "both" / name).write_bytes(what)
    return folder / "both"


def things(cloud: RealCloud) -> list[str]:
    """Return what the account has."""
    return [
        f"{kind} {one['name']}"
        for kind in ("image", "volume", "vm")
        for one in cloud.json("get", kind, "--account", "acme")["items"]
        if one["account"] == "acme"
    ]


def test_a_package_goes_in_runs_comes_out_and_goes_in_again(
    cloud: RealCloud, tmp_path: Path, disk: tuple[bytes, int]
) -> None:
    words = ("ovf", "import", str(of_one(tmp_path, disk)), "--account", "acme", "--network", "default")
    cloud.pileus(*words, "--start", "--property", "app.greeting=good day", timeout_s=IMPORT_S)
    assert cloud.until_printed("lone-star", READY)[1] == "lone-star"
    seed = cloud.paths.seed(cloud.vm("lone-star")["id"])
    told = subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", str(seed), "-extract", "/ovf-env.xml", str(tmp_path / "env.xml")],
        check=False, capture_output=True,
    )  # fmt: skip
    assert 'oe:key="app.greeting" oe:value="good day"' in (tmp_path / "env.xml").read_text(), told.stderr
    exported = tmp_path / "exported.ova"
    export = ("ovf", "export", "vm/lone-star", "--account", "acme", "-o", str(exported))
    assert "is not stopped" in cloud.refused(*export, code=REFUSED)
    assert not exported.exists()
    cloud.pileus("stop", "vm", "lone-star", "--account", "acme", "--wait", "--timeout", "60")
    cloud.pileus(*export, timeout_s=IMPORT_S)
    assert sorted(path.name for path in tmp_path.iterdir() if "exported" in path.name) == ["exported.ova"]
    assert not [path.name for path in (cloud.paths.pool / "volumes").iterdir() if ".tmp" in path.name]
    with open_package(exported) as package:
        validate(package)
        assert not package.faults.refused, package.faults.found
        (machine,) = machines(package.envelope, package.faults)
        assert (machine.vcpus, machine.memory_mib, len(machine.disks), len(machine.nics)) == (1, 128, 2, 1)
    again = ("ovf", "import", str(exported), "--account", "acme", "--network", "default", "--name", "again", "--start")
    cloud.pileus(*again, timeout_s=IMPORT_S)
    assert cloud.until_printed("again", READY)[1] == "again"


@pytest.mark.long
def test_several_vms_start_in_order_and_leave_together(
    cloud: RealCloud, tmp_path: Path, disk: tuple[bytes, int]
) -> None:
    file = of_several(tmp_path, disk)
    words = ("ovf", "import", str(file), "--account", "acme", "--network", "default", "--name", "shop", "--start")
    said = cloud.pileus(*words, timeout_s=IMPORT_S)
    assert said.index("vm shop-base of account acme is started") < said.index(
        "vm shop-front of account acme is started"
    )
    for name in ("shop-base", "shop-front"):
        assert cloud.until_printed(name, READY)[1] == name
        cloud.pileus("stop", "vm", name, "--account", "acme", "--wait", "--timeout", "60")
    exported = tmp_path / "shop.ova"
    cloud.pileus(
        "ovf", "export", "shop-base", "shop-front", "--account", "acme", "-o", str(exported), timeout_s=IMPORT_S
    )
    assert "is sound" in cloud.pileus("ovf", "validate", str(exported))


def test_a_package_that_is_not_what_was_packed_leaves_nothing(
    cloud: RealCloud, tmp_path: Path, disk: tuple[bytes, int]
) -> None:
    before = things(cloud)
    file = of_one(tmp_path, disk, spoil="lone.vmdk")
    words: tuple[str, ...] = ("ovf", "import", str(file), "--account", "acme", "--network", "default", "--name", "bad")
    assert "lone.mf:2:" in cloud.refused(*words, code=REFUSED, timeout_s=IMPORT_S)
    content, capacity = disk
    cut = ova(tmp_path / "cut.ova", packed("cut", descriptor(
        {"cut.vmdk": len(content) // 2}, {"root": ("cut.vmdk", capacity)}, (System(name="cut", disks=("root",)),)
    ), {"cut.vmdk": content[: len(content) // 2]}))  # fmt: skip
    words = ("ovf", "import", str(cut), "--account", "acme", "--network", "default")
    cloud.refused(*words, code=REFUSED, timeout_s=IMPORT_S)
    assert things(cloud) == before


def test_virt_v2v_reads_what_is_exported(cloud: RealCloud, tmp_path: Path) -> None:
    if shutil.which("virt-v2v") is None:
        pytest.skip("virt-v2v is not installed")
    cloud.pileus("create", "vm", "leaver", "--account", "acme", "--wait")
    cloud.until_printed("leaver", READY)
    cloud.pileus("stop", "vm", "leaver", "--account", "acme", "--wait", "--timeout", "60")
    exported = tmp_path / "leaver.ova"
    cloud.pileus("ovf", "export", "leaver", "--account", "acme", "-o", str(exported), timeout_s=IMPORT_S)
    words = ["virt-v2v", "-i", "ova", str(exported), "--print-source"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=IMPORT_S)
    assert done.returncode == 0, done.stderr
    for fact in ("leaver", "0 [scsi]", 'Bridge "default"'):
        assert fact in done.stdout


def test_an_upload_goes_on_after_its_server_was_killed(tmp_path: Path) -> None:
    raw = tmp_path / "large.raw"
    with raw.open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(1 << 20))
    with split() as cloud:
        said = cloud.start("sender", "create", "image", "large", "--account", "acme", "--file", str(raw), "--wait")
        images = cloud.data / "server" / "images"
        until("a piece is there", lambda: any(one.stat().st_size for one in images.glob("*/.unfinished-disk")))
        cloud.kill(cloud.server)
        cloud.start_server()
        assert said.wait(timeout=IMPORT_S) == 0, (cloud.folder / "sender.err").read_text()
        digest = subprocess.run(["sha256sum", raw], check=True, capture_output=True, text=True).stdout.split()[0]
        assert f"disk: sha256 {digest}" in (cloud.folder / "sender.err").read_text()
        assert not list(images.glob("*/.unfinished-disk"))
