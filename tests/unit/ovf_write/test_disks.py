"""Disks of packages in every format: written as the same disk, or refused before any program sees them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.ovf_write.vmdks import DESCRIPTOR, MIB, front, qemu_img, sparse_disk

from pileus.ovf.disks import DiskFacts, Form, Wanted, receive
from pileus.ovf.faults import OvfFault
from pileus.ovf.model import DiskFormat

SIZE = 70 * MIB


def chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(100_001):
            yield chunk


def convert(source: Path, source_format: str, made: Path, form: Form) -> None:
    qemu_img("convert", "-f", source_format, "-O", form, source, made)


def no_converter(source: Path, source_format: str, made: Path, form: Form) -> None:
    pytest.fail(f"{source} should not reach a program")


def packaged(raw: Path, format: str, *options: str) -> Path:
    made = raw.with_suffix("." + format)
    qemu_img("convert", "-f", "raw", "-O", format, *options, raw, made)
    return made


def refusal(file: Path, wanted: Wanted | None = None) -> str:
    """Return the code; nothing is left behind."""
    wanted = wanted or Wanted(capacity_bytes=SIZE)
    with pytest.raises(OvfFault) as caught:
        receive(chunks(file), file.with_name("out"), wanted, no_converter)
    assert [path.name for path in file.parent.iterdir() if path.name.startswith("out")] == []
    return caught.value.faults[0].code


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("program", ["raw", "vmdk", "qcow2", "vdi", "vpc", "compressed", "streamed"])
def test_every_format_becomes_the_same_disk(tmp_path: Path, program: str, form: Form) -> None:
    raw = sparse_disk(tmp_path / "disk.in", SIZE)
    options = {
        "compressed": ("qcow2", "-c"), "streamed": ("vmdk", "-o", "subformat=streamOptimized"),
        "vpc": ("vpc", "-o", "force_size=on"),
    }.get(program, (program,))  # fmt: skip
    file = packaged(raw, *options)
    said: dict[str, DiskFormat] = {"raw": "raw", "vpc": "vhd", "vdi": "vdi", "qcow2": "qcow2"}
    wanted = Wanted(format=said.get(options[0], "vmdk"), capacity_bytes=SIZE, form=form)
    made = receive(chunks(file), tmp_path / "out", wanted, convert)
    assert isinstance(made, DiskFacts)
    assert (made.capacity_bytes, made.stored_bytes) == (SIZE, file.stat().st_size)
    qemu_img("compare", "-f", "raw", "-F", form, raw, tmp_path / "out")
    assert not (tmp_path / "out.spool").exists()
    assert (tmp_path / "out").stat().st_blocks * 512 < 3 * MIB


def test_a_raw_disk_is_filled_up_to_what_the_descriptor_says(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 1000)
    made = receive(chunks(tmp_path / "in"), tmp_path / "out", Wanted(capacity_bytes=4000, form="raw"), no_converter)
    assert made.capacity_bytes == 4096
    assert (tmp_path / "out").read_bytes() == b"x" * 1000 + bytes(3096)


def test_a_raw_disk_longer_than_the_descriptor_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * MIB)
    assert refusal(tmp_path / "in", Wanted(capacity_bytes=MIB // 2)) == "disk-too-large"


def test_a_claim_that_the_content_does_not_keep_is_refused(tmp_path: Path) -> None:
    raw = sparse_disk(tmp_path / "disk.in", SIZE)
    for program in ("vmdk", "qcow2", "vpc", "vdi"):
        assert refusal(packaged(raw, program), Wanted(format="raw", capacity_bytes=SIZE)) == "disk-format-mismatch"
    assert refusal(raw, Wanted(format="vmdk", capacity_bytes=SIZE)) == "disk-format-mismatch"
    assert refusal(packaged(raw, "vhdx"), Wanted(format="vhdx")) == "disk-format-unread"


def test_a_disk_whose_content_is_in_another_file_is_refused(tmp_path: Path) -> None:
    raw = sparse_disk(tmp_path / "disk.in", SIZE)
    for kind in ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        assert refusal(packaged(raw, "vmdk", "-o", f"subformat={kind}")) == "disk-external"
        raw.with_suffix(".vmdk").unlink()
    base = packaged(raw, "qcow2")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "child.q")
    assert refusal(tmp_path / "child.q") == "disk-has-parent"
    qemu_img(
        "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'content'},data_file_raw=on", tmp_path / "x.q", "1M"
    )
    assert refusal(tmp_path / "x.q") == "disk-external"


def test_a_sparse_vmdk_that_names_others_is_refused(tmp_path: Path) -> None:
    text = DESCRIPTOR.replace("streamOptimized", "monolithicSparse")
    bad = {
        "disk-external": text.replace('SPARSE "x.vmdk"', 'FLAT "/etc/passwd" 0'),
        "disk-has-parent": text + 'parentFileNameHint="/etc/passwd"\n',
    }
    for code, descriptor in bad.items():
        (tmp_path / "in").write_bytes(front(descriptor, flags=1))
        assert refusal(tmp_path / "in") == code
    # A header without capacity makes QEMU take the descriptor as the whole truth.
    (tmp_path / "in").write_bytes(front(text, flags=1, capacity=0))
    assert refusal(tmp_path / "in") == "disk-bad-header"


def test_a_spooled_disk_larger_than_allowed_is_refused_by_its_header(tmp_path: Path) -> None:
    for number, program in enumerate(("vmdk", "qcow2", "vdi", "vpc")):
        qemu_img("create", "-f", program, tmp_path / f"{number}.in", "1G")
        assert refusal(tmp_path / f"{number}.in", Wanted(capacity_bytes_max=64 * MIB)) == "disk-too-large"


def test_a_differencing_vhd_is_refused(tmp_path: Path) -> None:
    qemu_img("create", "-f", "vpc", tmp_path / "in", "10M")
    content = bytearray((tmp_path / "in").read_bytes())
    struct.pack_into(">I", content, 60, 4)
    (tmp_path / "in").write_bytes(content)
    assert refusal(tmp_path / "in") == "disk-has-parent"


def test_a_spool_without_end_is_refused_when_it_is_longer_than_its_disk_can_be(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield b"QFI\xfb"
        while True:
            yield bytes(8 * MIB)

    with pytest.raises(OvfFault) as caught:
        receive(endless(), tmp_path / "out", Wanted(capacity_bytes_max=MIB), no_converter)
    assert caught.value.faults[0].code == "disk-too-large"
    assert list(tmp_path.iterdir()) == []
