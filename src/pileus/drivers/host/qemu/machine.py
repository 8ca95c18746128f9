"""One machine over all its processes: find the one that runs, start one when none does, tell what is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu import command, copying
from pileus.drivers.host.qemu.base import HUNG_S, Exit, MachineCounters, MachineFact, MachineSpec, Pulse
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.launch import Launcher
from pileus.drivers.host.qemu.live import Live, Status, watch
from pileus.drivers.host.qemu.plug import Plug, forget
from pileus.drivers.host.qemu.procfs import host_boot, read_stat

START_TIMEOUT_S = 30.0
"""QEMU answers after 0.1 s on an idle host; loaded hosts take longer, a hanging process must not hold the agent."""

FIND_TIMEOUT_S = 5.0
"""How long a process that another agent is just starting may take to write down which one it is."""

OBSERVE_S = 0.3
"""For one machine among all of a host: what answers later is as last known for now, and its driver hints."""

_POLL_S = 0.01

_PULSES: Mapping[Status, Literal["running", "paused", "stopped", "hung"]] = {
    "running": "running", "paused": "paused", "disk-error": "paused", "ended": "stopped", "hung": "hung",
}  # fmt: skip


class Machine:
    """A machine with a folder. ``hint`` is called when its state may have changed."""

    def __init__(self, folder: MachineFolder, launcher: Launcher, hint: Callable[[str], None]) -> None:
        self.folder = folder
        self.plug: Plug | None = None
        self.unplug_timeout_s = 15.0
        self._launcher = launcher
        self._hint = hint
        self._live: Live | None = None
        self._lock = asyncio.Lock()
        self._copying = asyncio.Lock()

    @property
    def live(self) -> Live | None:
        """The process, None when none runs."""
        return None if self._live is None or self._live.gone.is_set() else self._live

    async def adopt(self) -> None:
        """Find the process of an earlier agent and watch it, or write down that it is gone."""
        async with self._lock:
            if self.live is None:
                await self.close()
                await self._adopt()

    async def start(self, spec: MachineSpec) -> None:
        """Start the machine unless it runs; return when it does."""
        command.check(spec)
        async with self._lock:
            if self.live is not None and await self.live.status() != "ended":
                return
            await self.close()
            try:
                self.folder.make()
                lock = await self._lock_or_adopt()
                if lock is not None:
                    await self._launch(spec, lock)
            except OSError as error:
                message = f"the host cannot keep what it must about machine {spec.id}: {error.strerror}"
                raise DriverError("StartFailed", message) from error
            await self._up()

    async def power_off(self) -> None:
        """End the process, however it is."""
        async with self._lock:
            if self.live is None:
                await self.close()
                await self._adopt()
            if self.live is not None:
                await self.live.end("powered-off")

    async def remove(self) -> None:
        """Power off and remove the folders."""
        await self.power_off()
        async with self._lock:
            await self.close()
            self.folder.remove()

    async def close(self) -> None:
        """Stop watching."""
        live, self._live = self._live, None
        if live is not None:
            await live.close()

    async def reset(self) -> None:
        """Reset the running machine. Raises: DriverError (NotRunning, NoAnswer)."""
        live = self.need_live()
        if await live.look() == "hung":
            raise DriverError("NoAnswer", f"the process of machine {self.folder.machine} is hung; power it off")
        self.folder.change(boots=self.folder.record.boots + 1)
        await live.monitor.execute("system_reset")

    async def copy_disk(self, disk: str, target: str, bytes_per_s: int) -> float:
        """Write a disk of the machine as it is at one moment into ``target``. Raises: QmpRefused, DriverError."""
        live, spec = self.need_live(), self.folder.record.spec
        found = next((each for each in spec.disks if each.id == disk), None) if spec is not None else None
        if found is None:
            raise DriverError("NoDisk", f"machine {self.folder.machine} has no disk {disk}")
        async with self._copying:
            return await copying.copy(live, found, target, bytes_per_s)

    async def _end_copies(self, live: Live) -> None:
        async with self._copying:
            await copying.settle(live)

    async def detach(self, device: str) -> None:
        """Unplug a device, or take it out of what a stopped machine had."""
        if self.live is not None and self.plug is not None:
            await self.plug.detach(device)
        else:
            forget(self.folder, device)

    def need_live(self) -> Live:
        """Return the process. Raises DriverError (NotRunning)."""
        if self.live is None:
            raise DriverError("NotRunning", f"machine {self.folder.machine} does not run; start it first")
        return self.live

    def need_plug(self) -> Plug:
        """Return hot plug of the process. Raises DriverError (NotRunning)."""
        self.need_live()
        assert self.plug is not None
        return self.plug

    async def fact(self) -> MachineFact | None:
        """Return what is; None when the machine has no folder."""
        if self.live is None and not self._lock.locked():
            await self.adopt()
        if not self.folder.state.exists() and not self.folder.run.exists():
            return None
        status = "ended" if self.live is None else await self.live.status(OBSERVE_S - self.live.owes_s)
        process: Literal["answers", "hung"] = "hung" if status == "hung" else "answers"
        if status in ("hung", "unknown"):
            status = self._live.known if self._live is not None else "ended"
        record, spec = self.folder.record, self.folder.record.spec
        running = status != "ended"
        return MachineFact(
            id=self.folder.machine,
            state="stopped" if status == "ended" else "running" if status == "running" else "paused",
            pid=self._live.process.pid if running and self._live else None,
            started_at=record.started_at if running else None,
            boots=record.boots,
            exit=record.exit,
            disks=tuple(disk.id for disk in spec.disks) if spec else (),
            nics=tuple(nic.id for nic in spec.nics) if spec else (),
            throttles=tuple(disk.throttle for disk in spec.disks) if spec else (),
            vcpus=spec.vcpus if spec else 0,
            memory_mib=spec.memory_mib if spec else 0,
            paused_by="disk-error" if status == "disk-error" else "",
            process=process if running else "answers",
        )

    async def pulse(self, timeout_s: float) -> Pulse:
        """Return what the machine shows of itself; see ``base.Hypervisor.pulses``."""
        live, record = self.live, self.folder.record
        if live is None:
            return Pulse(state="stopped", boots=record.boots)
        until = asyncio.get_running_loop().time() + timeout_s
        status = await live.look(timeout_s)
        if status in ("running", "paused", "disk-error"):
            with suppress(DriverError):
                await live.count(max(until - asyncio.get_running_loop().time(), _POLL_S))
        read_bytes, written_bytes, reads, writes = live.disk_totals
        return Pulse(
            state=_PULSES.get(status, "unknown"),
            boots=record.boots,
            nics=tuple(nic.id for nic in record.spec.nics) if record.spec else (),
            disk_bytes=read_bytes + written_bytes,
            disk_operations=reads + writes,
        )

    async def counters(self) -> MachineCounters | None:
        """Return what the process used; None when none runs or it does not answer."""
        live = self.live
        stat = read_stat(live.process.pid) if live is not None else None
        if live is None or stat is None or live.is_hung:
            return None
        try:
            totals = await live.count(HUNG_S)
        except DriverError:
            return None
        return MachineCounters(
            cpu_s=stat.cpu_s, memory_bytes=stat.memory_bytes,
            disk_read_bytes=totals[0], disk_write_bytes=totals[1], disk_read_ops=totals[2], disk_write_ops=totals[3],
        )  # fmt: skip

    async def _launch(self, spec: MachineSpec, lock: int) -> None:
        """Write down what is about to be, start the process and watch it; ``lock`` is handed over."""
        try:
            slots = command.plan_slots(spec)
            self.folder.note_lost()
            self.folder.clear_run()
            self.folder.change(spec=spec, boots=self.folder.record.boots + 1, started_at=time.time(),
                               host_boot=host_boot(), ending=None, slots=slots)  # fmt: skip
        except (DriverError, OSError):
            os.close(lock)
            raise
        try:
            process = await self._launcher.launch(self.folder, spec, lock)
        except DriverError as error:
            self.folder.note_exit(Exit(reason="failed", at=time.time(), message=error.message))
            raise
        except asyncio.CancelledError:
            self.folder.note_exit(Exit(reason="failed", at=time.time(), message="the start was cancelled"))
            raise
        self._live = watch(self.folder, process, self._changed)
        assert self._live is not None  # our child keeps its number until we wait for it
        self._live.starts_until = asyncio.get_running_loop().time() + START_TIMEOUT_S
        self.plug = Plug(self._live, self._launcher, self.unplug_timeout_s)

    async def _up(self) -> None:
        live = self._live
        assert live is not None
        with suppress(QmpRefused):
            try:
                await live.monitor.execute("query-status", timeout_s=START_TIMEOUT_S)
                live.starts_until = 0.0
            except DriverError:
                if not await live.wait_gone(2.0):
                    await live.end("failed")
        if live.gone.is_set():
            exit_ = self.folder.record.exit
            words = exit_.message if exit_ and exit_.message else "QEMU did not come up"
            short_of_memory = "cannot allocate memory" in words.lower()
            raise DriverError("NoMemory" if short_of_memory else "StartFailed",
                              f"machine {self.folder.machine} did not start: {words}")  # fmt: skip

    async def _lock_or_adopt(self) -> int | None:
        """Return the lock for a new process, or None after adopting the one that holds it."""
        deadline = time.monotonic() + FIND_TIMEOUT_S
        while True:
            lock = self.folder.take_lock()
            if lock is not None:
                return lock
            if self._find():
                return None
            if time.monotonic() > deadline:
                raise DriverError("StartFailed", f"machine {self.folder.machine}: its running process cannot be found")
            await asyncio.sleep(_POLL_S)  # its launcher is about to write its number

    async def _adopt(self) -> None:
        deadline = time.monotonic() + FIND_TIMEOUT_S
        while self.live is None and self.folder.is_locked() and time.monotonic() < deadline:
            if not self._find():
                await asyncio.sleep(_POLL_S)
        if self.live is None:
            if not self.folder.is_locked():
                self.folder.note_lost()
            return
        assert self.plug is not None
        # Beside: a process that is stopped or busy must not hold up finding the others.
        self.live.spawn_task(self.live.settle())
        self.live.spawn_task(self.plug.settle())
        self.live.spawn_task(self._end_copies(self.live))

    def _find(self) -> bool:
        process = self.folder.recorded_pid()
        live = watch(self.folder, process, self._changed) if process else None
        if live is not None:
            self._live = live
            self.plug = Plug(live, self._launcher, self.unplug_timeout_s)
        return live is not None

    def _changed(self) -> None:
        self._hint(self.folder.machine)
