"""Images made by the real qemu-img, hostile ones too: what conversion makes of them, and what it could reach."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.jail import require_jail

from pileus.drivers.host.disk.base import UploadFormat
from pileus.drivers.host.errors import DiskFull, DriverError, ImageRefused
from pileus.image import jail
from pileus.image.inspect import inspect

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
WAIT_S = 60.0
SECRET = b"the host's secret"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``secret``, which no image may show; skipped where no jail can be made."""
    require_jail("qemu-img", "qemu-io", "setpriv")
    (tmp_path / "secret").write_bytes(SECRET * 40000)
    (tmp_path / "secret").chmod(0o644)
    return tmp_path


def sh(script: str, folder: Path) -> str:
    return subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True, text=True).stdout


def names(folder: Path, part: str) -> list[str]:
    """Return what is in the folder with ``part`` in its name."""
    return [path.name for path in folder.iterdir() if part in path.name]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition is true. Raises: TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


HOSTILE: dict[str, tuple[str, UploadFormat, str]] = {
    "backing file": ("qemu-img create -q -f qcow2 -b $PWD/secret -F raw image 1M", "qcow2", "BackingFile"),
    "nested backing files": (
        "qemu-img create -q -f qcow2 -b $PWD/secret -F raw middle 1M;"
        "qemu-img create -q -f qcow2 -b middle -F qcow2 image 1M",
        "qcow2",
        "BackingFile",
    ),
    "backing file by protocol": (
        "qemu-img create -q -f qcow2 -u -b nbd://127.0.0.1:1/x -F raw image 1M",
        "qcow2",
        "BackingFile",
    ),
    "external data": (
        "qemu-img create -q -f qcow2 -o data_file=outside,data_file_raw=on image 1M",
        "qcow2",
        "ExternalData",
    ),
    "snapshots": ("qemu-img create -q -f qcow2 image 1M; qemu-img snapshot -c one image", "qcow2", "InternalSnapshots"),
    "encrypted": (
        "qemu-img create -q -f qcow2 --object secret,id=k,data=x -o encrypt.format=aes,encrypt.key-secret=k image 1M",
        "qcow2",
        "Encrypted",
    ),
    "flat VMDK naming a file, as qcow2": (
        'printf \'# Disk DescriptorFile\\nversion=1\\ncreateType="monolithicFlat"\\nRW 1 FLAT "secret" 0\\n\' > image;'
        "truncate -s 512 image",
        "qcow2",
        "UnknownFormat",
    ),
    "flat VMDK naming a file, as raw": (
        'printf \'# Disk DescriptorFile\\nversion=1\\ncreateType="monolithicFlat"\\nRW 1 FLAT "secret" 0\\n\' > image;'
        "truncate -s 512 image",
        "raw",
        "FormatMismatch",
    ),
    "sparse VMDK": ("qemu-img create -q -f vmdk image 1M", "qcow2", "UnknownFormat"),
    "VHD": ("qemu-img create -q -f vpc image 1M", "qcow2", "UnknownFormat"),
    "fixed VHD as raw": ("qemu-img create -q -f vpc -o subformat=fixed image 1M", "raw", "FormatMismatch"),
    "VHDX": ("qemu-img create -q -f vhdx image 1M", "qcow2", "UnknownFormat"),
    "VDI": ("qemu-img create -q -f vdi image 1M", "raw", "FormatMismatch"),
    "QED": ("qemu-img create -q -f qed image 1M", "raw", "FormatMismatch"),
    "Parallels": ("qemu-img create -q -f parallels image 1M", "raw", "FormatMismatch"),
    "qcow version 1": ("qemu-img create -q -f qcow image 1M", "qcow2", "UnsupportedVersion"),
    "qcow2 in raw": ("qemu-img create -q -f qcow2 image 1M; truncate -s 1M image", "raw", "FormatMismatch"),
    "ISO and qcow2": (
        "qemu-img create -q -f qcow2 image 1M; printf CD001 | dd of=image bs=1 seek=32769 conv=notrunc status=none",
        "qcow2",
        "Polyglot",
    ),
    "flat VMDK naming a file, as VMDK": (
        'printf \'# Disk DescriptorFile\\nversion=1\\ncreateType="monolithicFlat"\\nRW 1 FLAT "secret" 0\\n\' > image;'
        "truncate -s 512 image",
        "vmdk",
        "UnknownFormat",
    ),
    "VMDK with a parent": (
        "qemu-img create -q -f vmdk base 1M; qemu-img create -q -f vmdk -b base -F vmdk image",
        "vmdk",
        "BackingFile",
    ),
    "VMDK that names another file": (
        'qemu-img create -q -f vmdk image 1M; sed -i \'s/SPARSE "image"/SPARSE "\\/etcx"/\' image',
        "vmdk",
        "ExternalData",
    ),
    "VHD with a parent": (
        "qemu-img create -q -f vpc image 1M; printf '\\004' | dd of=image bs=1 seek=63 conv=notrunc status=none",
        "vhd",
        "BackingFile",
    ),
    "VHDX with a parent": (
        "qemu-img create -q -f vhdx image 1M; python3 -c \"import uuid;f=open('image','r+b');b=f.read();"
        "e=b.find(uuid.UUID('caa16737-fa36-4d43-b3b6-33f0aa44e76b').bytes_le);"
        "o=int.from_bytes(b[e+16:e+20],'little')+b.find(b'metadata');f.seek(o+4);f.write(bytes([2]))\"",
        "vhdx",
        "BackingFile",
    ),
    "raw as VDI": ("truncate -s 1M image", "vdi", "UnknownFormat"),
    "cut off": (
        "qemu-img create -q -f qcow2 image 8M; qemu-io -f qcow2 -c 'write 0 8M' image >/dev/null; truncate -s 4M image",
        "qcow2",
        "Truncated",
    ),
    "huge first table": (
        "qemu-img create -q -f qcow2 image 1M; printf '\\377\\377\\377\\377' | dd of=image bs=1 seek=36 conv=notrunc"
        " status=none",
        "qcow2",
        "TableTooLarge",
    ),
}
"""How each file is made, what its sender claims, and the reason of the refusal."""


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_image_is_refused_and_leaves_nothing(folder: Path, case: str) -> None:
    script, format, reason = HOSTILE[case]
    sh(script, folder)
    with pytest.raises(ImageRefused) as refused:
        await jail.convert(folder / "image", format, folder / "made")
    assert refused.value.reason == reason
    assert not names(folder, "made")


