"""A host with real drivers and real appliances, for tests of the backchannel; agents come and go."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pileus.drivers.host.guest.base import ChannelForm, NodeFact, Seed
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import BackingFile, DirectBoot, DiskAttachment, MachineSpec, NicAttachment
from pileus.drivers.host.qemu.real import QemuHypervisor
from pileus.image.build import Recipe
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage

LIMIT_S = 120
"""Boots take 3 s on an idle machine; this is for one where much else runs."""


class Rack:
    """A host with real drivers and appliances on it; agents come and go."""

    def __init__(self, folder: Path, image: BuiltImage) -> None:
        self.paths = HostPaths(state=folder / "state", run=folder / "run")
        self.paths.state.mkdir()
        self.image = image
        self.switch = OpenVSwitch(self.paths)
        self.machines: set[str] = set()
        self.has_switch = False

    async def agent(self) -> None:
        """Be a new agent."""
        self.hypervisor = QemuHypervisor(self.paths, self.switch.open_tap, "tcg")
        self.guest = GuestChannel(self.paths, self.switch.exchange)
        self.hypervisor.on_change(self.guest.hint)
        await self.hypervisor.open()

    async def end_agent(self) -> None:
        """End the agent; machines go on."""
        for machine in await self.guest.nodes():
            await self.guest.detach(machine)
        await self.hypervisor.close()

    async def start(
        self, machine: str, form: ChannelForm, nics: tuple[NicAttachment, ...] = (), role: str = "router"
    ) -> None:
        """Start an appliance."""
        disk = self.paths.state / f"{machine}.qcow2"
        if not disk.exists():
            make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image.disk), str(disk)]
            done = await asyncio.create_subprocess_exec(*make)
            assert await done.wait() == 0
        seed = Seed(instance_id=machine, hostname="router-1", channel=form, role=role)
        self.machines.add(machine)
        await self.hypervisor.start(
            MachineSpec(
                id=machine, name=machine, vcpus=1, memory_mib=192,
                disks=(DiskAttachment(id=f"{machine}-root", path=str(disk), format="qcow2", backing=(
                    BackingFile(path=str(self.image.disk), format="qcow2"),)),),
                nics=nics, seed=await self.guest.write_seed(machine, seed),
                boot=DirectBoot(
                    kernel=str(self.image.kernel), initrd=str(self.image.initrd), append=self.image.append
                ),
                channel="serial" if form == "serial" else "",
            )
        )  # fmt: skip

    async def kill(self, machine: str) -> None:
        """End the machine as a power cut does, and return when its process is gone."""
        pid = (await self.hypervisor.observe())[machine].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S):
            while (await self.hypervisor.observe())[machine].state == "running":  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until(self, machine: str, wanted: Callable[[NodeFact], bool]) -> NodeFact:
        """Return the machine's fact as soon as it is as ``wanted``."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not wanted(fact := (await self.guest.nodes())[machine]):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                return fact
        except TimeoutError:
            said = (await self.guest.log(machine, 3000)).decode(errors="replace")
            raise AssertionError(f"{(await self.guest.nodes())[machine]} {said}") from None

    async def tear_down(self) -> None:
        await self.end_agent()
        await self.agent()
        for machine in self.machines:
            await self.hypervisor.remove(machine)
            await self.guest.remove(machine)
        await self.hypervisor.close()
        if self.has_switch:
            await self.switch.remove()


@asynccontextmanager
async def a_rack(recipe: Recipe | None = None, kind: type[Rack] = Rack) -> AsyncIterator[Rack]:
    """Have a rack of appliances (of ``recipe``); without what that needs, the test is skipped."""
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or shutil.which("xorriso") is None:
        pytest.skip("appliances need root, qemu-system-x86 and xorriso")
    name = recipe.name if recipe is not None else "appliance"
    try:
        image = ensure_image(name, print, recipe=recipe)
    except BuildError as error:
        pytest.skip(f"the image {name} cannot be built here: {error}")
    # Not pytest's folder: socket paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pileus-b-"))
    made = kind(folder, image)
    await made.agent()
    try:
        yield made
    finally:
        await made.tear_down()
        shutil.rmtree(folder)


def ready(fact: NodeFact) -> bool:
    return fact.state == "ready"
