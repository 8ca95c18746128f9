"""One bench per driver: the same questions to machines in memory and to real QEMU processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import DiskAttachment, Hypervisor, MachineFact, MachineSpec, NicAttachment, Throttle
from pileus.drivers.host.qemu.fake import FakeHost, FakeHypervisor, FakeLatency
from pileus.drivers.host.qemu.procfs import read_stat
from pileus.drivers.host.qemu.real import QemuHypervisor

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_guest import live_boot
else:
    from qemu_guest import live_boot

SEEN_S = 1.0
"""An end of a process must be seen within this time."""


class Bench(Protocol):
    """What a test may do to the world besides calling the driver."""

    real: bool

    async def agent(self) -> Hypervisor:
        """Return an open driver, as of a new agent process."""

    def spec(self, machine: str, *, disks: int = 1, nics: int = 0, live: bool = False) -> MachineSpec:
        """Return a specification; ``live``: with a guest that heeds the power button."""

    def disk(self, disk: str, *, missing: bool = False) -> DiskAttachment:
        """Return a disk, there or ``missing``."""

    def nic(self, nic: str) -> NicAttachment:
        """Return a NIC on a tap of its own."""

    async def guest_ready(self, machine: str) -> None:
        """Return when the live guest listens to the power button."""

    async def kill(self, fact: MachineFact) -> None:
        """End the process by a signal that the driver did not send."""

    def hang(self, fact: MachineFact, signal_number: int = signal.SIGSTOP) -> None:
        """Stop the process with SIGSTOP, or let it go on with SIGCONT."""

    def remains(self, machine: str) -> list[str]:
        """Return what is on the host of this machine: folders, processes."""


class FakeBench:
    """Machines in memory."""

    real = False

    def __init__(self) -> None:
        latency = FakeLatency(start_s=0.01, shutdown_s=0.02, power_off_s=0.01, unplug_s=0.01, unplug_timeout_s=0.02)
        self.host = FakeHost(seed=1, latency=latency)
        self.agents: list[FakeHypervisor] = []

    async def agent(self) -> Hypervisor:
        agent = FakeHypervisor(self.host)
        await agent.open()
        return agent

    def spec(self, machine: str, *, disks: int = 1, nics: int = 0, live: bool = False) -> MachineSpec:
        return MachineSpec(
            id=machine, name=machine, vcpus=1, memory_mib=64,
            disks=tuple(self.disk(f"{machine}-disk{one}") for one in range(disks)),
            nics=tuple(self.nic(f"{machine}-nic{one}") for one in range(nics)),
        )  # fmt: skip

    def disk(self, disk: str, *, missing: bool = False) -> DiskAttachment:
        if missing:
            self.host.missing_files.add(f"/{disk}")
        return DiskAttachment(id=disk, path=f"/{disk}", format="qcow2")

    def nic(self, nic: str) -> NicAttachment:
        return NicAttachment(id=nic, mac="52:54:00:00:00:01", tap=nic)

    async def guest_ready(self, machine: str) -> None:
        pass

    async def kill(self, fact: MachineFact) -> None:
        self.host.crash(fact.id)

    def hang(self, fact: MachineFact, signal_number: int = signal.SIGSTOP) -> None:
        (self.host.hang if signal_number == signal.SIGSTOP else self.host.unhang)(fact.id)

    def remains(self, machine: str) -> list[str]:
        return [machine] if machine in self.host.machines else []


class RealBench:
    """QEMU processes under TCG in a folder and a network namespace of their own."""

    real = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = HostPaths(state=folder / "state", run=folder / "run")
        self.namespace = f"pileus-q-{uuid.uuid4().hex[:8]}"
        self._taps = 0
        self._asked = 0
        self.agents: list[QemuHypervisor] = []

    def new(self, **options: object) -> QemuHypervisor:
        agent = QemuHypervisor(self.paths, self.open_tap, "tcg", **options)  # type: ignore[arg-type]
        self.agents.append(agent)
        return agent

    async def agent(self) -> Hypervisor:
        for earlier in self.agents:
            await earlier.close()
        agent = self.new(unplug_timeout_s=1.0)
        await agent.open()
        return agent

    def spec(self, machine: str, *, disks: int = 1, nics: int = 0, live: bool = False) -> MachineSpec:
        return MachineSpec(
            id=machine, name=machine, vcpus=1, memory_mib=96 if live else 32,
            disks=tuple(self.disk(f"{machine}-disk{one}") for one in range(disks)),
            nics=tuple(self.nic(f"{machine}-nic{one}") for one in range(nics)),
            boot=live_boot() if live else None,
        )  # fmt: skip

    def disk(self, disk: str, *, missing: bool = False) -> DiskAttachment:
        path = self.folder / f"{disk}.qcow2"
        if not missing and not path.exists():
            create = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"]
            subprocess.run(create, check=True, timeout=60)
        return DiskAttachment(id=disk, path=str(path), format="qcow2", throttle=Throttle(iops=500))

    def nic(self, nic: str) -> NicAttachment:
        self._taps += 1
        return NicAttachment(id=nic, mac=f"52:54:00:00:00:{self._taps:02x}", tap=f"tap{self._taps}")

    async def guest_ready(self, machine: str) -> None:
        await self.printed(machine, b"GUEST-READY")

    async def printed(self, machine: str, text: bytes, timeout_s: float = 120.0) -> bytes:
        log = self.paths.console_log(machine)
        await until(lambda: log.exists() and text in log.read_bytes(), timeout_s)
        return log.read_bytes()

    async def kill(self, fact: MachineFact) -> None:
        assert fact.pid is not None
        os.kill(fact.pid, signal.SIGKILL)

    def hang(self, fact: MachineFact, signal_number: int = signal.SIGSTOP) -> None:
        assert fact.pid is not None
        os.kill(fact.pid, signal_number)

    def remains(self, machine: str) -> list[str]:
        folders = [self.paths.machine(machine), self.paths.machine_run(machine)]
        return [str(one) for one in folders if one.exists()] + [str(pid) for pid in self.processes(machine)]

    def processes(self, machine: str) -> list[int]:
        """Return the pids of QEMU processes of the machine, whoever started them."""
        return [pid for pid in qemu_pids(f"guest={machine}") if self._is_ours(pid)]

    async def type(self, machine: str, command: str) -> str:
        """Let the live guest run a command line and return the mark that it printed just before."""
        self._asked += 1
        mark = f"=={self._asked}="
        _, writer = await asyncio.open_unix_connection(str(self.paths.console_socket(machine)))
        writer.write(f"echo; echo {mark}; {command}\n".encode())
        await writer.drain()
        # QEMU drops what it has not passed on when the client goes: wait until the guest has the line.
        await self.printed(machine, mark.encode())
        writer.close()
        await writer.wait_closed()
        return mark

    async def ask(self, machine: str, command: str) -> str:
        """Return what a command prints in the live guest; it must end by itself."""
        mark = await self.type(machine, f"{command}; echo; echo ==end")
        log = self.paths.console_log(machine)
        await until(lambda: b"==end" in log.read_bytes().rpartition(mark.encode())[2], 120)
        text = log.read_bytes().rpartition(mark.encode())[2].decode(errors="replace").replace("\r", "")
        return text.partition("==end")[0].strip()

    async def packets(self, nic: NicAttachment) -> int:
        """Return how many packets the guest sent into its tap."""
        return (await namespace.counters(self.namespace))[nic.tap].rx_packets

    async def open_tap(self, tap: str) -> int:
        await namespace.ensure(self.namespace)
        await namespace.make_tap(self.namespace, tap)
        return await namespace.open_tap(self.namespace, tap)

    def _is_ours(self, pid: int) -> bool:
        fds = Path(f"/proc/{pid}/fd")
        try:
            return any(str(self.folder) in os.readlink(fd) for fd in fds.iterdir())
        except (FileNotFoundError, ProcessLookupError):
            return False

    async def tear_down(self) -> None:
        for agent in self.agents:
            await agent.close()
        left = self.new()
        await left.open()
        for machine in await left.observe():
            await left.remove(machine)
        await left.close()
        await namespace.remove(self.namespace)
        assert [pid for pid in qemu_pids("guest=") if self._is_ours(pid)] == []


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Return when ``condition`` holds; it is looked at every few milliseconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is the host's state, which sends no event
            await asyncio.sleep(0.005)


def qemu_pids(argument: str) -> list[int]:
    """Return the processes that have ``argument`` (or one that starts so, when it ends with ``=``)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or read_stat(int(entry.name)) is None:
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(one == argument or (argument.endswith("=") and one.startswith(argument)) for one in arguments):
            found.append(int(entry.name))
    return found


def need_real() -> None:
    """Skip, visibly, where real machines cannot run."""
    if os.geteuid() != 0:
        pytest.skip("real machines need root")
    for tool in ("qemu-system-x86_64", "qemu-img", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"real machines need {tool}")