SOUND: dict[str, tuple[str, UploadFormat]] = {
    "qcow2": ("qemu-img convert -f raw -O qcow2 plain image", "qcow2"),
    "version 2": ("qemu-img convert -f raw -O qcow2 -o compat=0.10 plain image", "qcow2"),
    "compressed": ("qemu-img convert -c -f raw -O qcow2 plain image", "qcow2"),
    "zstd": ("qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd plain image", "qcow2"),
    "small clusters": ("qemu-img convert -f raw -O qcow2 -o cluster_size=512 plain image", "qcow2"),
    "large clusters": ("qemu-img convert -f raw -O qcow2 -o cluster_size=2M plain image", "qcow2"),
    "extended L2": ("qemu-img convert -f raw -O qcow2 -o extended_l2=on plain image", "qcow2"),
    "one-bit refcounts": ("qemu-img convert -f raw -O qcow2 -o refcount_bits=1 plain image", "qcow2"),
    "with a bitmap": (
        "qemu-img convert -f raw -O qcow2 plain image; qemu-img bitmap -f qcow2 --add image one",
        "qcow2",
    ),
    "flattened": (
        "qemu-img create -q -f qcow2 -b plain -F raw image; qemu-img rebase -f qcow2 -b '' image",
        "qcow2",
    ),
    "raw": ("cp plain image", "raw"),
    "VMDK": ("qemu-img convert -f raw -O vmdk plain image", "vmdk"),
    "streamed VMDK": ("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized plain image", "vmdk"),
    "VHD": ("qemu-img convert -f raw -O vpc -o force_size=on plain image", "vhd"),
    "fixed VHD": ("qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on plain image", "vhd"),
    "VHDX": ("qemu-img convert -f raw -O vhdx plain image", "vhdx"),
    "VDI": ("qemu-img convert -f raw -O vdi plain image", "vdi"),
}


@pytest.mark.parametrize("case", SOUND)
async def test_a_sound_image_becomes_a_flat_qcow2_with_the_same_content(folder: Path, case: str) -> None:
    script, format = SOUND[case]
    sh("dd if=/dev/urandom of=plain bs=1M count=3 status=none; truncate -s 8M plain", folder)
    sh(script, folder)
    heard: list[float] = []
    facts = await jail.convert(folder / "image", format, folder / "made", progress=heard.append)
    assert (facts.format, facts.virtual_size_bytes) == ("qcow2", 8 * MIB)
    made = (folder / "made").read_bytes()
    assert (facts.size_bytes, facts.sha256) == (len(made), hashlib.sha256(made).hexdigest())
    assert sh("qemu-img compare -f raw -F qcow2 plain made", folder).startswith("Images are identical")
    assert heard[-1] == 1.0
    assert not names(folder, ".jail")
    assert (folder / "made").stat().st_uid == 0
    assert inspect(folder / "made", "qcow2").virtual_size_bytes == 8 * MIB


