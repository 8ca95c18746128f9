"""Machines that exist only in memory, for tests and simulated hosts: thousands of them in one process.

``FakeHost`` is the world and outlives agents; ``FakeHypervisor`` is one agent's driver on it. Time passes by
``asyncio.sleep`` only, so that a loop with virtual time runs it at once. Chance comes from the host's seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu.base import (
    HUNG_S,
    Accelerator,
    DiskAttachment,
    Exit,
    ExitReason,
    MachineCounters,
    MachineFact,
    MachineSpec,
    MachineState,
    NicAttachment,
    Pulse,
    Throttle,
)
from pileus.drivers.host.qemu.command import (
    check,
    check_disk,
    check_nic,
    disk_device,
    free_slot,
    nic_device,
    plan_slots,
)

CLOCK_S = 0.001
"""Two readings of a clock that are meant to be the same may differ by so much."""


class FakeLatency(Struct, frozen=True, kw_only=True):
    """Seconds that calls take, each stretched by up to ``jitter`` of itself; as QEMU under TCG, roughly."""

    start_s: float = 0.25
    shutdown_s: float = 1.0
    power_off_s: float = 0.05
    plug_s: float = 0.02
    copy_s: float = 0.5
    unplug_s: float = 0.2
    unplug_timeout_s: float = 15.0
    ask_s: float = 0.001
    jitter: float = 0.2


class Fault(Struct, frozen=True, kw_only=True):
    """An error raised instead of a call's effect (``before``), or in spite of it (``after``: the answer is lost)."""

    error: DriverError
    when: Literal["before", "after"] = "before"


class FakeMachine:
    """A machine of the fake host; ``deaf``: its guest heeds neither the power button nor unplug requests.

    ``hung``: its process is stopped (``FakeHost.hang``), ``unanswered_at``: since when it owes an answer. ``disk``: bytes
    and operations of its disks, when a test says them; else they grow by one block in a second.
    """

    __slots__ = (
        "boots", "deaf", "disk", "exit", "hung", "pid", "slots", "spec", "started_at", "state", "unanswered_at",
    )  # fmt: skip

    def __init__(self, spec: MachineSpec) -> None:
        self.spec = spec
        self.slots: dict[str, int] = {}
        self.state: MachineState = "stopped"
        self.pid: int | None = None
        self.started_at: float | None = None
        self.boots = 0
        self.exit: Exit | None = None
        self.deaf = False
        self.hung = False
        self.unanswered_at: float | None = None
        self.disk: tuple[int, int] | None = None


