"""Whole packages taken apart: the same disks, the VMs as JSON, and nothing at all when something is wrong."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.ovf.packages import Forward
from tests.unit.ovf_write.vmdks import MIB, qemu_img, sparse_disk

from pileus.cli.commands.ovf import command
from pileus.ovf.archiving import Entry, file_entry, manifest_text, text_entry, write_archive
from pileus.ovf.converting import Wish, convert
from pileus.ovf.describing import Appliance, describe
from pileus.ovf.disks import Form
from pileus.ovf.exporting import pack_disk, package
from pileus.ovf.faults import OvfFault
from pileus.ovf.model import Disk, File, Machine, MachineDisk, MachineNic
from pileus.ovf.package import open_stream

SIZE = 70 * MIB
MACHINE = Machine(
    id="web", name="web", vcpus=2, memory_mib=256, firmware="uefi",
    disks=(MachineDisk(disk_id="root", capacity_bytes=SIZE), MachineDisk(disk_id="empty", capacity_bytes=1 << 30, unit=1)),
    nics=(MachineNic(network="front"),),
)  # fmt: skip


def entries(tmp_path: Path) -> list[Entry]:
    packed = pack_disk(sparse_disk(tmp_path / "disk.raw", SIZE), tmp_path / "disk.vmdk")
    return package(Appliance(id="web", machines=(MACHINE,)), {"root": packed})


def archive(path: Path, parts: list[Entry]) -> Path:
    with path.open("wb") as file:
        write_archive(file.write, parts)
    return path


def foreign(tmp_path: Path, disk: Path, uri: str, capacity_bytes: int = SIZE) -> Path:
    """Return an archive whose disk is the given file."""
    machine = Machine(
        id="web", name="web", memory_mib=64, disks=(MachineDisk(disk_id="root", capacity_bytes=capacity_bytes),)
    )
    file = File(id="f", href=disk.name, size_bytes=disk.stat().st_size)
    listed = Disk(id="root", file_id="f", capacity_bytes=capacity_bytes, format_uri=uri)
    text = describe(Appliance(id="web", machines=(machine,), files=(file,), disks=(listed,)))
    return archive(tmp_path / "x.ova", [text_entry("web.ovf", text), file_entry(disk.name, disk)])


def converted(file: Path, folder: Path, *words: str) -> Result:
    return CliRunner().invoke(command, ["convert", str(file), "--to", str(folder), *words])


@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_an_archive_becomes_disks_and_machines(tmp_path: Path, form: str) -> None:
    ended = converted(archive(tmp_path / "x.ova", entries(tmp_path)), tmp_path / "out", "--format", form)
    assert ended.exit_code == 0, ended.output
    qemu_img("compare", "-f", "raw", "-F", form, tmp_path / "disk.raw", tmp_path / "out" / f"root.{form}")
    assert f'"virtual-size": {1 << 30}' in qemu_img(
        "info", "-f", form, "--output=json", tmp_path / "out" / f"empty.{form}"
    )
    said = json.loads((tmp_path / "out" / "machines.json").read_text())
    (machine,) = said["machines"]
    assert (machine["vcpus"], machine["memory_mib"], machine["firmware"]) == (2, 256, "uefi")
    assert [(disk["id"], disk["file"], disk["capacity_bytes"], disk["found"]) for disk in said["disks"]] == [
        ("root", f"root.{form}", SIZE, "vmdk-stream"), ("empty", f"empty.{form}", 1 << 30, None),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"empty.{form}", "machines.json", f"root.{form}",
    ]  # fmt: skip


def test_a_disk_that_was_changed_leaves_no_folder(tmp_path: Path) -> None:
    parts = entries(tmp_path)
    content = bytearray(b"".join(parts[2].chunks()))
    content[512 + 30] ^= 1  # within the descriptor's text, so that the disk itself is sound
    parts[2] = text_entry(parts[2].name, bytes(content))
    ended = converted(archive(tmp_path / "x.ova", parts), tmp_path / "out")
    assert ended.exit_code == 1
    assert "digest-differs" in ended.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ended = converted(archive(tmp_path / "x.ova", entries(tmp_path)), tmp_path / "out")
    assert ended.exit_code
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("program", ["qcow2", "vmdk", "vdi", "raw"])
def test_disks_that_need_another_program_are_converted_in_the_jail(tmp_path: Path, program: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("making the jail needs root")
    raw = sparse_disk(tmp_path / "disk.raw", SIZE)
    disk = tmp_path / "disk1.img"
    qemu_img("convert", "-f", "raw", "-O", program, raw, disk)
    uris = {
        "qcow2": "http://www.gnome.org/~markmc/qcow-image-format.html",
        "vmdk": "http://www.vmware.com/interfaces/specifications/vmdk.html#sparse",
    }
    ended = converted(foreign(tmp_path, disk, uris.get(program, f"http://example.org/{program}")), tmp_path / "out")
    assert ended.exit_code == 0, (ended.output, ended.exception)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, tmp_path / "out" / "root.qcow2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["machines.json", "root.qcow2"]


def test_a_qcow2_disk_with_a_parent_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", tmp_path / "disk1.img", str(SIZE))
    uri = "http://www.gnome.org/~markmc/qcow-image-format.html"
    ended = converted(foreign(tmp_path, tmp_path / "disk1.img", uri), tmp_path / "out")
    assert ended.exit_code == 1
    assert "disk-has-parent" in ended.output
    assert not (tmp_path / "out").exists()


def test_the_manifest_of_an_export_lists_everything_but_itself(tmp_path: Path) -> None:
    made = archive(tmp_path / "x.ova", entries(tmp_path))
    with tarfile.open(made) as opened:
        manifest = opened.extractfile("web.mf")
        assert manifest is not None
        lines = manifest.read().decode().splitlines()
    assert [line.partition("=")[0] for line in lines] == ["SHA256(web.ovf)", "SHA256(web-disk1.vmdk)"]
    assert manifest_text({}) == b""


@pytest.mark.parametrize("changed", [False, True])
def test_a_package_on_a_stream_is_converted_as_it_comes(tmp_path: Path, changed: bool) -> None:
    """The manifest may come last; what it denies leaves no folder."""
    front, manifest, disk = entries(tmp_path)
    text = b"".join(manifest.chunks())
    if changed:
        text = text[:-2] + (b"1\n" if text.endswith(b"0\n") else b"0\n")
    made = archive(tmp_path / "x.ova", [front, disk, text_entry(manifest.name, text)])
    streamed = open_stream(Forward(made.read_bytes()))
    if changed:
        with pytest.raises(OvfFault, match="digest-differs"):
            convert(streamed, tmp_path / "out", Wish(), no_converter)
    else:
        convert(streamed, tmp_path / "out", Wish(), no_converter)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "disk.raw", tmp_path / "out" / "root.qcow2")
    assert (tmp_path / "out").exists() is not changed


def no_converter(source: Path, source_format: str, made: Path, form: Form) -> None:
    pytest.fail(f"{source} should not reach a program")