async def test_a_disk_whose_content_is_an_image_is_only_content(folder: Path) -> None:
    sh("qemu-img create -q -f qcow2 -b $PWD/secret -F raw inner 1M; truncate -s 1M inner", folder)
    sh("qemu-img convert -f raw -O qcow2 inner image", folder)
    await jail.convert(folder / "image", "qcow2", folder / "made")
    assert sh("qemu-img compare -f raw -F qcow2 inner made", folder).startswith("Images are identical")
    assert SECRET not in (folder / "made").read_bytes()


async def test_a_sound_image_passes_the_check_and_a_damaged_one_does_not(folder: Path) -> None:
    sh("qemu-img create -q -f qcow2 image 8M; qemu-io -f qcow2 -c 'write 0 1M' image >/dev/null", folder)
    assert await jail.check(folder / "image") == jail.CheckFacts(leaked_clusters=0)
    sh("printf '\\0\\0' | dd of=image bs=1 seek=131078 conv=notrunc status=none", folder)
    with pytest.raises(ImageRefused) as refused:
        await jail.check(folder / "image")
    assert refused.value.reason == "Corrupt"
    assert not names(folder, ".jail")


@pytest.fixture
def cell(folder: Path) -> tuple[Path, list[tuple[Path, str, str]]]:
    """A root folder, and a readable source and a writable target to be seen in it."""
    (folder / "root").mkdir()
    for name in ("source", "target"):
        (folder / name).write_bytes(b"")
        os.chown(folder / name, jail.JAIL_USER, jail.JAIL_USER)
    return folder / "root", [(folder / "source", "source", "ro"), (folder / "target", "target", "rw")]


async def outcome(cell: tuple[Path, list[tuple[Path, str, str]]], script: str, **limits: int) -> str:
    """Return what a program in the jail says."""
    ended = await jail.run_jailed(["sh", "-c", script], *cell, limits=jail.Limits(**limits), file_bytes=MIB)
    return (ended.stdout + ended.stderr).decode() + f"exit {ended.code}"


async def test_a_program_in_the_jail_sees_its_files_and_the_systems_programs_only(
    cell: tuple[Path, list[tuple[Path, str, str]]],
) -> None:
    seen = await outcome(cell, "cd /; ls -d *; ls /dev")
    assert set(seen.split()) <= {
        "bin",
        "dev",
        "lib",
        "lib64",
        "source",
        "target",
        "usr",
        "null",
        "urandom",
        "exit",
        "0",
    }
    assert "No such file" in await outcome(cell, f"cat {cell[0].parent / 'secret'}")
    assert "No such file" in await outcome(cell, "cat /etc/passwd /proc/self/status")


async def test_a_program_in_the_jail_has_no_rights(cell: tuple[Path, list[tuple[Path, str, str]]]) -> None:
    rights = await outcome(cell, "setpriv --dump")
    assert f"uid: {jail.JAIL_USER}\neuid: {jail.JAIL_USER}" in rights
    assert "Supplementary groups: [none]" in rights
    assert "no_new_privs: 1" in rights
    assert "Capability bounding set: [none]" in rights
    assert "Inheritable capabilities: [none]" in rights
    for step in ("echo > /source", "echo > /usr/new", "echo > /new", "mount -t tmpfs x /usr", "chmod 777 /source"):
        assert not (await outcome(cell, step)).endswith("exit 0"), step
    assert (await outcome(cell, "echo > /target")).endswith("exit 0")


async def test_a_program_in_the_jail_has_no_network_and_no_neighbours(
    cell: tuple[Path, list[tuple[Path, str, str]]],
) -> None:
    code = "import socket; print([name for _, name in socket.if_nameindex()])"
    if shutil.which("python3", path="/usr/bin") is None:
        pytest.skip("needs /usr/bin/python3 inside the jail")
    assert (await outcome(cell, f"python3 -I -S -c '{code}'")).startswith("['lo']")
    assert (await outcome(cell, "echo $$")).startswith("1\n")


async def test_memory_processor_time_and_file_size_are_limited(
    cell: tuple[Path, list[tuple[Path, str, str]]],
) -> None:
    assert (await outcome(cell, "while :; do :; done", cpu_s=1)).endswith(f"exit {128 + signal.SIGKILL}")
    await outcome(cell, "dd if=/dev/urandom of=/target bs=65536 count=32")
    assert cell[1][1][0].stat().st_size == MIB
    greedy = "dd if=/dev/urandom of=/dev/null bs=300M count=1"
    assert "memory exhausted" in await outcome(cell, greedy, memory_bytes=200 * MIB)


async def test_a_conversion_over_its_time_is_ended(cell: tuple[Path, list[tuple[Path, str, str]]]) -> None:
    with pytest.raises(DriverError) as late:
        await jail.run_jailed(["sleep", "1000"], *cell, limits=jail.Limits(timeout_s=0.5))
    assert late.value.reason == "TimedOut"
    assert not pids_with(f"{cell[0]}")


