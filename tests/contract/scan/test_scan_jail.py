"""Scans of disks in the jail: what they find, what hostile disks and rules do to them, and what they could reach."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pileus.scan import rules as rules_of_ours
from pileus.scan.disk import LINE_BYTES_MAX, Layer, Limits, _Said, scan_disk
from pileus.scan.report import Finding, Report
from pileus.scan.rules import eicar

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
WAIT_S = 60.0
TEST_FILE = "".join(rules_of_ours._EICAR_PARTS).encode()
LONG = Limits(time_s=WAIT_S)
SHORT = Limits(time_s=1.0, grace_s=1.0)
"""For what never ends."""


def sh(script: str, folder: Path) -> None:
    environment = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True, env=environment)


async def scanned(folder: Path, *layers: tuple[str, str], rules: str = "", limits: Limits = LONG) -> Report:
    named = [Layer(str(folder / name), "raw" if format == "raw" else "qcow2") for name, format in layers]
    report = await scan_disk(named, rules or eicar(), scratch=folder / "scratch", limits=limits)
    assert list((folder / "scratch").iterdir()) == []
    return report


def partitioned(folder: Path) -> None:
    """Make ``disk``: two partitions, the second of them ext4 with the test file in a folder."""
    (folder / "tree" / "var" / "www").mkdir(parents=True)
    (folder / "tree" / "var" / "www" / "up\x1bload.com").write_bytes(TEST_FILE)
    (folder / "tree" / "other").write_bytes(random.Random(6).randbytes(MIB))
    sh("mke2fs -q -F -t ext4 -d tree part 24M; truncate -s 32M disk", folder)
    entries = struct.pack("<B3xB3xII", 0, 0x0E, 2048, 2048) + struct.pack("<B3xB3xII", 0, 0x83, 4096, 49152)
    with (folder / "disk").open("r+b") as disk:
        disk.seek(446)
        disk.write(entries.ljust(64, b"\0") + b"\x55\xaa")
    sh("dd if=part of=disk bs=1M seek=2 conv=notrunc,sparse status=none", folder)


@pytest.mark.parametrize("format", ["raw", "qcow2", "compressed", "volume"])
async def test_the_test_file_is_found_with_its_path(folder: Path, format: str) -> None:
    partitioned(folder)
    layers = [("disk", "raw")]
    if format == "volume":
        sh("qemu-img create -q -f qcow2 -b disk -F raw image", folder)
        layers = [("image", "qcow2"), *layers]
    elif format != "raw":
        sh(f"qemu-img convert {'-c' * (format == 'compressed')} -f raw -O qcow2 disk image", folder)
        layers = [("image", "qcow2")]
    report = await scanned(folder, *layers)
    assert (report.state, report.reason, report.size_bytes) == ("found", "", 32 * MIB)
    raw, file = report.findings
    assert (raw.where, raw.rule, raw.length, raw.offset % 512) == ("disk", "EICAR_Test_File", 68, 0)
    assert raw.offset == (folder / "disk").read_bytes().index(TEST_FILE)
    assert (file.where, file.path, file.partition, file.offset) == ("file", "/var/www/up\\x1bload.com", 2, 0)
    assert [(part.partition, part.content, part.read, part.files) for part in report.parts] == [
        (1, "unknown", "bytes", 0), (2, "ext4", "files", 2)
    ]  # fmt: skip


async def test_a_disk_without_it_is_clean(folder: Path) -> None:
    (folder / "disk").write_bytes(random.Random(6).randbytes(MIB))
    report = await scanned(folder, ("disk", "raw"))
    assert (report.state, report.scanned_bytes) == ("clean", MIB)


async def test_findings_are_heard_of_while_the_scan_goes_on(folder: Path) -> None:
    (folder / "disk").write_bytes(TEST_FILE.ljust(MIB, b"x"))
    heard: list[Finding | int] = []
    report = await scan_disk([Layer(str(folder / "disk"), "raw")], eicar(), limits=LONG, heard=heard.append)
    assert tuple(one for one in heard if isinstance(one, Finding)) == report.findings != ()


def bomb(folder: Path) -> None:
    """A disk of 16 TiB in a few clusters: every table is the same one, every entry the same compressed cluster of zeros."""
    sh("truncate -s 2M zeros; qemu-img create -q -f qcow2 -o cluster_size=2M image 16T", folder)
    image = bytearray((folder / "image").read_bytes())
    (tables,) = struct.unpack_from(">Q", image, 40)
    (entries,) = struct.unpack_from(">I", image, 36)
    second = len(image) + -len(image) % (2 * MIB)
    image.extend(bytes(second - len(image)))
    struct.pack_into(f">{entries}Q", image, tables, *[second | 1 << 63] * entries)
    packed = zero_cluster()
    shift = 62 - (21 - 8)
    entry = 1 << 62 | ((len(packed) + 511) // 512 << shift) | (second + 2 * MIB)
    image.extend(struct.pack(">Q", entry) * (2 * MIB // 8) + packed.ljust(4096, b"\0"))
    (folder / "image").write_bytes(image)


def zero_cluster() -> bytes:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(bytes(2 * MIB)) + packer.flush()


SCRIPTS: dict[str, tuple[str, str, str]] = {
    "another format than said": ("truncate -s 1M image", "qcow2", "BadHeader"),
    "a backing file": ("qemu-img create -q -f qcow2 -b /etc/passwd -F raw -u image 1M", "qcow2", "NoBacking"),
    "external data": (
        "qemu-img create -q -f qcow2 -o data_file=out,data_file_raw=on image 1M",
        "qcow2",
        "ExternalData",
    ),
    "a huge first table": (
        "qemu-img create -q -f qcow2 image 1M;"
        "printf '\\377\\377\\377\\377' | dd of=image bs=1 seek=36 conv=notrunc status=none;"
        "printf '\\000\\000\\017\\377' | dd of=image bs=1 seek=24 conv=notrunc status=none",
        "qcow2",
        "Truncated",
    ),
    "a disk larger than any": (
        "qemu-img create -q -f qcow2 image 1M;printf '\\077\\377' | dd of=image bs=1 seek=24 conv=notrunc status=none",
        "qcow2",
        "TooLarge",
    ),
    "a file system in damage": (
        "mke2fs -q -F -t ext4 image 8M; dd if=/dev/urandom of=image bs=1024 seek=2 count=60 conv=notrunc status=none",
        "raw",
        "FilesUnread",
    ),
    "an encrypted part": (
        "printf 'LUKS\\272\\276' > image; truncate -s 1M image; dd if=/dev/urandom of=image bs=1M seek=1 count=1 "
        "conv=notrunc status=none",
        "raw",
        "Encrypted",
    ),
    "a pipe": ("mkfifo image", "raw", "Crashed"),
    "a link": ("ln -s /etc/passwd image", "raw", "Crashed"),
    "nothing": ("true", "raw", "Crashed"),
}
"""How the disk is made, the format that is said, and why it is unknown."""


@pytest.mark.parametrize("case", SCRIPTS)
async def test_a_disk_that_was_not_read_whole_is_unknown(folder: Path, case: str) -> None:
    script, format, reason = SCRIPTS[case]
    sh(script, folder)
    report = await scanned(folder, ("image", format))
    assert (report.state, report.reason) == ("unknown", reason)
    assert report.message


async def test_a_bomb_costs_its_time_and_is_unknown(folder: Path) -> None:
    bomb(folder)
    report = await scanned(folder, ("image", "qcow2"), limits=Limits(time_s=3.0, grace_s=WAIT_S))
    assert (report.state, report.reason) == ("unknown", "TimedOut")
    assert report.scanned_bytes > MIB


async def test_damaged_disks_harm_nobody(folder: Path) -> None:
    partitioned(folder)
    sh("qemu-img convert -c -f raw -O qcow2 disk sound", folder)
    sound, chance = (folder / "sound").read_bytes(), random.Random(6)
    for _ in range(6):
        image = bytearray(sound)
        for _ in range(chance.choice((1, 4))):
            image[chance.choice((chance.randrange(112), 65536 * 3 + chance.randrange(8192)))] ^= 1 << chance.randrange(
                8
            )
        (folder / "image").write_bytes(image)
        report = await scanned(folder, ("image", "qcow2"))
        assert report.state == "found" or report.reason or report.size_bytes != 32 * MIB


EXPLODING = {
    "loops in loops": (
        "rule a { condition: for all i in (1..filesize - 1) : (for all j in (1..filesize - 1) :"
        " (for all k in (1..filesize - 1) : (uint8(i) + uint8(j) + uint8(k) >= 0))) }"
    ),
    "expressions that go back": "rule a { strings: $a = /(x+x+)+(x+x+)+y/ condition: $a }",
}


@pytest.mark.parametrize("case", EXPLODING)
async def test_rules_that_explode_end_with_the_scan(folder: Path, case: str) -> None:
    (folder / "disk").write_bytes(b"x" * 16 * MIB)
    report = await scanned(folder, ("disk", "raw"), rules=EXPLODING[case], limits=SHORT)
    assert (report.state, report.reason) == ("unknown", "TimedOut")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("rule a {", "RulesRefused"),
        ("", "RulesRefused"),
        ('import "cuckoo" rule a { condition: true }', "RulesRefused"),
    ],
)
async def test_rules_that_are_refused_are_no_clean_disk(folder: Path, source: str, reason: str) -> None:
    (folder / "disk").write_bytes(b"x" * MIB)
    report = await scanned(folder, ("disk", "raw"), rules=source or " ")
    assert (report.state, report.reason) == ("unknown", reason)


async def test_too_little_memory_is_unknown(folder: Path) -> None:
    (folder / "disk").write_bytes(b"x" * 64 * MIB)
    small = Limits(memory_bytes=96 * MIB, time_s=WAIT_S)
    report = await scanned(folder, ("disk", "raw"), limits=small)
    assert report.state == "unknown"


def inmates(folder: Path) -> list[int]:
    """Return the processes that scan for this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"pileus.scan.inmate" in line and str(folder).encode() in line:
            found.append(int(entry.name))
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_a_scan_that_is_killed_is_unknown(folder: Path) -> None:
    bomb(folder)
    task = asyncio.create_task(scanned(folder, ("image", "qcow2"), limits=LONG))
    await until(lambda: len(inmates(folder)) == 2)
    os.kill(max(inmates(folder)), signal.SIGKILL)
    report = await task
    assert (report.state, report.reason) == ("unknown", "Crashed")
    assert "signal 9" in report.message


