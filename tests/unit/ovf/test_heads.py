"""The first bytes of disks that qemu-img makes tell format and size, and a package of them is sound."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.unit.ovf.descriptors import DISK, STREAM, envelope
from tests.unit.ovf.packages import NAME, file_of, put, with_manifest

from pileus.ovf.heads import HEAD_BYTES, head_of
from pileus.ovf.package import open_package
from pileus.ovf.validation import validate

MIB = 1 << 20
FORMATS = [
    ("vmdk", "subformat=streamOptimized", "vmdk", STREAM),
    ("vmdk", "subformat=monolithicSparse", "vmdk", "http://www.vmware.com/interfaces/specifications/vmdk.html#sparse"),
    ("qcow2", "compat=1.1", "qcow2", "http://www.gnome.org/~markmc/qcow-image-format.html"),
    (
        "vpc",
        "subformat=dynamic,force_size=on",
        "vhd",
        "http://technet.microsoft.com/en-us/virtualserver/bb676673.aspx#vhd",
    ),
    ("vhdx", "subformat=dynamic", "vhdx", "http://example.org/vhdx"),
    ("vdi", "static=off", "vdi", "http://www.virtualbox.org/vdi"),
    ("raw", "preallocation=off", "unknown", "http://example.org/raw"),
]


@pytest.mark.parametrize(("driver", "option", "expected", "uri"), FORMATS)
def test_a_real_disk_is_known(driver: str, option: str, expected: str, uri: str, tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    raw.write_bytes(b"boot" * 1024 + bytes(4 * MIB - 4096))
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", driver, "-o", option, str(raw), str(disk)],
        check=True,
        capture_output=True,
    )
    content = disk.read_bytes()
    head = head_of(content[:HEAD_BYTES])
    assert head.format == expected
    assert head.capacity_bytes in (4 * MIB, None)
    assert (head.capacity_bytes is None) == (expected in ("vhdx", "unknown"))
    text = envelope(files=file_of(content), disks=DISK.replace('"16"', '"4"').replace(STREAM, uri))
    put(tmp_path / "x", with_manifest({NAME: text, "disk1.vmdk": content}))
    with open_package(tmp_path / "x") as package:
        validate(package)
        assert package.faults.found == ()


def test_rubbish_is_unknown() -> None:
    for content in (b"", b"K", b"KDMV", b"QFI\xfb", b"conectix", b"\0" * HEAD_BYTES, b"\xff" * HEAD_BYTES):
        assert head_of(content).capacity_bytes is None


def test_a_disk_that_is_none_is_refused(tmp_path: Path) -> None:
    content = b"MZ" + bytes(3000)
    put(tmp_path, {NAME: envelope(files=file_of(content)), "disk1.vmdk": content})
    with open_package(tmp_path) as package:
        validate(package)
        assert [fault.code for fault in package.faults.found] == ["format-differs"]
