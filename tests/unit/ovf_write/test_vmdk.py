"""Streamed VMDKs: what qemu-img writes is read in one pass and back again, and whatever lies is refused."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.ovf_write import vmdks
from tests.unit.ovf_write.vmdks import GRAIN, MIB, ending, front, grain, marker, qemu_img, sparse_disk, streamed

from pileus.image.inspect import inspect
from pileus.ovf import vmdk
from pileus.ovf.deflating import deflate
from pileus.ovf.faults import OvfFault
from pileus.ovf.inflating import inflate
from pileus.ovf.target import Qcow2Target, RawTarget, Target

TARGETS: dict[str, Callable[[int, int], Target]] = {"raw": RawTarget, "qcow2": Qcow2Target}
SEED = 20_260


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    stream = io.BytesIO(content)
    return iter(lambda: stream.read(size), b"")


def read(content: bytes, target: Path, kind: str = "raw", *, chunk: int = 1 << 18, most: int = 1 << 44) -> int:
    """Return the capacity of what was written to ``target``."""
    with target.open("w+b") as file:
        made = inflate(pieces(content, chunk), lambda size: TARGETS[kind](file.fileno(), size), capacity_bytes_max=most)
    return made.capacity_bytes


def refusal(content: bytes, tmp_path: Path, *, most: int = 1 << 44) -> str:
    with pytest.raises(OvfFault) as caught:
        read(content, tmp_path / "out", most=most)
    return caught.value.faults[-1].code


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("chunk", [1 << 20, 4093])
@pytest.mark.parametrize("size_bytes", [70 * MIB, 64 * MIB + 512 * 3])
def test_what_qemu_img_streams_becomes_the_same_disk(tmp_path: Path, kind: str, chunk: int, size_bytes: int) -> None:
    raw = sparse_disk(tmp_path / "disk.raw", size_bytes)
    made = streamed(raw, tmp_path / "disk.vmdk").read_bytes()
    assert read(made, tmp_path / "out", kind, chunk=chunk) == size_bytes
    qemu_img("compare", "-f", "raw", "-F", kind, raw, tmp_path / "out")
    if kind == "qcow2":
        assert "No errors" in qemu_img("check", "-f", "qcow2", tmp_path / "out")
        assert inspect(tmp_path / "out", "qcow2").virtual_size_bytes == size_bytes
    # Holes stay holes.
    assert (tmp_path / "out").stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("size_bytes", [512, 70 * MIB, 64 * MIB + 512 * 3])
def test_what_is_streamed_is_read_by_qemu_img_and_by_itself(tmp_path: Path, size_bytes: int) -> None:
    raw = sparse_disk(tmp_path / "disk.raw", size_bytes) if size_bytes > MIB else tmp_path / "disk.raw"
    if size_bytes < MIB:
        raw.write_bytes(b"a" * size_bytes)
    out = bytearray()
    with raw.open("rb") as disk:
        deflate(disk.fileno(), size_bytes, out.extend, name="disk.vmdk")
    (tmp_path / "disk.vmdk").write_bytes(out)
    qemu_img("compare", "-f", "raw", "-F", "vmdk", raw, tmp_path / "disk.vmdk")
    assert "No errors" in qemu_img("check", "-f", "vmdk", tmp_path / "disk.vmdk")
    assert read(bytes(out), tmp_path / "out", chunk=1000) == size_bytes
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()


def test_an_empty_disk_is_all_holes(tmp_path: Path) -> None:
    out = bytearray()
    with (tmp_path / "disk.raw").open("w+b") as disk:
        disk.truncate(1 << 40)
        deflate(disk.fileno(), 1 << 40, out.extend)
    assert len(out) < 300_000  # 128 KiB of it are the directory
    assert read(bytes(out), tmp_path / "out", "qcow2") == 1 << 40
    assert "No errors" in qemu_img("check", "-f", "qcow2", tmp_path / "out")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_grains_may_come_in_any_order_and_of_any_size(tmp_path: Path, kind: str) -> None:
    chance = random.Random(SEED)
    size = 4096
    disk = bytearray(10 * MIB)
    body = b""
    for number in chance.sample(range(10 * MIB // size), 300):
        content = chance.randbytes(size)
        disk[number * size : (number + 1) * size] = content
        packed = zlib.compress(content, 1)
        body += vmdks.sector(vmdk.MARKER.pack(number * size // 512, len(packed)) + packed)
    read(front(grain=size) + body + ending(grain=size), tmp_path / "out", kind)
    (tmp_path / "disk.raw").write_bytes(disk)
    qemu_img("compare", "-f", "raw", "-F", kind, tmp_path / "disk.raw", tmp_path / "out")


GOOD = front() + grain(0) + grain(5) + ending()
EXTERNAL = vmdks.DESCRIPTOR.replace('SPARSE "x.vmdk"', 'FLAT "/etc/shadow" 0')
CHILD = vmdks.DESCRIPTOR.replace("parentCID=ffffffff", "parentCID=00000001")

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "disk-truncated"),
    "no VMDK": (bytes(4096), "disk-not-vmdk"),
    "a file elsewhere": (front(EXTERNAL) + ending(), "disk-external"),
    "a path": (front(vmdks.DESCRIPTOR.replace("x.vmdk", "../x.vmdk")) + ending(), "disk-external"),
    "two extents": (front(vmdks.DESCRIPTOR + 'RW 20480 SPARSE "y.vmdk"\n') + ending(), "disk-external"),
    "a parent": (front(CHILD) + ending(), "disk-has-parent"),
    "no descriptor": (front("plain text") + ending(), "disk-bad-descriptor"),
    "not compressed": (front(flags=1) + ending(), "disk-not-streamed"),
    "unknown version": (front(version=9) + ending(), "disk-bad-header"),
    "huge grains": (front(grain=1 << 40) + ending(), "disk-bad-header"),
    "odd grains": (front(grain=3 * 4096) + ending(), "disk-bad-header"),
    "no grains": (front(grain=0) + ending(), "disk-bad-header"),
    "huge front": (vmdks.header(front=1 << 50), "disk-bad-header"),
    "odd tables": (front(entries=1 << 30) + ending(), "disk-bad-header"),
    "huge descriptor": (vmdks.header(descriptor=1 << 40), "disk-bad-header"),
    "no capacity": (front(capacity=0) + ending(), "disk-bad-header"),
    "twice the same grain": (front() + grain(3) + grain(3) + ending(), "disk-overlap"),
    "between grains": (front() + vmdks.sector(vmdk.MARKER.pack(7, 20)) + ending(), "disk-bad-marker"),
    "beyond the end": (front() + grain(160) + ending(), "disk-bad-marker"),
    "far beyond the end": (front() + vmdks.sector(vmdk.MARKER.pack(2**64 - 128, 9)), "disk-bad-marker"),
    "huge marker": (front() + grain(0, size=2**32 - 1) + ending(), "disk-bad-marker"),
    "unknown marker": (front() + marker(77) + ending(), "disk-bad-marker"),
    "endless table": (front() + marker(1, 2**60), "disk-bad-marker"),
    "no footer": (front() + grain(0) + marker(0), "disk-bad-marker"),
    "another footer": (front() + grain(0) + ending(capacity=20 * MIB), "disk-bad-marker"),
    "bomb": (front() + grain(0, bytes(1 << 25)) + ending(), "disk-bad-grain"),
    "larger bomb": (front() + grain(0, bytes(1 << 28)) + ending(), "disk-bad-marker"),
    "short grain": (front() + grain(0, b"x" * 100) + ending(), "disk-bad-grain"),
    "cut grain": (front() + grain(0, size=60) + ending(), "disk-bad-grain"),
    "not deflated": (front() + vmdks.sector(vmdk.MARKER.pack(0, 20) + b"A" * 20) + ending(), "disk-bad-grain"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_disk_that_lies_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, code = HOSTILE[name]
    assert refusal(content, tmp_path) == code


def test_a_disk_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(512, len(GOOD) - 512, 700):
        assert refusal(GOOD[:length], tmp_path) == "disk-truncated", length


def test_a_disk_of_qemu_img_that_was_cut_off_between_two_grains_is_refused(tmp_path: Path) -> None:
    """Such a file has no end of stream: only its tables tell how many grains there are."""
    whole = streamed(sparse_disk(tmp_path / "disk.raw"), tmp_path / "disk.vmdk").read_bytes()
    assert refusal(whole[:65_536], tmp_path) == "disk-truncated"
    _, size = vmdk.MARKER.unpack_from(whole, 65_536)
    first_end = 65_536 + -(-(vmdk.MARKER.size + size) // 512) * 512
    assert refusal(whole[:first_end], tmp_path) == "disk-truncated"


def test_a_disk_larger_than_allowed_is_refused_at_its_header(tmp_path: Path) -> None:
    assert refusal(front(capacity=1 << 40), tmp_path, most=1 << 39) == "disk-too-large"
    assert not (tmp_path / "out").stat().st_size


def test_mutations_are_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    raw = sparse_disk(tmp_path / "disk.raw", 3 * MIB)
    honest = [GOOD, streamed(raw, tmp_path / "disk.vmdk").read_bytes()]
    refused = set()
    for _ in range(400):
        content = bytearray(chance.choice(honest))
        for _ in range(chance.randint(1, 4)):
            at = chance.choice([chance.randrange(200), 65_536 + chance.randrange(16), chance.randrange(len(content))])
            content[at] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        try:
            read(bytes(content), tmp_path / "out", chance.choice(["raw", "qcow2"]), most=1 << 30)
        except OvfFault as exc:
            refused.add(exc.faults[-1].code)
        assert os.stat(tmp_path / "out").st_blocks * 512 < 8 * MIB
    assert len(refused) > 5, f"seed {SEED}"
    assert all(code.startswith("disk-") for code in refused)


COST = """
import os, sys, time
from pileus.ovf.faults import OvfFault
from pileus.ovf.inflating import inflate
from pileus.ovf.target import Qcow2Target

