"""Our readers of qcow2 and ext4 against qemu-img and mke2fs: the same bytes and the same files; damaged ones end in order."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pileus.scan.disks import RawDisk, Readable, Span, Unreadable
from pileus.scan.ext4 import FileSystem, Walk
from pileus.scan.qcow2 import Qcow2Disk

MIB = 1024 * 1024
SEED = 6
DAMAGED = 120


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [tool for tool in ("qemu-img", "qemu-io", "mke2fs", "debugfs") if shutil.which(tool, path=SEARCH) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def sh(script: str, folder: Path) -> str:
    environment = {"PATH": SEARCH, "LC_ALL": "C"}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB, some of it random, some repeated, much of it a hole."""
    chance = random.Random(SEED)
    with (tmp_path / "plain").open("wb") as file:
        file.truncate(8 * MIB)
        for at, length in ((0, 3000), (MIB, 700_001), (3 * MIB - 5, 10), (5 * MIB, MIB)):
            file.seek(at)
            file.write(chance.randbytes(length) if at != MIB else (b"words of text " * 60_000)[:length])
    return tmp_path / "plain"


@contextlib.contextmanager
def opened(*layers: tuple[Path, str]) -> Iterator[Readable]:
    """Give the disk of these files, the uppermost first."""
    files = [os.open(path, os.O_RDONLY) for path, _ in layers]
    try:
        disk: Readable | None = None
        for (_, format), file in zip(reversed(layers), reversed(files), strict=True):
            disk = RawDisk(file) if format == "raw" else Qcow2Disk(file, disk)
        assert disk is not None
        yield disk
    finally:
        for file in files:
            os.close(file)


def assert_same(disk: Readable, wanted: bytes) -> None:
    """Everything reads the same, from anywhere, and what no range names is zeros."""
    assert disk.size_bytes == len(wanted)
    assert disk.read(0, len(wanted)) == wanted
    chance = random.Random(SEED)
    for _ in range(100):
        at = chance.randrange(len(wanted))
        length = chance.randrange(1, min(200_000, len(wanted) - at) + 1)
        assert disk.read(at, length) == wanted[at : at + length]
    named = bytearray(len(wanted))
    ranges = list(disk.ranges())
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
    for start, end in ranges:
        named[start:end] = wanted[start:end]
    assert bytes(named) == wanted
    assert disk.read(len(wanted) - 5, 10) == wanted[-5:] + bytes(5)


