"""The agent as a process: real drivers on this machine, one connection to a server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from pileus.agent.agent import Agent
from pileus.agent.calls import Calls
from pileus.agent.connection import Connector
from pileus.agent.converge import Converger
from pileus.agent.identity import Identity, client_context, renew_in_time
from pileus.agent.slice import DiskSlice
from pileus.agent.vitals import VitalSigns
from pileus.agent.wiring import Drivers, halves
from pileus.drivers.host.disk.real import QemuImgPool
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.notes import FileNotes
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import DirectBoot
from pileus.drivers.host.qemu.real import QemuHypervisor
from pileus.drivers.host.system.real import LinuxSystem
from pileus.image.cache import built_image
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Rejected
from pileus.registry import KINDS
from pileus.scan.real import CLAMD, JailedScanner

LOG_LIMIT_BYTES = 4 * 2**20
ROTATE_EVERY_S = 30.0


class AgentSettings(Struct, frozen=True, kw_only=True):
    """Where an agent keeps its state, and how it runs machines."""

    data: Path
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    network: str = ""
    """The network namespace of its switch, if somebody prepared one; empty: one of its own."""
    uplinks: Uplinks = Uplinks()
    clamd: Path = CLAMD
    """The socket of its ClamAV daemon, if it has one."""

    @property
    def identity(self) -> Path:
        """The folder of its key and certificate."""
        return self.data / "agent"

    @property
    def paths(self) -> HostPaths:
        """The folders of its drivers."""
        return HostPaths.under(self.data / "host", self.network)


async def run(settings: AgentSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Run until cancelled; ``ready`` is called when a server has told the slice.

    Raises: Rejected when there is no identity or another agent has the folder; DriverError when the machine cannot.
    """
    identity = Identity.load(settings.identity)
    if identity is None:
        raise Rejected("this machine has not joined a cloud; run `pileus agent --server URL --token TOKEN`")
    with sole_user(settings.data):
        async with opened_drivers(settings) as drivers:
            context = client_context(settings.identity)
            connector = Connector(identity.server, context)
            converger = Converger(KINDS, halves(drivers), system_clock, connector.image, connector.content)
            drivers.hypervisor.on_change(converger.wake)
            drivers.guest.on_change(converger.wake_owner)
            signs = VitalSigns(drivers.hypervisor, drivers.switch, drivers.guest)
            calls = Calls(drivers.guest, drivers.disks, signs)
            agent = Agent(converger, DiskSlice(settings.data / "slice"), connector.open, calls)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(agent.run())
                tasks.create_task(_rotate(drivers))
                tasks.create_task(renew_in_time(identity, settings.identity, context))
                await agent.connected.wait()
                ready()


@contextlib.asynccontextmanager
async def opened_drivers(settings: AgentSettings) -> AsyncIterator[Drivers]:
    """Give the drivers of this machine, open, for the block. What runs on the machine goes on after it."""
    paths = settings.paths
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    switch = OpenVSwitch(paths, settings.uplinks)
    hypervisor = QemuHypervisor(paths, switch.open_tap, settings.accelerator, test_guest())
    guest = GuestChannel(paths, switch.exchange)
    hypervisor.on_change(guest.hint)
    drivers = Drivers(
        hypervisor=hypervisor,
        switch=switch,
        disks=QemuImgPool(paths),
        guest=guest,
        system=LinuxSystem(),
        notes=FileNotes(paths.state / "notes"),
        volume_notes=FileNotes(paths.state / "volumes-made"),
        snapshot_notes=FileNotes(paths.state / "snapshots-made"),
        leg_notes=FileNotes(paths.state / "mirror-sources-made"),
        mirror=KernelMirror(paths, settings.uplinks),
        scanner=JailedScanner(paths.state / "scans", clamd=settings.clamd),
        uplinks=settings.uplinks,
    )
    await drivers.switch.open()
    await drivers.disks.open()
    await drivers.hypervisor.open()
    await drivers.mirror.open()
    await drivers.scanner.open()
    try:
        yield drivers
    finally:
        await drivers.mirror.close()
        await drivers.hypervisor.close()
        await drivers.switch.close()


def test_guest() -> DirectBoot | None:
    """Return what the accelerator probe boots: the kernel of the default image, once it has been built."""
    image = built_image("tiny")
    return (
        None if image is None else DirectBoot(kernel=str(image.kernel), initrd=str(image.initrd), append=image.append)
    )


async def _rotate(drivers: Drivers) -> None:
    while True:
        await asyncio.sleep(ROTATE_EVERY_S)
        with contextlib.suppress(DriverError):
            await drivers.guest.rotate(LOG_LIMIT_BYTES)


@contextlib.contextmanager
def sole_user(data: Path) -> Iterator[None]:
    """Hold the agent's folder for the block. Raises: Rejected when another agent has it."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Rejected(f"another pileus agent uses {data}; stop it with `pileus down`", code="in-use") from None
    finally:
        os.close(descriptor)