class FakeHost:
    """A host with ``memory_mib`` for machines; ``clock`` gives Unix seconds. Make faults and accidents here."""

    def __init__(
        self,
        *,
        seed: int = 0,
        latency: FakeLatency | None = None,
        memory_mib: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.random = random.Random(seed)
        self.latency = latency or FakeLatency()
        self.memory_mib = memory_mib
        self.clock = clock
        self.machines: dict[str, FakeMachine] = {}
        self.missing_files: set[str] = set()
        """Paths of disks that cannot be opened."""
        self.calls = 0
        """Calls so far, over all agents."""
        self.agents: set[FakeHypervisor] = set()
        self.copies: dict[str, str] = {}
        """Disks that were copied, by the path of the copy."""
        self._faults: dict[int, Fault] = {}
        self._refused: dict[tuple[str, str], DriverError] = {}
        self._next_pid = 1000

    def fail_call(self, number: int, error: DriverError, when: Literal["before", "after"] = "before") -> None:
        """Let the ``number``-th call from now (1 is the next) fail with ``error``."""
        self._faults[self.calls + number] = Fault(error=error, when=when)

    def refuse(self, call: str, machine: str, error: DriverError | None) -> None:
        """Let every ``call`` (such as ``start``) on ``machine`` fail with ``error``, until it is set to None."""
        if error is None:
            self._refused.pop((call, machine), None)
        else:
            self._refused[call, machine] = error

    def crash(self, machine: str, reason: ExitReason = "killed", message: str = "signal 9") -> None:
        """End the machine's process as by a signal that nobody of us sent, or for another ``reason``."""
        found = self.machines.get(machine)
        if found is not None and found.state != "stopped":
            self.end(found, reason, message)

    def hang(self, machine: str) -> None:
        """Stop the machine's process, as SIGSTOP does: it is there, answers nothing, and nobody is told."""
        self.machines[machine].hung = True

    def unhang(self, machine: str) -> None:
        """Let the machine's process go on, as SIGCONT does."""
        self.machines[machine].hung, self.machines[machine].unanswered_at = False, None
        self.hint(machine)

    def reboot(self) -> None:
        """Restart the host: every machine's process is gone."""
        for machine in list(self.machines.values()):
            if machine.state != "stopped":
                self.end(machine, "killed", "the host was restarted")

    def end(self, machine: FakeMachine, reason: ExitReason, message: str = "") -> None:
        """Make the machine stopped."""
        machine.state, machine.pid, machine.started_at = "stopped", None, None
        machine.hung, machine.unanswered_at = False, None
        machine.exit = Exit(reason=reason, at=self.clock(), message=message)
        self.hint(machine.spec.id)

    def hint(self, machine: str) -> None:
        """Tell every open agent soon."""
        for agent in list(self.agents):
            agent.hint(machine)

    def new_pid(self) -> int:
        """Return a process number that was not used before."""
        self._next_pid += 1
        return self._next_pid

    def used_mib(self) -> int:
        """Return the memory of the machines that run."""
        return sum(one.spec.memory_mib for one in self.machines.values() if one.state != "stopped")

    def count(self, call: str, machine: str) -> Fault | None:
        """Count one call and return what shall go wrong with it."""
        self.calls += 1
        refused = self._refused.get((call, machine))
        return self._faults.pop(self.calls, None) or (Fault(error=refused) if refused else None)

    def stretch(self, seconds: float) -> float:
        """Return ``seconds`` with the host's jitter."""
        return seconds * (1 + self.random.random() * self.latency.jitter)


class FakeHypervisor:
    """See ``base.Hypervisor``. A second one on the same ``host`` is a new agent that finds the old one's machines."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._callbacks: list[Callable[[str], None]] = []
        self._starting: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Find the machines of the host."""
        self.host.agents.add(self)

    async def close(self) -> None:
        """Stop watching."""
        self.host.agents.discard(self)

    def accelerator(self) -> Accelerator:
        """Return TCG."""
        return Accelerator(name="tcg", reason="simulated host")

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(machine id)`` when a machine's state may have changed."""
        self._callbacks.append(callback)

    def hint(self, machine: str) -> None:
        """Call the callbacks, not from within the call that changed the machine."""
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, machine)

    async def observe(self) -> dict[str, MachineFact]:
        """Return every machine."""
        async with self._call("observe", "", self.host.latency.ask_s):
            self._ask(self.host.machines.values())
            now = self.host.clock()
            return {id_: _fact(machine, now) for id_, machine in self.host.machines.items()}

    async def pulses(self, machines: Collection[str], timeout_s: float = HUNG_S) -> dict[str, Pulse]:
        """Return the pulse of each of these machines."""
        async with self._call("pulses", "", self.host.latency.ask_s):
            found = {id_: machine for id_ in machines if (machine := self.host.machines.get(id_)) is not None}
            left_s = self._ask(found.values())
            if left_s > 0:
                await asyncio.sleep(min(left_s, timeout_s))
            now = self.host.clock()
            return {id_: _pulse(found.get(id_), now) for id_ in machines}

    async def start(self, spec: MachineSpec) -> None:
        """Start the machine; running already: nothing."""
        check(spec)
        async with (
            self._starting.setdefault(spec.id, asyncio.Lock()),
            self._call("start", spec.id, self._start_latency(spec.id)),
        ):
            machine = self.host.machines.setdefault(spec.id, FakeMachine(spec))
            if machine.state != "stopped":
                return
            slots = plan_slots(spec)
            machine.spec, machine.slots, machine.boots = spec, slots, machine.boots + 1
            self._check_start(machine)
            machine.state, machine.pid, machine.started_at = "running", self.host.new_pid(), self.host.clock()

    async def shutdown(self, machine: str) -> None:
        """Press the guest's power button."""
        async with self._call("shutdown", machine, self.host.latency.ask_s):
            found = self.host.machines.get(machine)
            if found is not None and found.hung:
                raise _unanswered(machine)
            if found is not None and found.state == "running":
                delay_s = self.host.stretch(self.host.latency.shutdown_s)
                asyncio.get_running_loop().call_later(delay_s, self._guest_shut_down, found, found.pid)

    async def power_off(self, machine: str) -> None:
        """End the process."""
        async with self._call("power_off", machine, self.host.latency.power_off_s):
            found = self.host.machines.get(machine)
            if found is not None and found.state != "stopped":
                self.host.end(found, "powered-off")

    async def reset(self, machine: str) -> None:
        """Reset a running machine."""
        async with self._call("reset", machine, self.host.latency.ask_s):
            found = self.host.machines.get(machine)
            await asyncio.sleep(self._ask([found] if found is not None else []))
            self._running(machine).boots += 1

    async def pause(self, machine: str) -> None:
        """Stop the virtual CPUs."""
        await self._switch("pause", machine, "paused")

    async def resume(self, machine: str) -> None:
        """Let a paused machine go on."""
        await self._switch("resume", machine, "running")

    async def attach_disk(self, machine: str, disk: DiskAttachment) -> None:
        """Plug a disk into a running machine."""
        check_disk(disk)
        async with self._call("attach_disk", machine, self.host.latency.plug_s):
            found = self._running(machine)
            if disk_device(disk.id) not in found.slots:
                self._need_file(disk)
                found.slots[disk_device(disk.id)] = free_slot(found.slots, "disk")
                found.spec = replace(found.spec, disks=(*found.spec.disks, disk))

    async def detach_disk(self, machine: str, disk: str) -> None:
        """Unplug a disk."""
        await self._unplug("detach_disk", machine, disk_device(disk))

    async def attach_nic(self, machine: str, nic: NicAttachment) -> None:
        """Plug a NIC into a running machine."""
        check_nic(nic)
        async with self._call("attach_nic", machine, self.host.latency.plug_s):
            found = self._running(machine)
            if nic_device(nic.id) not in found.slots:
                found.slots[nic_device(nic.id)] = free_slot(found.slots, "nic")
                found.spec = replace(found.spec, nics=(*found.spec.nics, nic))

    async def detach_nic(self, machine: str, nic: str) -> None:
        """Unplug a NIC."""
        await self._unplug("detach_nic", machine, nic_device(nic))

    async def set_throttle(self, machine: str, disk: str, throttle: Throttle) -> None:
        """Change the limits of a disk."""
        async with self._call("set_throttle", machine, self.host.latency.ask_s):
            found = self._running(machine)
            if disk not in [one.id for one in found.spec.disks]:
                raise DriverError("NoDisk", f"machine {machine} has no disk {disk}")
            disks = (replace(one, throttle=throttle) if one.id == disk else one for one in found.spec.disks)
            found.spec = replace(found.spec, disks=tuple(disks))

    async def copy_disk(self, machine: str, disk: str, target: str, bytes_per_s: int = 0) -> float:
        """Take as long as a copy does, and return when it began."""
        async with self._call("copy_disk", machine, self.host.latency.plug_s):
            found = self._running(machine)
            if disk not in [one.id for one in found.spec.disks]:
                raise DriverError("NoDisk", f"machine {machine} has no disk {disk}")
            at, pid = self.host.clock(), found.pid
            await asyncio.sleep(self.host.stretch(self.host.latency.copy_s))
            if found.pid != pid:
                raise DriverError("CopyFailed", f"disk {disk} was not copied: its machine ended")
            self.host.copies[target] = disk
            return at

    async def counters(self) -> dict[str, MachineCounters]:
        """Return counters that grow with the time a machine runs, as of an idle guest."""
        async with self._call("counters", "", self.host.latency.ask_s):
            running = [one for one in self.host.machines.values() if one.started_at is not None and not one.hung]
            return {one.spec.id: self._count(one) for one in running}

    async def remove(self, machine: str) -> None:
        """Power off and forget the machine."""
        await self.power_off(machine)
        self.host.machines.pop(machine, None)

    def _ask(self, machines: Iterable[FakeMachine]) -> float:
        """Ask machines something; return how long it takes until the last of them answered or counts as hung."""
        now, left_s = self.host.clock(), 0.0
        for machine in machines:
            if machine.hung and machine.unanswered_at is None:
                machine.unanswered_at = now
                asyncio.get_running_loop().call_later(HUNG_S, self.host.hint, machine.spec.id)
            if machine.hung:
                left_s = max(left_s, _silence_left_s(machine, now))
        return left_s

    @asynccontextmanager
    async def _call(self, call: str, machine: str, latency_s: float) -> AsyncIterator[None]:
        fault = self.host.count(call, machine)
        if fault is not None and fault.when == "before":
            raise fault.error
        await asyncio.sleep(self.host.stretch(latency_s))
        yield
        if fault is not None:
            raise fault.error

    def _running(self, machine: str) -> FakeMachine:
        found = self.host.machines.get(machine)
        if found is None or found.state == "stopped":
            raise DriverError("NotRunning", f"machine {machine} does not run; start it first")
        if found.hung:
            raise _unanswered(machine)
        return found

    def _start_latency(self, machine: str) -> float:
        found = self.host.machines.get(machine)
        stopped = found is None or found.state == "stopped"
        return self.host.latency.start_s if stopped else self.host.latency.ask_s

    def _check_start(self, machine: FakeMachine) -> None:
        error: DriverError | None = None
        if self.host.used_mib() + machine.spec.memory_mib > self.host.memory_mib:
            error = DriverError("NoMemory", f"machine {machine.spec.id} did not start: cannot allocate memory")
        for disk in machine.spec.disks:
            if disk.path in self.host.missing_files:
                error = DriverError("StartFailed", f"disk {disk.id} cannot be opened: No such file or directory")
        if error is not None:
            self.host.end(machine, "failed", error.message)
            raise error

    def _need_file(self, disk: DiskAttachment) -> None:
        if disk.path in self.host.missing_files:
            raise DriverError("StartFailed", f"disk {disk.id} cannot be opened: No such file or directory")

    def _guest_shut_down(self, machine: FakeMachine, pid: int | None) -> None:
        if machine.pid == pid and machine.state == "running" and not machine.deaf:
            self.host.end(machine, "guest-shutdown")

    async def _switch(self, call: str, machine: str, state: MachineState) -> None:
        async with self._call(call, machine, self.host.latency.ask_s):
            found = self._running(machine)
            if found.state != state:
                found.state = state
                self.host.hint(machine)

    async def _unplug(self, call: str, machine: str, device: str) -> None:
        async with self._call(call, machine, self.host.latency.unplug_s):
            found = self.host.machines.get(machine)
            if found is None or device not in found.slots:
                return
            if found.hung:
                raise _unanswered(machine)
            if found.state != "stopped" and found.deaf:
                await asyncio.sleep(self.host.latency.unplug_timeout_s)
                raise QmpRefused("GuestBusy", "the guest did not let go of the device; try again, or power it off")
            del found.slots[device]
            disks = tuple(one for one in found.spec.disks if disk_device(one.id) != device)
            nics = tuple(one for one in found.spec.nics if nic_device(one.id) != device)
            found.spec = replace(found.spec, disks=disks, nics=nics)

    def _count(self, machine: FakeMachine) -> MachineCounters:
        ran_s = max(0.0, self.host.clock() - (machine.started_at or 0.0))
        size, ops = machine.disk or (int(ran_s) * 4096, int(ran_s))
        return MachineCounters(
            cpu_s=1.0 + 0.003 * ran_s, memory_bytes=machine.spec.memory_mib << 19,
            disk_read_bytes=size, disk_write_bytes=size, disk_read_ops=ops, disk_write_ops=ops,
        )  # fmt: skip