async def test_a_scan_that_hangs_is_killed(folder: Path) -> None:
    bomb(folder)
    limits = Limits(time_s=8.0, grace_s=1.0)
    task = asyncio.create_task(scanned(folder, ("image", "qcow2"), limits=limits))
    await until(lambda: len(inmates(folder)) == 2)
    os.kill(max(inmates(folder)), signal.SIGSTOP)
    report = await task
    assert (report.state, report.reason) == ("unknown", "TimedOut")
    await until(lambda: not inmates(folder))


async def test_a_scan_that_nobody_waits_for_is_killed(folder: Path) -> None:
    bomb(folder)
    task = asyncio.create_task(scanned(folder, ("image", "qcow2"), limits=LONG))
    await until(lambda: len(inmates(folder)) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not inmates(folder))
    assert list((folder / "scratch").iterdir()) == []


SAYS = """
import os, resource, socket, sys
def attempt(what):
    try: return str(what())
    except OSError as exc: return type(exc).__name__
said = {
    'files': attempt(lambda: os.listdir('/')),
    'write': attempt(lambda: os.open('/x', os.O_CREAT | os.O_WRONLY)),
    'passwd': attempt(lambda: os.open('/etc/passwd', os.O_RDONLY)),
    'up': attempt(lambda: os.listdir('/..')),
    'user': str(os.getresuid() + os.getresgid()) + str(os.getgroups()),
    'root': attempt(lambda: os.setuid(0)),
    'nics': str([name for _, name in socket.if_nameindex()]),
    'pid': str(os.getpid()),
    'exec': attempt(lambda: os.execv('/bin/sh', ['sh'])),
    'kill': attempt(lambda: os.kill(int(sys.argv[2]), 0)),
}
os.write(1, repr(said).encode())
"""