FORMS = {
    "as it is": "",
    "version 2": "-o compat=0.10",
    "compressed": "-c",
    "compressed, version 2": "-c -o compat=0.10",
    "small clusters": "-o cluster_size=512",
    "compressed small clusters": "-c -o cluster_size=4k",
    "large clusters": "-o cluster_size=2M",
    "one-bit counts": "-o refcount_bits=1",
    "tables of everything": "-o preallocation=metadata",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_qcow2_reads_like_what_it_was_made_of(plain: Path, form: str) -> None:
    sh(f"qemu-img convert -f raw -O qcow2 {FORMS[form]} plain image", plain.parent)
    with opened((plain.with_name("image"), "qcow2")) as disk:
        assert_same(disk, plain.read_bytes())


def test_a_raw_disk_reads_like_itself(plain: Path) -> None:
    with opened((plain, "raw")) as disk:
        assert_same(disk, plain.read_bytes())
        assert sum(end - start for start, end in disk.ranges()) < 3 * MIB


@pytest.mark.parametrize("below", ["raw", "qcow2"])
def test_a_volume_over_its_image_reads_like_both(plain: Path, below: str) -> None:
    sh(f"qemu-img convert -f raw -O {below} plain base", plain.parent)
    sh(f"qemu-img create -q -f qcow2 -b base -F {below} over 12M", plain.parent)
    writes = "-c 'write -P 7 1500k 100k' -c 'write -z 5M 300k' -c 'write -P 9 10M 64k' -c 'discard 0 64k'"
    sh(f"qemu-io -f qcow2 {writes} over", plain.parent)
    sh("qemu-img convert -f qcow2 -O raw over flat", plain.parent)
    with opened((plain.with_name("over"), "qcow2"), (plain.with_name("base"), below)) as disk:
        assert_same(disk, plain.with_name("flat").read_bytes())


REFUSED = {
    "an image below that nobody gave": ("qemu-img create -q -f qcow2 -b plain -F raw image 8M", "NoBacking"),
    "external data": ("qemu-img create -q -f qcow2 -o data_file=out,data_file_raw=on image 8M", "ExternalData"),
    "encrypted": (
        "qemu-img create -q -f qcow2 --object secret,id=k,data=x -o encrypt.format=aes,encrypt.key-secret=k image 8M",
        "Encrypted",
    ),
    "zstd": ("qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd plain image", "Unsupported"),
    "extended tables": ("qemu-img convert -f raw -O qcow2 -o extended_l2=on plain image", "Unsupported"),
    "another format": ("qemu-img convert -f raw -O vdi plain image", "BadHeader"),
    "an empty file": (": > image", "BadHeader"),
    "cut off in its tables": ("qemu-img convert -f raw -O qcow2 plain image; truncate -s 200k image", "Truncated"),
    "cut off in its content": ("qemu-img convert -f raw -O qcow2 plain image; truncate -s 1M image", "Truncated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_disk_that_cannot_be_read_whole_is_refused(plain: Path, case: str) -> None:
    script, reason = REFUSED[case]
    sh(script, plain.parent)
    with pytest.raises(Unreadable) as refused, opened((plain.with_name("image"), "qcow2")) as disk:
        disk.read(0, disk.size_bytes)
    assert refused.value.reason == reason


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files of all kinds."""
    chance = random.Random(SEED)
    root = tmp_path / "tree"
    (root / "many").mkdir(parents=True)
    (root / "deep" / "er" / "and a name").mkdir(parents=True)
    for number in range(700):
        (root / "many" / f"file-with-a-long-name-{number:05d}").write_bytes(b"%d\n" % number * (number % 40))
    (root / "deep" / "er" / "and a name" / "ünïcode").write_bytes(chance.randbytes(100_000))
    (root / "large").write_bytes(chance.randbytes(3 * MIB + 17))
    with (root / "sparse").open("wb") as file:
        for at in range(0, 40 * MIB, 2 * MIB):
            file.seek(at)
            file.write(chance.randbytes(5000))  # no hole at the end: mke2fs loses it with inline_data
    (root / "tiny").write_bytes(b"tiny")
    (root / "small").write_bytes(chance.randbytes(140))
    (root / "empty").touch()
    os.symlink("large", root / "link")
    os.link(root / "large", root / "again")
    os.mkfifo(root / "pipe")
    return root


SYSTEMS = {
    "ext4": "-t ext4",
    "ext4 of 1 KiB blocks": "-t ext4 -b 1024",
    "ext3": "-t ext3 -b 1024",
    "ext2": "-t ext2 -b 4096 -I 128",
    "small files in inodes": "-t ext4 -O inline_data -I 256",
    "meta groups": "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "32 bits": "-t ext4 -O ^64bit,^metadata_csum",
}


def files_of(disk: Readable) -> tuple[dict[str, bytes], Walk]:
    walk = Walk(FileSystem(disk))
    return {path: content.read(0, content.size_bytes) for path, content in walk.files()}, walk


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_files_of_a_file_system_are_those_that_were_put_there(tree: Path, system: str) -> None:
    sh(f"mke2fs -q -F {SYSTEMS[system]} -d tree image 64M", tree.parent)
    wanted = {f"/{file.relative_to(tree)}": file.read_bytes() for file in tree.rglob("*") if is_plain(file)}
    with opened((tree.with_name("image"), "raw")) as disk:
        found, walk = files_of(disk)
    assert (walk.unread, walk.first_words) == (0, "")
    (once,) = {"/large", "/again"} & set(found)  # one file with two names is read once
    found["/large"] = found["/again"] = found[once]
    assert set(found) == set(wanted)
    assert [path for path in wanted if found[path] != wanted[path]] == []


def is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and file.stat().st_size > 0


def test_a_file_in_many_pieces_is_read_as_one(tmp_path: Path) -> None:
    sh("mke2fs -q -F -t ext4 -b 1024 image 16M", tmp_path)
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * 100_000)
    sh("(for n in $(seq 0 59); do echo write f$n f$n; done) | debugfs -w -f - image", tmp_path)
    sh("(for n in $(seq 0 2 58); do echo rm f$n; done) | debugfs -w -f - image", tmp_path)
    content = random.Random(SEED).randbytes(2_500_000)
    (tmp_path / "scattered").write_bytes(content)
    sh("echo write scattered scattered | debugfs -w -f - image", tmp_path)
    assert len(sh("debugfs -R 'stat scattered' image", tmp_path).partition("EXTENTS:")[2].split(",")) > 10
    with opened((tmp_path / "image", "raw")) as disk:
        found, walk = files_of(disk)
    assert found["/scattered"] == content
    assert walk.unread == 0


def test_a_damaged_qcow2_ends_in_order(plain: Path) -> None:
    sh("qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k plain image", plain.parent)
    sound = plain.with_name("image").read_bytes()
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    outcomes = set()
    for _ in range(DAMAGED):
        image = bytearray(sound)
        for _ in range(chance.choice((1, 1, 3, 20))):
            at = chance.randrange(112) if chance.random() < 0.4 else chance.randrange(len(image))
            image[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        plain.with_name("damaged").write_bytes(
            image[: chance.choice((len(image), len(image), chance.randrange(len(image))))]
        )
        outcomes.add(outcome(plain.with_name("damaged")))
    assert {"read", "BadHeader", "Truncated"} <= outcomes


def outcome(image: Path) -> str:
    """Return how it went to read what can be read in little time; any other error is a defect."""
    try:
        with opened((image, "qcow2")) as disk:
            for start, end in itertools.islice(disk.ranges(), 50):
                disk.read(start, min(end - start, MIB))
    except Unreadable as exc:
        return exc.reason
    return "read"


@pytest.mark.parametrize("system", ["ext4", "ext3", "small files in inodes"])
def test_a_damaged_file_system_ends_in_order(tree: Path, system: str) -> None:
    sh(f"mke2fs -q -F {SYSTEMS[system]} -d tree image 64M", tree.parent)
    image = tree.with_name("image")
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    with opened((image, "raw")) as disk:
        written = [
            place for start, end in disk.ranges() for place in range(start, end, 4096) if any(disk.read(place, 64))
        ]
    unread = 0
    for _ in range(20):
        with opened((image, "raw")) as disk:
            unread += walked(Damaged(disk, chance, written))
    assert unread > 0


class Damaged:
    """A disk of which some bytes are others than they were."""

    def __init__(self, disk: Readable, chance: random.Random, written: list[int]) -> None:
        self.size_bytes = disk.size_bytes
        self._disk = disk
        # The superblock often, tables of inodes and folders, which come first, more often than content.
        places = [*range(1024, 1280), *(place + chance.randrange(4096) for place in written[:300] * 3)]
        self._changed = {chance.choice(places): chance.randrange(256) for _ in range(chance.choice((1, 5, 300)))}

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the whole."""
        yield 0, self.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return that many bytes, damaged."""
        content = bytearray(self._disk.read(offset, length))
        for place, value in self._changed.items():
            if offset <= place < offset + length:
                content[place - offset] = value
        return bytes(content)


def walked(disk: Readable) -> int:
    """Return how many files could not be read; any other error than what says so is a defect."""
    try:
        walk = Walk(FileSystem(Span(disk, 0, disk.size_bytes)))
        for path, content in itertools.islice(walk.files(), 2000):
            try:
                for start, end in itertools.islice(content.ranges(), 20):
                    content.read(start, min(end - start, 10_000))
            except Unreadable as exc:
                walk.give_up(path, exc)
    except Unreadable:
        return 1
    return walk.unread
