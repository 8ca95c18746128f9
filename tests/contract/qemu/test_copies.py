"""Copies of the disks of live machines: what the guest had at one moment, whatever it and the agents do meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import DiskAttachment, Throttle

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import Bench, RealBench, until
else:
    from qemu_bench import until

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).with_name("qemu_agent.py")
MIB = 1 << 20
SIZE = 16 * MIB

WRITER = (
    "(i=0; while [ ! -e /stop ]; do i=$((i+1)); printf %08d $i | dd of=/dev/vda bs=512 seek=0 conv=notrunc 2>/dev/null; "
    "printf %08d $i | dd of=/dev/vda bs=512 seek=32000 conv=notrunc,fsync 2>/dev/null; [ -e /once ] || touch /once; done) &"
)
"""Writes a number at the beginning of the disk and then, much later in it, the same one, again and again."""


def target(folder: Path, name: str = "copy", size: int = SIZE) -> str:
    path = str(folder / f"{name}.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True, timeout=60)
    return path


def content(path: str) -> bytes:
    """Return the whole disk as a guest would read it; the file is not locked by any machine."""
    raw = f"{path}.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True, timeout=60)
    return Path(raw).read_bytes()


def filled(disk: DiskAttachment, byte: int) -> None:
    """Let the whole disk, which nobody has open, hold this byte."""
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} 0 {SIZE}", disk.path]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


async def test_a_copy_of_what_runs_and_of_what_is_paused_says_its_moment(bench: Bench, tmp_path: Path) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", disks=2))
    for pause in (False, True):
        if pause:
            await agent.pause("m1")
        path = target(tmp_path, str(pause))
        before = time.time()
        assert before - 1 <= await agent.copy_disk("m1", "m1-disk1", path) <= time.time()
    assert (await agent.observe())["m1"].state == "paused"
    await agent.resume("m1")


async def test_what_cannot_be_copied_says_why(bench: Bench, tmp_path: Path) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    with pytest.raises(DriverError) as caught:
        await agent.copy_disk("m1", "m1-disk7", str(tmp_path / "copy.qcow2"))
    assert caught.value.reason == "NoDisk"
    await agent.power_off("m1")
    with pytest.raises(DriverError) as caught:
        await agent.copy_disk("m1", "m1-disk0", str(tmp_path / "copy.qcow2"))
    assert caught.value.reason == "NotRunning"


@pytest.mark.long
async def test_a_guest_that_writes_on_is_copied_as_it_was_at_one_moment(real: RealBench) -> None:
    agent = await real.agent()
    spec = real.spec("m1", live=True)
    filled(spec.disks[0], 0x5A)
    await agent.start(spec)
    await real.guest_ready("m1")
    await real.ask("m1", "dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null; sync; echo begun")
    await real.type("m1", WRITER)
    await real.ask("m1", "until [ -e /once ]; do sleep 1; done; echo written")
    path = target(real.folder)
    began = time.monotonic()
    await agent.copy_disk("m1", "m1-disk0", path, SIZE // 4)  # so that the guest writes before, in and behind it
    assert time.monotonic() - began > 1.0
    kept = content(path)
    await real.ask("m1", "touch /stop; wait; sync; echo stopped")
    await agent.power_off("m1")
    first, second = (int(kept[at : at + 8].strip(b"\0Z") or b"0") for at in (0, 32000 * 512))
    last = int(content(spec.disks[0].path)[32000 * 512 :][:8])
    print(f"measured: the copy shows round {first}, the guest went on to {last}")
    # The later place is written after the earlier one: a copy that took them at two moments could have it ahead.
    assert first - 1 <= second <= first
    assert last > first
    assert set(kept[64 * 512 : 31000 * 512]) == {0x5A}
    assert re.fullmatch(rb"[0-9]{8}", kept[:8])


async def test_an_agent_that_is_killed_in_the_middle_leaves_no_job_and_no_open_file(real: RealBench) -> None:
    spec = real.spec("m1")
    filled(spec.disks[0], 0x11)
    path = target(real.folder)
    first = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), str(real.paths.state), str(real.paths.run), "copy", path,
        msgspec.json.encode(spec).decode(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert first.stdout is not None
    async with asyncio.timeout(60):
        assert await first.stdout.readline() == b"COPYING\n"
    first.send_signal(signal.SIGKILL)
    await first.communicate()
    (pid,) = real.processes("m1")
    assert path in opened(pid)
    agent = await real.agent()
    os.unlink(path)
    await until(lambda: not any(path in name for name in opened(pid)), 30.0)
    again = target(real.folder, "again")
    await agent.copy_disk("m1", "m1-disk0", again)
    assert set(content(again)) == {0x11}
    assert again not in opened(pid)
    await agent.set_throttle("m1", "m1-disk0", Throttle())
    assert (await agent.observe())["m1"].pid == pid


async def test_a_machine_that_ends_in_the_middle_fails_its_copy(real: RealBench) -> None:
    agent = await real.agent()
    spec = real.spec("m1")
    filled(spec.disks[0], 0x11)
    await agent.start(spec)
    copying = asyncio.ensure_future(agent.copy_disk("m1", "m1-disk0", target(real.folder)))
    await kill(real, "m1")
    with pytest.raises(DriverError):
        await copying


async def test_a_target_of_another_size_is_refused_and_the_disk_stays_as_it_was(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1"))
    with pytest.raises(DriverError):
        await agent.copy_disk("m1", "m1-disk0", target(real.folder, size=MIB))
    (pid,) = real.processes("m1")
    assert not any("copy" in name for name in opened(pid))
    await agent.copy_disk("m1", "m1-disk0", target(real.folder, "right"))


def opened(pid: int) -> list[str]:
    """Return what the process has open."""
    return [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]


async def kill(real: RealBench, machine: str) -> None:
    for pid in real.processes(machine):
        os.kill(pid, signal.SIGKILL)