def test_what_is_confined_reaches_nothing(folder: Path) -> None:
    (folder / "root").mkdir()
    script = (
        "import sys, os, resource, socket\nfrom pileus.image import cell\n"
        f"limits = {{'memory_bytes': 2**30, 'cpu_s': 10, 'file_bytes': 0, 'files': 64, 'core_bytes': 0}}\n"
        f"def work():\n    exec({SAYS!r}, globals())\n    return 7\n"
        "sys.exit(cell.confine(sys.argv[1], 61000, limits, work))\n"
    )
    words = [sys.executable, "-c", script, str(folder / "root"), str(os.getpid())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    said = eval(done.stdout)
    assert said == {
        "files": "[]",
        "write": "OSError",
        "passwd": "FileNotFoundError",
        "up": "[]",
        "user": "(61000, 61000, 61000, 61000, 61000, 61000)[]",
        "root": "PermissionError",
        "nics": "['lo']",
        "pid": "1",
        "exec": "FileNotFoundError",
        "kill": "ProcessLookupError",
    }
    assert list((folder / "root").iterdir()) == []


LIES = {
    "no JSON": b"hello\n",
    "a line without end": b"x" * (LINE_BYTES_MAX + 1),
    "another type": b'{"finding":{"rule":1,"where":"disk"}}\n',
    "an ending after the ending": b'{"ended":{}}\n{"ended":{}}\n',
    "half a line": b'{"ended":{}',
    "nothing": b"",
}


@pytest.mark.parametrize("case", LIES)
async def test_a_scanner_that_was_taken_over_is_not_believed(case: str) -> None:
    said = _Said(lambda _: None)
    said.hear(LIES[case])
    assert said.report("Crashed", "it ended").state == "unknown"


async def test_a_flood_of_findings_is_bounded_and_harmless() -> None:
    said = _Said(lambda _: None)
    for _ in range(5000):
        said.hear(b'{"finding":{"rule":"\\u001b[2J","where":"file","path":"a\\nb"}}\n')
    report = said.report("Crashed", "it ended")
    assert len(report.findings) == 1000
    assert (report.findings[0].rule, report.findings[0].path) == ("\\x1b[2J", "a\\nb")
