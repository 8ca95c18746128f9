"""Packages in archives, on streams and in folders, with manifests, gzip and chunks."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from tests.unit.ovf.descriptors import DISK, envelope
from tests.unit.ovf.packages import (
    DISK_BYTES,
    FILES,
    NAME,
    TEXT,
    Forward,
    codes,
    digest_line,
    file_of,
    judged,
    manifest,
    mild,
    put,
    tar,
    vmdk,
    with_manifest,
)

from pileus.ovf.faults import OvfFault
from pileus.ovf.limits import Limits
from pileus.ovf.package import Package, open_package, open_stream
from pileus.ovf.validation import validate

FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def both(files: dict[str, bytes], folder: Path) -> list[Package]:
    """Return a package validated out of a file, on a stream and in a folder."""
    archive = tar(files)
    (folder / "x.ova").write_bytes(archive)
    put(folder / "x", files)
    found = [open_package(folder / "x.ova"), open_stream(Forward(archive), "x.ova"), open_package(folder / "x")]
    for package in found:
        validate(package)
        package.close()
    return found


def contents(package: Package) -> dict[str, bytes]:
    with package:
        return {content.file.href: b"".join(content.plain()) for content in package.contents()}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_is_read_in_every_form_of_tar(form: int, tmp_path: Path) -> None:
    long = "a" * 180 + ".vmdk"
    files = {NAME: envelope(files=file_of(DISK_BYTES, href=long)), long: DISK_BYTES}
    if form == tarfile.USTAR_FORMAT:
        long = "a" * 90 + "/" + "b" * 90
        files = {NAME: envelope(files=file_of(DISK_BYTES, href=long)), long: DISK_BYTES}
    archive = tar(files, form)
    assert contents(open_stream(Forward(archive))) == {long: DISK_BYTES}
    (tmp_path / "x.ova").write_bytes(archive)
    assert contents(open_package(tmp_path / "x.ova")) == {long: DISK_BYTES}


def test_sizes_in_base_256_and_in_pax_headers_are_read() -> None:
    member = tarfile.TarInfo("disk1.vmdk")
    member.size = 9 << 30
    text = envelope(files='<File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="9663676416"/>')
    for header in (member.tobuf(tarfile.GNU_FORMAT), member.tobuf(tarfile.PAX_FORMAT)):
        archive = tar({NAME: text}).rstrip(b"\0")
        archive += b"\0" * (-len(archive) % 512) + header + DISK_BYTES
        package = open_stream(Forward(archive))
        content = next(package.contents())
        with pytest.raises(OvfFault, match="truncated"):
            list(content.stored())


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("form", ["{}({})= {}\n", "{} ({}) = {}\r\n", "{}({})={}\r"])
def test_manifests_of_every_kind_are_checked(algorithm: str, form: str, tmp_path: Path) -> None:
    for package in both(with_manifest(FILES, algorithm, form), tmp_path):
        assert codes(package) == []
        assert mild(package) == (["sha1"] if algorithm == "sha1" else [])
        assert package.manifest is not None
        assert package.manifest.algorithms == (algorithm.upper(),)


def test_a_manifest_of_several_algorithms_is_checked(tmp_path: Path) -> None:
    mixed = digest_line(NAME, TEXT, "sha1") + digest_line("disk1.vmdk", DISK_BYTES, "sha512")
    for package in both({NAME: TEXT, "x.mf": mixed.encode(), "disk1.vmdk": DISK_BYTES}, tmp_path):
        assert codes(package) == []


def test_a_changed_file_is_told_with_the_line_of_the_manifest(tmp_path: Path) -> None:
    files = with_manifest(FILES) | {"disk1.vmdk": DISK_BYTES[:-1] + b"X"}
    for package in both(files, tmp_path):
        (fault,) = [fault for fault in package.faults.found if fault.severity == "error"]
        assert (fault.code, fault.file, fault.line) == ("digest-differs", "x.mf", 2)


def test_a_changed_descriptor_is_told(tmp_path: Path) -> None:
    files = with_manifest(FILES) | {NAME: TEXT.replace(b"some", b"more") + b"\n"}
    for package in both(files, tmp_path):
        assert codes(package) == ["digest-differs"]


def test_what_the_manifest_lacks_or_has_too_much_is_odd(tmp_path: Path) -> None:
    listed = manifest({NAME: TEXT, "gone.nvram": b"x"})
    for package in both({NAME: TEXT, "x.mf": listed, "disk1.vmdk": DISK_BYTES}, tmp_path):
        assert codes(package) == []
        assert sorted(mild(package)) == ["listed-not-there", "not-listed"]


@pytest.mark.parametrize(
    "line",
    [
        "MD5(x.ovf)= 00",
        "SHA256(x.ovf)= 00",
        "nonsense",
        "SHA256(x.ovf)=",
        "SHA256(../x)= " + "0" * 64,
        "SHA256 x.ovf = 00",
    ],
)
def test_a_line_that_is_none_is_told(line: str, tmp_path: Path) -> None:
    for package in both({NAME: TEXT, "x.mf": f"\n{line}\n".encode(), "disk1.vmdk": DISK_BYTES}, tmp_path):
        faults = [fault for fault in package.faults.found if fault.severity == "error"]
        assert faults[0].file == "x.mf"
        assert faults[0].line == 2


def test_two_digests_of_one_file_are_refused(tmp_path: Path) -> None:
    lines = digest_line(NAME, TEXT) + digest_line(NAME, b"other") + digest_line("disk1.vmdk", DISK_BYTES)
    for package in both({NAME: TEXT, "x.mf": lines.encode(), "disk1.vmdk": DISK_BYTES}, tmp_path):
        assert "two-digests" in codes(package)


@pytest.mark.parametrize(
    "order", [["x.mf", NAME, "disk1.vmdk"], [NAME, "disk1.vmdk", "x.mf"], [NAME, "x.mf", "disk1.vmdk"]]
)
def test_the_manifest_may_be_anywhere(order: list[str], tmp_path: Path) -> None:
    sound = with_manifest(FILES)
    for changed in (False, True):
        files = {name: sound[name] for name in order}
        if changed:
            files["disk1.vmdk"] = DISK_BYTES[:-1] + b"X"
        for package in both(files, tmp_path):
            assert codes(package) == (["digest-differs"] if changed else [])


def test_a_late_descriptor_is_read_from_a_file_and_refused_on_a_stream(tmp_path: Path) -> None:
    stored, streamed = judged(tar({"disk1.vmdk": DISK_BYTES, NAME: TEXT}), tmp_path)
    assert (stored, streamed) == ([], ["descriptor-late"])


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_compressed_files_are_unpacked_and_their_stored_bytes_checked(compression: str, tmp_path: Path) -> None:
    packed = gzip.compress(DISK_BYTES[:700]) + gzip.compress(DISK_BYTES[700:])
    if compression == "bzip2":
        packed = bz2.compress(DISK_BYTES[:700]) + bz2.compress(DISK_BYTES[700:])
    text = envelope(files=file_of(packed, f'ovf:compression="{compression}"', "disk1.gz"))
    files = with_manifest({NAME: text, "disk1.gz": packed})
    for package in both(files, tmp_path):
        assert codes(package) == []
    assert contents(open_stream(Forward(tar(files)))) == {"disk1.gz": DISK_BYTES}
    damaged = files | {"disk1.gz": packed[:-4] + b"xxxx"}
    for package in both(damaged, tmp_path):
        assert "damaged" in codes(package)
    cut = {
        NAME: envelope(files=file_of(packed[:-9], f'ovf:compression="{compression}"', "disk1.gz")),
        "disk1.gz": packed[:-9],
    }
    (tmp_path / "cut").mkdir()
    for package in both(cut, tmp_path / "cut"):
        assert codes(package) == ["truncated"]


def chunked(content: bytes, size: int, href: str = "disk1.vmdk") -> dict[str, bytes]:
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return {f"{href}.{number:09d}": part for number, part in enumerate(parts)}


@pytest.mark.parametrize("size", [100, len(DISK_BYTES), len(DISK_BYTES) // 2, 10_000])
def test_chunks_are_put_together(size: int, tmp_path: Path) -> None:
    more = vmdk(rest=b"second")
    disks = DISK + DISK.replace('"d1"', '"d2"').replace('"f1"', '"f2"')
    text = envelope(
        files=file_of(DISK_BYTES, f'ovf:chunkSize="{size}"') + file_of(more, "", "two.vmdk", "f2"), disks=disks
    )
    files = with_manifest({NAME: text, **chunked(DISK_BYTES, size), "two.vmdk": more})
    for package in both(files, tmp_path):
        assert codes(package) == []
    assert contents(open_stream(Forward(tar(files)))) == {"disk1.vmdk": DISK_BYTES, "two.vmdk": more}


def test_chunks_that_lack_or_are_short_are_told(tmp_path: Path) -> None:
    text = envelope(files=file_of(DISK_BYTES, 'ovf:chunkSize="500"'))
    parts = chunked(DISK_BYTES, 500)
    lacking = {name: part for name, part in parts.items() if not name.endswith("1")}
    short = parts | {"disk1.vmdk.000000000": DISK_BYTES[:400]}
    for files, code in ((lacking, "size-differs"), (short, "bad-chunks")):
        for package in both({NAME: text, **files}, tmp_path):
            assert code in codes(package) or "chunk-order" in codes(package)


def test_chunks_out_of_order_are_read_from_a_file(tmp_path: Path) -> None:
    text = envelope(files=file_of(DISK_BYTES, 'ovf:chunkSize="500"'))
    parts = dict(reversed(chunked(DISK_BYTES, 500).items()))
    stored, streamed = judged(tar({NAME: text, **parts}), tmp_path)
    assert (stored, streamed) == ([], ["chunk-order"])


def test_a_missing_file_and_a_wrong_size_are_told_with_their_line(tmp_path: Path) -> None:
    for package in both({NAME: TEXT}, tmp_path):
        (fault,) = package.faults.found
        assert (fault.code, fault.file, fault.line) == ("missing-file", NAME, 4)
    for content in (DISK_BYTES[:-1], DISK_BYTES + b"x"):
        for package in both({NAME: TEXT, "disk1.vmdk": content}, tmp_path):
            (fault,) = package.faults.found
            assert (fault.code, fault.file, fault.line) == ("size-differs", NAME, 4)


def test_names_that_only_look_odd_are_fine(tmp_path: Path) -> None:
    for number, (href, stored) in enumerate(
        (
            ("sun..vhw-disk1.vmdk", "sun..vhw-disk1.vmdk"),
            ("Wolke-ä-雲.vmdk", "Wolke-ä-雲.vmdk"),
            ("url%24encoded%a-1.vmdk", "url%24encoded%a-1.vmdk"),
            ("my%20disk.vmdk", "my disk.vmdk"),
            ("./sub/disk.vmdk", "sub/disk.vmdk"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = envelope(files=file_of(DISK_BYTES, href=href))
        for package in both({NAME: text, stored: DISK_BYTES}, folder):
            assert package.faults.found == (), href


def test_what_macos_adds_is_ignored(tmp_path: Path) -> None:
    for package in both({NAME: TEXT, "._x.ovf": b"junk", "disk1.vmdk": DISK_BYTES, "._disk1.vmdk": b"junk"}, tmp_path)[
        :2
    ]:
        assert package.faults.found == ()


def test_a_package_is_opened_by_its_descriptor_when_a_folder_has_several(tmp_path: Path) -> None:
    put(tmp_path, FILES | {"y.ovf": TEXT})
    with pytest.raises(OvfFault, match="two-descriptors"):
        open_package(tmp_path)
    with open_package(tmp_path / NAME) as package:
        validate(package)
        assert codes(package) == []


def test_a_folders_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DISK_BYTES)
    folder = put(tmp_path / "x", {NAME: TEXT})
    (folder / "disk1.vmdk").symlink_to(secret)
    with open_package(folder) as package:
        validate(package)
        assert codes(package) == ["unreadable"]
    (folder / "disk1.vmdk").unlink()
    os.mkfifo(folder / "disk1.vmdk")
    with open_package(folder) as package:
        validate(package)
        assert codes(package) == ["not-a-file"]
    text = envelope(files=file_of(DISK_BYTES, href="sub/disk1.vmdk"))
    (folder / NAME).write_bytes(text)
    (folder / "sub").symlink_to(tmp_path)
    with open_package(folder) as package:
        validate(package)
        assert codes(package) == ["unreadable"]


@pytest.mark.parametrize("capacity", [8 << 20, 17 << 20, 1 << 60])
def test_a_disk_that_is_not_as_long_as_the_descriptor_says(capacity: int, tmp_path: Path) -> None:
    content = vmdk(capacity)
    text = envelope(files=file_of(content))
    expected = {8 << 20: [], 17 << 20: [], 1 << 60: ["capacity-too-big"]}[capacity]
    for package in both({NAME: text, "disk1.vmdk": content}, tmp_path):
        assert codes(package) == expected
        assert mild(package) == ([] if expected else ["capacity-differs"])
    content = vmdk(64 << 20)
    for package in both({NAME: envelope(files=file_of(content)), "disk1.vmdk": content}, tmp_path):
        assert codes(package) == ["capacity-differs"]


def test_a_disk_that_names_files_of_a_host_is_refused(tmp_path: Path) -> None:
    content = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 4096 FLAT "/etc/shadow" 0\n'
    for package in both({NAME: envelope(files=file_of(content)), "disk1.vmdk": content}, tmp_path):
        assert codes(package) == ["names-host-files"]


def test_a_part_that_is_not_read_is_skipped() -> None:
    archive = tar(FILES | {"x.mf": manifest(FILES)})
    package = open_stream(Forward(archive))
    for content in package.contents():
        next(content.stored())
    assert codes(package) == []
    assert package.manifest is not None


def test_reading_is_forward_only() -> None:
    class Once(io.RawIOBase):
        def __init__(self) -> None:
            self.inner = io.BytesIO(tar(with_manifest(FILES)))

        def read(self, size: int = -1, /) -> bytes:
            return self.inner.read(size)

        def seekable(self) -> bool:
            return False

    package = open_stream(Once())
    validate(package)
    assert package.faults.found == ()


def test_limits_are_the_callers(tmp_path: Path) -> None:
    for limits, code in (
        (Limits(capacity_bytes=1 << 20), "capacity-too-big"),
        (Limits(descriptor_bytes=100), "descriptor-too-big"),
        (Limits(file_bytes=100), "member-too-big"),
        (Limits(members=1), "too-many-members"),
    ):
        with pytest.raises(OvfFault, match=code):
            validated(open_stream(Forward(tar(FILES)), limits=limits))


def validated(package: Package) -> None:
    validate(package)
    package.faults.settle()