def chunks():
    with open(sys.argv[1], "rb") as file:
        while chunk := file.read(1 << 18):
            yield chunk

began = time.monotonic()
with open(sys.argv[2], "w+b") as out:
    try:
        inflate(chunks(), lambda size: Qcow2Target(out.fileno(), size), capacity_bytes_max=int(sys.argv[3]))
        said = "read"
    except OvfFault as exc:
        said = exc.faults[-1].code
# ru_maxrss would count what the parent had before the child became another program.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(said, time.monotonic() - began, peak / 1024)
"""


def cost(content: Path, out: Path, most: int) -> tuple[str, float, float]:
    """Return what came of it, seconds and MiB, in an interpreter of its own."""
    command = [sys.executable, "-c", COST, str(content), str(out), str(most)]
    said, seconds, mib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return said, float(seconds), float(mib)


@pytest.mark.parametrize("name", ["huge grains", "twice the same grain", "bomb", "endless table", "a file elsewhere"])
def test_a_lie_costs_little(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").write_bytes(HOSTILE[name][0])
    said, seconds, mib = cost(tmp_path / "in", tmp_path / "out", 1 << 44)
    assert said == HOSTILE[name][1]
    assert seconds < 1
    assert mib < 50


def test_a_tebibyte_of_zeros_costs_little_whether_allowed_or_not(tmp_path: Path) -> None:
    with (tmp_path / "zeros").open("wb") as raw:
        raw.truncate(1 << 40)
    streamed(tmp_path / "zeros", tmp_path / "in")
    for most, expected in ((1 << 39, "disk-too-large"), (1 << 40, "read")):
        said, seconds, mib = cost(tmp_path / "in", tmp_path / "out", most)
        assert said == expected
        assert seconds < (1 if expected != "read" else 5)
        assert mib < 50
    assert (tmp_path / "out").stat().st_size < MIB


def test_a_gibibyte_of_explicit_zeros_is_a_hole(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(GRAIN))
    markers = (vmdk.MARKER.pack(number * GRAIN // 512, len(packed)) for number in range(1 << 14))
    grains = b"".join(vmdks.sector(marker + packed) for marker in markers)
    (tmp_path / "in").write_bytes(front(capacity=1 << 30) + grains + ending(capacity=1 << 30))
    said, _, mib = cost(tmp_path / "in", tmp_path / "out", 1 << 30)
    assert said == "read"
    assert mib < 50
    assert (tmp_path / "out").stat().st_size < MIB
