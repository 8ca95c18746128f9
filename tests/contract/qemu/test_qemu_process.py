"""What only real QEMU can show: one process whatever happens to agents, its jail, its disks, how its guest ended."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu.base import BackingFile, DiskAttachment, Hypervisor, MachineFact, MachineSpec, Throttle
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.procfs import host_boot
from pileus.drivers.host.qemu.real import WATCHED_EVERY_S

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import SEEN_S, RealBench, until
else:
    from qemu_bench import SEEN_S, until

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).with_name("qemu_agent.py")
KILLS = int(os.environ.get("PILEUS_TEST_KILLS", "12"))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of agents; the shared suite runs on the standard one."""
    return "asyncio", {"use_uvloop": True}


async def fact(agent: Hypervisor, machine: str = "m1") -> MachineFact:
    return (await agent.observe())[machine]


async def in_state(agent: Hypervisor, state: str, machine: str = "m1") -> MachineFact:
    async with asyncio.timeout(60):
        while True:
            found = await fact(agent, machine)
            if found.state == state:
                return found
            await asyncio.sleep(0.01)


def opened(found: MachineFact) -> list[str]:
    """Return what the process has open."""
    return [os.readlink(fd) for fd in Path(f"/proc/{found.pid}/fd").iterdir()]


def status_of(found: MachineFact) -> dict[str, str]:
    lines = Path(f"/proc/{found.pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


async def foreign_agent(bench: RealBench, cut: str, *specs: MachineSpec) -> asyncio.subprocess.Process:
    texts = [msgspec.json.encode(spec).decode() for spec in specs]
    return await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), str(bench.paths.state), str(bench.paths.run), cut, *texts,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def up(agent: asyncio.subprocess.Process) -> None:
    assert agent.stdout is not None
    async with asyncio.timeout(60):
        assert await agent.stdout.readline() == b"READY\n"


async def kill(agent: asyncio.subprocess.Process) -> None:
    agent.kill()
    await agent.communicate()


def file(path: Path, content: bytes, size: int = 1 << 20) -> Path:
    path.write_bytes(content)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_an_agent_that_dies_at_the_spawn_leaves_at_most_one_process_and_the_next_one_finds_it(
    real: RealBench, cut: str
) -> None:
    spec = real.spec("m1")
    dead = await foreign_agent(real, cut, spec)
    await dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    agent = await real.agent()
    await agent.start(spec)
    found = await fact(agent)
    assert found.state == "running"
    assert real.processes("m1") == [found.pid]
    assert found.boots == (2 if cut == "before" else 1)


async def test_machines_do_not_notice_that_their_agent_is_killed(real: RealBench) -> None:
    specs = [real.spec(f"m{number}") for number in range(5)]
    first = await foreign_agent(real, "none", *specs)
    await up(first)
    before = {spec.id: real.processes(spec.id) for spec in specs}
    await kill(first)
    started = time.monotonic()
    agent = await real.agent()
    found = await agent.observe()
    took_s = time.monotonic() - started
    print(f"re-adoption of {len(specs)} machines after a kill took {took_s:.3f} s")
    assert took_s < SEEN_S
    assert {machine: [one.pid] for machine, one in found.items()} == before
    assert {one.state for one in found.values()} == {"running"}
    assert {one.boots for one in found.values()} == {1}


async def test_agents_killed_at_random_moments_never_make_a_second_process(real: RealBench) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    specs = [real.spec(f"m{number}") for number in range(3)]
    for _ in range(KILLS):
        agent = await foreign_agent(real, "none", *specs)
        await asyncio.sleep(chance.uniform(0.15, 0.6))  # the random moment is what is tested
        await kill(agent)
        for spec in specs:
            assert len(real.processes(spec.id)) <= 1
    last = await real.agent()
    await asyncio.gather(*(last.start(spec) for spec in specs))
    for machine, found in (await last.observe()).items():
        assert found.state == "running"
        assert real.processes(machine) == [found.pid]


@pytest.mark.parametrize("ended", ["agent", "host"])
@pytest.mark.parametrize("seen_s", [0.01, -60.0, 3600.0], ids=["while-it-ran", "before-its-start", "clock-set-back"])
async def test_a_machine_ended_when_its_killed_agent_had_it_in_sight_last(
    real: RealBench, ended: str, seen_s: float
) -> None:
    first = await foreign_agent(real, "none", real.spec("m1"))
    await up(first)
    assert abs(time.time() - real.paths.watched.stat().st_mtime) < WATCHED_EVERY_S + SEEN_S
    await kill(first)
    for pid in real.processes("m1"):
        os.kill(pid, signal.SIGKILL)
    folder = MachineFolder(real.paths, "m1")
    await until(lambda: not folder.is_locked())  # a process that is just going is still one to the agent
    record = real.paths.machine("m1") / "machine.json"
    began = folder.record.started_at or 0.0
    if ended == "host":
        record.write_bytes(record.read_bytes().replace(host_boot().encode(), b"another boot"))
    os.utime(real.paths.watched, (began + seen_s, began + seen_s))
    found = await fact(await real.agent())
    assert found.exit is not None
    assert found.exit.message == ("the host was restarted" if ended == "host" else "")
    wanted = {0.01: began + 0.01, -60.0: began, 3600.0: time.time()}[seen_s]
    assert found.exit.at == pytest.approx(wanted, abs=SEEN_S if seen_s > 1 else 1e-3)


