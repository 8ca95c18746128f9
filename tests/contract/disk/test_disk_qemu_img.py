"""What only files can show: nothing half-made after a crash, no header followed, no old bytes, no process left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.disk.base import ImagePart, ImageSpec, PartName, VolumeSpec
from pileus.drivers.host.disk.real import QemuImgPool
from pileus.drivers.host.errors import DiskFull, DriverError, MissingTool
from pileus.drivers.host.paths import HostPaths
from pileus.kernel.errors import Bug

if TYPE_CHECKING:
    from tests.contract.disk.conftest import RealRig

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DISK = b"\x07" * MIB
WAIT_S = 30.0

IMAGE = ImageSpec(
    id="image-1",
    format="raw",
    virtual_size_bytes=MIB,
    parts={
        "disk": ImagePart(size_bytes=MIB, sha256=hashlib.sha256(DISK).hexdigest()),
        "kernel": ImagePart(size_bytes=6, sha256=hashlib.sha256(b"kernel").hexdigest()),
    },
)
IMAGE_FILES = {"images/image-1/disk", "images/image-1/kernel", "images/image-1/image.json"}
VOLUME = VolumeSpec(id="volume-1", size_bytes=4 * MIB, image="image-1")
VOLUME_FILES = {"volumes/volume-1.qcow2", "volumes/volume-1.json"}


async def fetch(name: PartName) -> AsyncIterator[bytes]:
    content = DISK if name == "disk" else b"kernel"
    for start in range(0, len(content), 65536):
        yield content[start : start + 65536]


async def with_image(rig: RealRig) -> QemuImgPool:
    pool = rig.pool()
    await pool.open()
    await pool.put_image(IMAGE, fetch)
    return pool


def guest_io(path: str, command: str, *, format: str = "qcow2") -> str:
    """Read or write the volume as its guest would."""
    words = ["qemu-io", "-f", format, "-c", command, path]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def qemu_img(*words: str) -> str:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition is true. Raises: TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Return whether the process ended; a zombie nobody reaped yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_child_reads_as_its_image_and_as_zeros_beyond(real: RealRig) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    assert "failed" not in guest_io(volume.path, f"read -P 7 0 {MIB}")
    assert "failed" not in guest_io(volume.path, f"read -P 0 {MIB} {3 * MIB}")
    guest_io(volume.path, f"write -P 9 0 {MIB}")
    image = (await pool.images())["image-1"]
    assert "failed" not in guest_io(image.path, f"read -P 7 0 {MIB}", format="raw")


async def test_a_grown_child_keeps_its_content_and_its_image(real: RealRig) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    guest_io(volume.path, f"write -P 9 {MIB} 65536")
    await pool.resize("volume-1", 8 * MIB)
    assert "failed" not in guest_io(volume.path, f"read -P 7 0 {MIB}")
    assert "failed" not in guest_io(volume.path, f"read -P 9 {MIB} 65536")
    assert "failed" not in guest_io(volume.path, f"read -P 0 {4 * MIB} {4 * MIB}")
    assert f'"virtual-size": {8 * MIB}' in qemu_img("info", "-f", "qcow2", "--output=json", volume.path)


async def test_files_can_be_read_by_the_agent_only(real: RealRig) -> None:
    pool = await with_image(real)
    await pool.create(VOLUME)
    folder = real.paths.pool
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_dir()} == {"0o700"}
    for path in (folder / "volumes/volume-1.qcow2", folder / "images/image-1/disk"):
        assert path.stat().st_mode & 0o077 == 0


async def test_a_new_volume_holds_nothing_of_a_deleted_one(real: RealRig) -> None:
    pool = real.pool()
    await pool.open()
    first = await pool.create(VolumeSpec(id="volume-1", size_bytes=64 * MIB))
    guest_io(first.path, "write -P 0xa5 0 64M")
    await pool.delete("volume-1")
    second = await pool.create(VolumeSpec(id="volume-1", size_bytes=64 * MIB))
    assert "failed" not in guest_io(second.path, "read -P 0 0 64M")


async def test_an_id_that_could_be_a_path_never_reaches_the_disk(real: RealRig) -> None:
    pool = real.pool()
    await pool.open()
    for name in ("../volume", "a/b", "", ".", "a.tmp", "a\n", "-f", "a" * 101):
        with pytest.raises(Bug):
            await pool.create(VolumeSpec(id=name, size_bytes=MIB))
        with pytest.raises(Bug):
            await pool.delete(name)
    assert real.names() == set()


async def test_a_host_without_qemu_img_says_what_to_install(real: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(real.paths.state))
    with pytest.raises(MissingTool, match="qemu-utils"):
        await real.pool().open()


async def test_a_header_written_by_the_guest_changes_nothing(real: RealRig, tmp_path: Path) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    secret, evil = tmp_path / "secret", tmp_path / "evil.qcow2"
    secret.write_bytes(b"s" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", str(secret), "-F", "raw", str(evil), "9G")
    guest_io(volume.path, f"write -s {evil} 0 65536")
    before = (await pool.volumes())["volume-1"]
    assert (before.format, before.size_bytes, before.image) == ("qcow2", 4 * MIB, "image-1")
    await pool.resize("volume-1", 8 * MIB)
    assert (await pool.volumes())["volume-1"].size_bytes == 8 * MIB
    assert "failed" not in guest_io(volume.path, f"read -P 7 65536 {MIB - 65536}")


async def test_resizing_opens_only_the_volume_even_when_its_header_names_a_secret(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    secret, log = tmp_path / "secret", tmp_path / "opened"
    secret.write_bytes(b"s" * MIB)
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", str(secret), "-F", "raw", volume.path)
    trace_qemu_img(tmp_path, log, monkeypatch)
    await pool.resize("volume-1", 8 * MIB)
    opened = log.read_text()
    assert volume.path in opened
    assert str(secret) not in opened
    assert "image-1" not in opened


def trace_qemu_img(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every qemu-img from now on write what it opens to ``log``; skip where tracing is impossible."""
    probe = subprocess.run(["sh", "-c", "strace -o /dev/null true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"strace does not work here: {probe.stderr.strip()}")
    real_tool = subprocess.run(["sh", "-c", "command -v qemu-img"], capture_output=True, text=True, check=True)
    stand_in(tmp_path, f'exec strace -f -e trace=%file -o {log} {real_tool.stdout.strip()} "$@"', monkeypatch)


def stand_in(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a qemu-img of our own first in PATH."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


HALF = 'for word; do case "$word" in *.tmp) echo half > "$word";; esac; done'


async def test_a_killed_qemu_img_leaves_nothing(real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await with_image(real)
    with monkeypatch.context() as patch:
        stand_in(tmp_path, f"{HALF}; kill -9 $$", patch)
        with pytest.raises(DriverError) as failed:
            await pool.create(VOLUME)
        assert failed.value.reason == "DiskToolFailed"
        assert "signal 9" in failed.value.message
    assert real.names() == IMAGE_FILES
    await pool.create(VOLUME)
    assert real.names() == IMAGE_FILES | VOLUME_FILES


async def test_a_message_of_qemu_img_shows_no_path(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await with_image(real)
    stand_in(
        tmp_path,
        'echo "qemu-img: $9: cannot" >&2; for word; do echo "qemu-img: $word: no" >&2; done; exit 1',
        monkeypatch,
    )
    with pytest.raises(DriverError) as failed:
        await pool.create(VOLUME)
    assert str(real.paths.state) not in failed.value.message


async def test_a_cancelled_creation_ends_qemu_img_and_leaves_nothing(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await with_image(real)
    pid_file = tmp_path / "pid"
    stand_in(tmp_path, f"{HALF}; echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000", monkeypatch)
    creation = asyncio.create_task(pool.create(VOLUME))
    await until(pid_file.exists)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    assert is_gone(int(pid_file.read_text()))
    assert real.names() == IMAGE_FILES


async def test_qemu_img_dies_with_the_agent_and_the_next_agent_clears_up(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await with_image(real)
    pid_file = tmp_path / "pid"
    with monkeypatch.context() as patch:
        stand_in(tmp_path, f"{HALF}; echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 1000", patch)
        script = (
            "import asyncio; from pathlib import Path\n"
            "from pileus.drivers.host.disk.base import VolumeSpec\n"
            "from pileus.drivers.host.disk.real import QemuImgPool\n"
            "from pileus.drivers.host.paths import HostPaths\n"
            f"pool = QemuImgPool(HostPaths.under(Path({str(real.paths.state)!r})))\n"
            "asyncio.run(pool.create(VolumeSpec(id='volume-1', size_bytes=2**22, image='image-1')))\n"
        )
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        try:
            await until(pid_file.exists)
        finally:
            agent.kill()
            await agent.wait()
    await until(lambda: is_gone(int(pid_file.read_text())))
    await pool.open()
    assert real.names() == IMAGE_FILES


async def test_a_disk_that_fills_during_a_download_leaves_no_image(full_real: RealRig) -> None:
    pool = full_real.pool()
    await pool.open()
    disk = bytes(MIB // 2)
    part = ImagePart(size_bytes=len(disk), sha256=hashlib.sha256(disk).hexdigest())
    spec = ImageSpec(id="image-1", format="raw", virtual_size_bytes=len(disk), parts={"disk": part})
    other = full_real.paths.state / "other"

    async def fetch_while_another_writes(name: PartName) -> AsyncIterator[bytes]:
        yield disk[:65536]
        other.write_bytes(bytes(MIB * 3 // 4))
        yield disk[65536:]

    with pytest.raises(DiskFull, match="image image-1"):
        await pool.put_image(spec, fetch_while_another_writes)
    assert full_real.names() == set()
    other.unlink()
    await pool.put_image(spec, lambda name: chunks_of(disk))
    assert set(await pool.images()) == {"image-1"}


async def chunks_of(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_a_volume_file_without_a_record_is_somebodys_disk_and_stays(real: RealRig) -> None:
    pool = await with_image(real)
    await pool.create(VOLUME)
    (real.paths.pool / "volumes/volume-1.json").unlink()
    await pool.open()
    assert await pool.volumes() == {}
    with pytest.raises(DriverError) as refused:
        await pool.create(VOLUME)
    assert refused.value.reason == "RecordMissing"
    assert real.names() == IMAGE_FILES | {"volumes/volume-1.qcow2"}


Action = Callable[[QemuImgPool], Awaitable[object]]

ACTIONS: dict[str, tuple[Action, Action, set[str], set[str]]] = {
    "create": (
        lambda pool: pool.put_image(IMAGE, fetch),
        lambda pool: pool.create(VOLUME),
        IMAGE_FILES,
        IMAGE_FILES | VOLUME_FILES,
    ),
    "delete": (
        lambda pool: pool.create(VolumeSpec(id="volume-1", size_bytes=MIB)),
        lambda pool: pool.delete("volume-1"),
        VOLUME_FILES,
        set(),
    ),
    "resize": (
        lambda pool: pool.create(VolumeSpec(id="volume-1", size_bytes=MIB)),
        lambda pool: pool.resize("volume-1", 2 * MIB),
        VOLUME_FILES,
        VOLUME_FILES,
    ),
    "put_image": (
        lambda pool: pool.volumes(),
        lambda pool: pool.put_image(IMAGE, fetch),
        set(),
        IMAGE_FILES,
    ),
    "delete_image": (
        lambda pool: pool.put_image(IMAGE, fetch),
        lambda pool: pool.delete_image("image-1"),
        IMAGE_FILES,
        set(),
    ),
}
"""What is done first, what is then killed at each of its steps, and the files before and after it."""


@pytest.mark.parametrize("name", ACTIONS)
def test_an_agent_killed_at_any_step_leaves_all_or_nothing(real: RealRig, tmp_path: Path, name: str) -> None:
    prepare, action, before, after = ACTIONS[name]
    seen: list[set[str]] = []
    for step in range(1, 200):
        paths = HostPaths.under(tmp_path / f"{name}-{step}")
        asyncio.run(prepared(paths, prepare))
        ended_by = killed_at(step, paths, action)
        pool = QemuImgPool(paths)
        asyncio.run(pool.open())
        left = {str(path.relative_to(paths.pool)) for path in paths.pool.rglob("*") if path.is_file()}
        assert left in (before, after), f"killed before step {step}"
        asyncio.run(again(pool, action))
        done = {str(path.relative_to(paths.pool)) for path in paths.pool.rglob("*") if path.is_file()}
        assert done == after, f"killed before step {step}"
        seen.append(left)
        if ended_by == 0:
            break
    assert seen[0] == before
    assert seen[-1] == after
    assert len(seen) > 2


async def prepared(paths: HostPaths, prepare: Action) -> None:
    pool = QemuImgPool(paths)
    await pool.open()
    await prepare(pool)


async def again(pool: QemuImgPool, action: Action) -> None:
    await action(pool)


def killed_at(step: int, paths: HostPaths, action: Action) -> int:
    """Run the action in a process killed just before its ``step``-th change of the pool; return how it ended."""
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal steps
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "subprocess.Popen"):
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            asyncio.run(again(QemuImgPool(paths), action))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_a_packed_volume_has_what_the_guest_wrote_and_what_its_image_had(real: RealRig, tmp_path: Path) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    guest_io(volume.path, f"write -P 9 {2 * MIB} {MIB}")
    packed = tmp_path / "packed.vmdk"
    packed.write_bytes(b"".join([part async for part in pool.packed("volume-1")]))
    for pattern, place in ((7, 0), (0, MIB), (9, 2 * MIB), (0, 3 * MIB)):
        assert "failed" not in guest_io(str(packed), f"read -P {pattern} {place} {MIB}", format="vmdk")
    assert real.names() == IMAGE_FILES | VOLUME_FILES


async def test_packing_that_nobody_reads_to_its_end_leaves_nothing(real: RealRig) -> None:
    pool = await with_image(real)
    await pool.create(VOLUME)
    parts = pool.packed("volume-1")
    assert (await anext(parts)).startswith(b"KDMV")
    await parts.aclose()
    assert real.names() == IMAGE_FILES | VOLUME_FILES


async def test_a_volume_that_a_machine_writes_to_is_not_packed(real: RealRig) -> None:
    pool = await with_image(real)
    volume = await pool.create(VOLUME)
    pipe = asyncio.subprocess.PIPE
    machine = await asyncio.create_subprocess_exec("qemu-io", "-f", "qcow2", volume.path, stdin=pipe, stdout=pipe)
    assert machine.stdin is not None
    assert machine.stdout is not None
    machine.stdin.write(b"write 0 512\n")
    await machine.stdout.readline()  # it has the file open
    with pytest.raises(DriverError) as refused:
        await anext(pool.packed("volume-1"))
    await machine.communicate(b"quit\n")
    assert refused.value.reason == "VolumeInUse"
    assert "/" not in refused.value.message
