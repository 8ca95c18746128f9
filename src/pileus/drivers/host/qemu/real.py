"""Machines as QEMU processes of this host. Knows folders and processes; the work per machine is in ``machine``."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Literal

from pileus.drivers.host.errors import DriverError, MissingTool
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import (
    HUNG_S,
    Accelerator,
    DirectBoot,
    DiskAttachment,
    MachineCounters,
    MachineFact,
    MachineSpec,
    NicAttachment,
    Pulse,
    Throttle,
)
from pileus.drivers.host.qemu.command import QEMU, check_disk, check_nic, disk_device, nic_device
from pileus.drivers.host.qemu.folder import MachineFolder, machines_of, note_watched
from pileus.drivers.host.qemu.launch import Launcher
from pileus.drivers.host.qemu.machine import Machine
from pileus.drivers.host.qemu.probe import choose

log = logging.getLogger(__name__)

WATCHED_EVERY_S = 2.0
"""How often it is noted that the machines are in sight: what ends after an agent's end is told to end so much too early."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class QemuHypervisor:
    """See ``base.Hypervisor``. ``open_tap(name)`` returns a new descriptor of a tap, without a virtio header.

    ``test_guest`` is what the KVM probe boots; without it ``auto`` means TCG.
    """

    def __init__(
        self,
        paths: HostPaths,
        open_tap: Callable[[str], Awaitable[int]],
        accelerator: Literal["auto", "kvm", "tcg"] = "auto",
        test_guest: DirectBoot | None = None,
        unplug_timeout_s: float = 15.0,
    ) -> None:
        self._paths = paths
        self._wanted = accelerator
        self._test_guest = test_guest
        self._unplug_timeout_s = unplug_timeout_s
        self._launcher = Launcher(paths, open_tap)
        self._accelerator: Accelerator | None = None
        self._machines: dict[str, Machine] = {}
        self._noting: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[str], None]] = []

    async def open(self) -> None:
        """Find the machines of earlier agent processes and watch them. Raises MissingTool."""
        if shutil.which(QEMU) is None:
            raise MissingTool(f"{QEMU} is not installed; install the package qemu-system-x86")
        self._paths.run.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [self._machine(machine) for machine in self._known()]
        probe = choose(self._paths.run, self._wanted, self._test_guest)
        adoptions = [asyncio.ensure_future(machine.adopt()) for machine in found]
        self._accelerator = await probe
        self._launcher.accelerator = self._accelerator.name
        await asyncio.gather(*adoptions)
        # Not before: who ended while no agent looked ended when the last one looked.
        self._noting = asyncio.get_running_loop().create_task(self._note_watched())

    async def close(self) -> None:
        """Stop watching; machines go on."""
        if self._noting is not None:
            self._noting.cancel()
            with suppress(OSError):
                note_watched(self._paths.watched)
            self._noting = None
        machines, self._machines = list(self._machines.values()), {}
        await asyncio.gather(*(machine.close() for machine in machines))

    def accelerator(self) -> Accelerator:
        """Return what ``open`` found."""
        if self._accelerator is None:
            raise DriverError("NotOpen", "the hypervisor driver is not open")
        return self._accelerator

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(machine id)`` when a machine's state may have changed."""
        self._callbacks.append(callback)

    async def observe(self) -> dict[str, MachineFact]:
        """Return every machine that has a folder or a process on this host."""
        facts = await asyncio.gather(*(self._machine(machine).fact() for machine in self._known()))
        return {fact.id: fact for fact in facts if fact is not None}

    async def pulses(self, machines: Collection[str], timeout_s: float = HUNG_S) -> dict[str, Pulse]:
        """Return the pulse of each of these machines."""
        known = self._machines.keys() | machines_of(self._paths)
        asked = [machine for machine in dict.fromkeys(machines) if machine in known]
        found = await asyncio.gather(*(self._machine(machine).pulse(timeout_s) for machine in asked))
        return {machine: Pulse(state="stopped") for machine in machines} | dict(zip(asked, found, strict=True))

    async def start(self, spec: MachineSpec) -> None:
        """Start the machine; running already: nothing."""
        await self._machine(spec.id).start(spec)

    async def shutdown(self, machine: str) -> None:
        """Press the guest's power button; not running: nothing."""
        live = self._machine(machine).live
        if live is not None:
            await live.monitor.execute("system_powerdown", timeout_s=HUNG_S)

    async def power_off(self, machine: str) -> None:
        """End the process and return when it is gone."""
        await self._machine(machine).power_off()

    async def reset(self, machine: str) -> None:
        """Reset a running machine."""
        await self._machine(machine).reset()

    async def pause(self, machine: str) -> None:
        """Stop the virtual CPUs."""
        await self._machine(machine).need_live().monitor.execute("stop")

    async def resume(self, machine: str) -> None:
        """Let a paused machine go on."""
        await self._machine(machine).need_live().monitor.execute("cont")

    async def attach_disk(self, machine: str, disk: DiskAttachment) -> None:
        """Plug a disk into a running machine."""
        check_disk(disk)
        await self._machine(machine).need_plug().attach_disk(disk)

    async def detach_disk(self, machine: str, disk: str) -> None:
        """Unplug a disk; returns when the guest let go and the file is closed."""
        await self._machine(machine).detach(disk_device(disk))

    async def attach_nic(self, machine: str, nic: NicAttachment) -> None:
        """Plug a NIC into a running machine."""
        check_nic(nic)
        await self._machine(machine).need_plug().attach_nic(nic)

    async def detach_nic(self, machine: str, nic: str) -> None:
        """Unplug a NIC; returns when the guest let go of it."""
        await self._machine(machine).detach(nic_device(nic))

    async def set_throttle(self, machine: str, disk: str, throttle: Throttle) -> None:
        """Change the limits of a disk while the machine runs."""
        await self._machine(machine).need_plug().set_throttle(disk, throttle)

    async def copy_disk(self, machine: str, disk: str, target: str, bytes_per_s: int = 0) -> float:
        """Write the disk as it is at one moment into ``target``, and return that moment."""
        return await self._machine(machine).copy_disk(disk, target, bytes_per_s)

    async def counters(self) -> dict[str, MachineCounters]:
        """Return the counters of every running machine that answers."""
        machines = list(self._machines.items())
        counted = await asyncio.gather(*(machine.counters() for _, machine in machines))
        return {id_: one for (id_, _), one in zip(machines, counted, strict=True) if one is not None}

    async def remove(self, machine: str) -> None:
        """Power off and forget the machine."""
        await self._machine(machine).remove()
        self._machines.pop(machine, None)

    def _machine(self, machine: str) -> Machine:
        if not _ID.fullmatch(machine):
            raise DriverError("BadSpec", f"{machine!r} is not an id that a machine may have")
        if machine not in self._machines:
            new = Machine(MachineFolder(self._paths, machine), self._launcher, self._hint)
            new.unplug_timeout_s = self._unplug_timeout_s
            self._machines[machine] = new
        return self._machines[machine]

    def _known(self) -> list[str]:
        return sorted(one for one in machines_of(self._paths) | set(self._machines) if _ID.fullmatch(one))

    async def _note_watched(self) -> None:
        """Note again and again that every process is watched: the kernel tells at once when one ends."""
        fails = False
        while True:
            try:
                note_watched(self._paths.watched)
                fails = False
            except OSError as error:  # an end that no agent sees will be told to be earlier
                if not fails:
                    log.warning("that the machines are in sight cannot be written down: %s", error.strerror)
                fails = True
            await asyncio.sleep(WATCHED_EVERY_S)

    def _hint(self, machine: str) -> None:
        for callback in self._callbacks:
            callback(machine)