def _silence_left_s(machine: FakeMachine, now: float) -> float:
    """Return how long the machine still has to be silent until it counts as hung; 0 when it does."""
    since = now if machine.unanswered_at is None else machine.unanswered_at
    left = since + HUNG_S - now
    return left if left > CLOCK_S else 0.0


def _pulse(machine: FakeMachine | None, now: float) -> Pulse:
    if machine is None or machine.state == "stopped":
        return Pulse(state="stopped", boots=machine.boots if machine is not None else 0)
    ops = int(max(0.0, now - (machine.started_at or 0.0)))
    disk_bytes, operations = machine.disk or (2 * 4096 * ops, 2 * ops)
    state: Literal["running", "paused", "hung", "unknown"] = machine.state
    if machine.hung:
        state = "hung" if not _silence_left_s(machine, now) else "unknown"
    nics = tuple(nic.id for nic in machine.spec.nics)
    return Pulse(state=state, boots=machine.boots, nics=nics, disk_bytes=disk_bytes, disk_operations=operations)


def _unanswered(machine: str) -> DriverError:
    return DriverError("NoAnswer", f"the process of machine {machine} is hung; power it off")


def _fact(machine: FakeMachine, now: float) -> MachineFact:
    return MachineFact(
        id=machine.spec.id, state=machine.state, pid=machine.pid, started_at=machine.started_at,
        boots=machine.boots, exit=machine.exit,
        disks=tuple(disk.id for disk in machine.spec.disks), nics=tuple(nic.id for nic in machine.spec.nics),
        throttles=tuple(disk.throttle for disk in machine.spec.disks),
        vcpus=machine.spec.vcpus, memory_mib=machine.spec.memory_mib,
        process="hung" if machine.hung and not _silence_left_s(machine, now) else "answers",
    )  # fmt: skip