def pids_with(text: str) -> list[int]:
    """Return the living processes whose command line has ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def slow(cell: tuple[Path, list[tuple[Path, str, str]]]) -> Iterator[str]:
    """A number of seconds that no other sleep on this machine has; what still sleeps that long is ended."""
    seconds = f"10000.{os.getpid()}"
    yield seconds
    for pid in pids_with(f"sleep\0{seconds}"):
        os.kill(pid, signal.SIGKILL)


async def test_the_jail_dies_with_the_agent(cell: tuple[Path, list[tuple[Path, str, str]]], slow: str) -> None:
    script = (
        "import asyncio; from pathlib import Path; from pileus.image import jail\n"
        f"asyncio.run(jail.run_jailed(['sleep', {slow!r}], Path({str(cell[0])!r}), [], limits=jail.Limits()))\n"
    )
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    try:
        await until(lambda: bool(pids_with(f"sleep\0{slow}")))
        sleeper = pids_with(f"sleep\0{slow}")[0]
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: is_gone(sleeper))


async def test_a_cancelled_visit_ends_the_program(cell: tuple[Path, list[tuple[Path, str, str]]], slow: str) -> None:
    visit = asyncio.create_task(jail.run_jailed(["sleep", slow], *cell, limits=jail.Limits()))
    await until(lambda: bool(pids_with(f"sleep\0{slow}")))
    visit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await visit
    await until(lambda: not pids_with(f"sleep\0{slow}"))


async def test_a_full_disk_is_said_and_leaves_nothing(folder: Path) -> None:
    sh("mkdir small; mount -t tmpfs -o size=2m pileus-test small", folder)
    try:
        sh("dd if=/dev/urandom of=image bs=1M count=4 status=none", folder)
        with pytest.raises(DiskFull, match="are free"):
            await jail.convert(folder / "image", "raw", folder / "small/made")
        assert not names(folder / "small", "")
    finally:
        sh("umount small", folder)


def traced(folder: Path, script: str) -> list[str]:
    """Return the paths that a qemu-img in the jail opened with success, as strace saw them from outside."""
    probe = subprocess.run(["sh", "-c", "strace -o /dev/null true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"strace does not work here: {probe.stderr.strip()}")
    log = folder / "trace"
    strace = ["strace", "-f", "-e", "trace=execve,open,openat,openat2,clone,clone3,fork,vfork,connect", "-o", str(log)]
    subprocess.run([*strace, sys.executable, "-c", script], check=True, capture_output=True, timeout=WAIT_S)
    lines = log.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if re.search(r'execve\(".*qemu-img".* = 0$', line))
    family = {lines[start].split()[0]}
    opened = []
    for line in lines[start:]:
        pid, _, call = line.partition(" ")
        if pid not in family:
            continue
        if made := re.search(r"(?:clone3?|fork)\(.*= (\d+)$", call) or re.search(r"clone3? resumed.*= (\d+)$", call):
            family.add(made[1])
        assert "connect(" not in call
        if found := re.search(r'open(?:at2?)?\(.*?"(.*?)".*= \d+$', call):
            opened.append(found[1])
    return opened


ALLOWED = re.compile(r"/source|/target|/dev/null|/dev/urandom|(?:/usr)?/lib(?:64)?/.*")


def test_a_conversion_opens_only_its_files_and_libraries(folder: Path) -> None:
    sh("qemu-img create -q -f qcow2 image 8M; qemu-io -f qcow2 -c 'write 0 4M' image", folder)
    script = (
        "import asyncio; from pathlib import Path; from pileus.image import jail\n"
        f"asyncio.run(jail.convert(Path({str(folder / 'image')!r}), 'qcow2', Path({str(folder / 'made')!r})))\n"
    )
    opened = traced(folder, script)
    assert {"/source", "/target"} <= set(opened)
    assert [path for path in opened if not ALLOWED.fullmatch(path)] == []


def test_a_hostile_image_that_slipped_past_inspection_still_opens_nothing_else(
    folder: Path, cell: tuple[Path, list[tuple[Path, str, str]]]
) -> None:
    sh("qemu-img create -q -f qcow2 -b $PWD/secret -F raw evil 1M; cat evil > source", folder)
    words = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "/source", "/target"]
    script = (
        "import asyncio; from pathlib import Path; from pileus.image import jail\n"
        f"visible = [(Path({str(folder / 'source')!r}), 'source', 'ro'), (Path({str(folder / 'target')!r}), 'target', 'rw')]\n"
        f"work = jail.run_jailed({words!r}, Path({str(cell[0])!r}), visible, limits=jail.Limits(), file_bytes=2**24)\n"
        "assert asyncio.run(work).code != 0\n"
    )
    opened = traced(folder, script)
    assert "/source" in opened
    assert [path for path in opened if not ALLOWED.fullmatch(path)] == []
    assert SECRET not in (folder / "target").read_bytes()