async def test_two_agents_at_once_start_one_process(real: RealBench) -> None:
    spec = real.spec("m1")
    agents = [await foreign_agent(real, "none", spec) for _ in range(2)]
    await until(lambda: real.processes("m1"))
    first = real.processes("m1")
    tasks = [asyncio.ensure_future(up(agent)) for agent in agents]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [task.exception() for task in done] == [None] * len(done)
    assert real.processes("m1") == first
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for agent in agents:
        await kill(agent)
    assert real.processes("m1") == first


async def test_a_process_owns_nothing_and_reaches_nothing(real: RealBench) -> None:
    agent = await real.agent()
    secret = file(real.folder / "secret", b"secret")
    stray = os.open(secret, os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        await asyncio.gather(agent.start(real.spec("m1", nics=1)), agent.start(real.spec("m2")))
    finally:
        os.close(stray)
    uids = set()
    for machine in ("m1", "m2"):
        found = await fact(agent, machine)
        status = {key: text.strip() for key, text in status_of(found).items()}
        assert {status[key] for key in status if key.startswith("Cap")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
        uids.add(status["Uid"])
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        links = run("nsenter", "-t", str(found.pid), "-n", "ip", "-br", "link")
        assert [line.split()[0] for line in links.splitlines()] == ["lo"]
        ours = {Path(one).name for one in opened(found) if one.startswith(str(real.folder))}
        assert ours == {"lock", status["Uid"].split()[0], f"{machine}-disk0.qcow2", "console.log", "qemu.log"}
    assert len(uids) == 2


@pytest.mark.long
async def test_a_guest_that_reboots_keeps_its_process(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1", live=True))
    await real.guest_ready("m1")
    before = await fact(agent)
    await real.type("m1", "reboot -f")
    log = real.paths.console_log("m1")
    await until(lambda: log.read_bytes().count(b"GUEST-READY") == 2, 120)
    assert await fact(agent) == before


async def test_a_guest_that_panics_is_stopped_with_that_reason(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1", live=True))
    await real.guest_ready("m1")
    await real.type("m1", "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    found = await in_state(agent, "stopped")
    assert found.exit is not None
    assert found.exit.reason == "guest-panic"


async def test_why_a_guest_ended_is_known_to_an_agent_that_was_not_there(real: RealBench) -> None:
    first = await real.agent()
    await first.start(real.spec("m1", live=True))
    await real.guest_ready("m1")
    await first.close()
    await real.type("m1", "poweroff -f")
    agent = await real.agent()
    found = await in_state(agent, "stopped")
    assert found.exit is not None
    assert found.exit.reason == "guest-shutdown"
    assert real.processes("m1") == []


async def test_a_polite_signal_from_outside_counts_as_killed(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1"))
    os.kill((await fact(agent)).pid or 0, signal.SIGTERM)
    found = await in_state(agent, "stopped")
    assert found.exit is not None
    assert found.exit.reason == "killed"


async def test_a_stopped_process_counts_as_running_and_can_be_ended(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1"))
    pid = (await fact(agent)).pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        found = await fact(agent)
        assert (found.state, found.pid) == ("running", pid)
        await agent.power_off("m1")
    finally:
        if pid in real.processes("m1"):
            os.kill(pid, signal.SIGCONT)
    ended = await fact(agent)
    assert ended.exit is not None
    assert (ended.state, ended.exit.reason) == ("stopped", "powered-off")


async def test_a_start_that_fails_repeats_what_qemu_said(real: RealBench) -> None:
    agent = await real.agent()
    junk = file(real.folder / "junk", b"no image")
    disk = DiskAttachment(id="junk", path=str(junk), format="qcow2")
    with pytest.raises(DriverError, match="not in qcow2 format") as refused:
        await agent.start(replace(real.spec("m1"), disks=(disk,)))
    assert refused.value.reason == "StartFailed"
    assert str(real.folder) not in refused.value.message
    assert real.processes("m1") == []


async def test_two_machines_cannot_write_one_disk(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1"))
    with pytest.raises(DriverError, match="lock") as refused:
        await agent.start(replace(real.spec("m2"), disks=real.spec("m1").disks))
    assert refused.value.reason == "StartFailed"


async def test_the_backing_file_is_the_one_we_name_not_the_one_in_the_header(real: RealBench) -> None:
    agent = await real.agent()
    secret = file(real.folder / "secret", b"SECRET")
    image = file(real.folder / "image", b"PUBLIC")
    overlay, lone = real.folder / "overlay.qcow2", real.folder / "lone.qcow2"
    for path in (overlay, lone):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(path))
    backing = (BackingFile(path=str(image), format="raw"),)
    spec = replace(real.spec("m1", live=True), disks=(
        DiskAttachment(id="overlay", path=str(overlay), format="qcow2", backing=backing),
        DiskAttachment(id="lone", path=str(lone), format="qcow2"),
    ))  # fmt: skip
    await agent.start(spec)
    await real.guest_ready("m1")
    assert await real.ask("m1", "head -c 6 /dev/vda") == "PUBLIC"
    assert await real.ask("m1", "head -c 6 /dev/vdb | od -An -tx1") == "00 00 00 00 00 00"
    assert str(secret) not in opened(await fact(agent))


async def test_data_disks_keep_their_order_and_the_seed_comes_last(real: RealBench) -> None:
    agent = await real.agent()
    seed = file(real.folder / "seed.iso", b"SEED")
    await agent.start(replace(real.spec("m1", disks=3, live=True), seed=str(seed)))
    await real.guest_ready("m1")
    serials = await real.ask("m1", "cd /sys/block; for b in vd*; do echo $b $(cat $b/serial) $(cat $b/ro); done")
    assert serials.splitlines() == ["vda m1-disk0 0", "vdb m1-disk1 0", "vdc m1-disk2 0", "vdd seed 1"]
    await agent.attach_disk("m1", real.disk("a-disk-with-a-very-long-identifier"))
    await until_guest(real, "ls /sys/block", "vde")
    assert await real.ask("m1", "cat /sys/block/vde/serial") == "very-long-identifier"


async def until_guest(bench: RealBench, command: str, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in await bench.ask("m1", command):
            continue


@pytest.mark.long
async def test_frames_of_the_guest_reach_its_tap(real: RealBench) -> None:
    agent = await real.agent()
    spec = real.spec("m1", nics=1, live=True)
    await agent.start(spec)
    await real.guest_ready("m1")
    before = await real.packets(spec.nics[0])
    await real.ask("m1", "ip addr add 10.9.9.1/24 dev eth0; ip link set eth0 up; ping -c 1 -W 1 10.9.9.2 >/dev/null")
    assert await real.packets(spec.nics[0]) > before
    assert await real.ask("m1", "cat /sys/class/net/eth0/address") == spec.nics[0].mac
    await agent.power_off("m1")
    await agent.start(spec)
    assert (await fact(agent)).nics == ("m1-nic0",)


async def test_a_limit_slows_a_running_disk_down_and_lifting_it_speeds_it_up(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1", live=True))
    await real.guest_ready("m1")
    read = "dd if=/dev/vda of=/dev/null bs=4096 count=60 iflag=direct 2>/dev/null"
    await agent.set_throttle("m1", "m1-disk0", Throttle())
    free_s = await timed(real, read)
    await agent.set_throttle("m1", "m1-disk0", Throttle(iops=20))
    limited_s = await timed(real, read)
    print(f"60 reads: {free_s:.2f} s free, {limited_s:.2f} s at 20 per second")
    assert limited_s > 1.5 > free_s
    assert (await agent.counters())["m1"].disk_read_ops >= 120


async def timed(bench: RealBench, command: str) -> float:
    started = time.monotonic()
    await bench.ask("m1", command)
    return time.monotonic() - started


async def test_a_detached_disk_is_closed_and_can_go_to_another_machine(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1", live=True))
    await agent.start(real.spec("m2"))
    await real.guest_ready("m1")
    disk = real.disk("extra")
    await agent.attach_disk("m1", disk)
    await until_guest(real, "ls /sys/block", "vdb")
    async with asyncio.timeout(30):
        while "extra" in (await fact(agent)).disks:
            try:
                await agent.detach_disk("m1", "extra")
            except QmpRefused:
                continue
    assert disk.path not in opened(await fact(agent))
    await agent.attach_disk("m2", disk)
    assert (await fact(agent, "m2")).disks == ("m2-disk0", "extra")


async def test_a_disk_that_the_guest_does_not_let_go_of_stays_until_the_machine_is_reset(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1"))  # no operating system, so nobody hears the request
    await agent.attach_disk("m1", real.disk("extra"))
    with pytest.raises(QmpRefused) as refused:
        await agent.detach_disk("m1", "extra")
    assert refused.value.qemu_class == "GuestBusy"
    assert (await fact(agent)).disks == ("m1-disk0", "extra")
    await agent.reset("m1")
    async with asyncio.timeout(30):
        while (await fact(agent)).disks != ("m1-disk0",):
            await agent.detach_disk("m1", "extra")
    assert real.disk("extra").path not in opened(await fact(agent))
