"""The backchannel of real appliances: by a virtio-serial port and no NIC at all, and by the switch and no address."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import ChannelForm, Document, NodeFact, Seed
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.ovs.base import PortSpec
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import BackingFile, DirectBoot, DiskAttachment, MachineSpec, NicAttachment
from pileus.drivers.host.qemu.real import QemuHypervisor
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage
from pileus.node.document import document_hash

pytestmark = pytest.mark.anyio

LIMIT_S = 120
"""Boots take 3 s on an idle machine; this is for one where much else runs."""

MAC = "52:54:00:77:00:01"
DOCUMENT: Document = {
    "node": {"self": {"hostname": "router-1"}},
    "links": {"guest": {"mac": MAC}},
    "addresses": {"10.1.1.1": {"link": "guest", "prefix": 24}},
    "networks": {"n1": {"range": "10.1.1.0/24", "gateway": "10.1.1.1", "domain": "acme.internal", "dns": []}},
    "hosts": {"52:54:00:00:00:02": {"network": "n1", "address": "10.1.1.2", "names": ["web"]}},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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

    async def start(self, machine: str, form: ChannelForm, nics: tuple[NicAttachment, ...] = ()) -> None:
        """Start an appliance."""
        disk = self.paths.state / f"{machine}.qcow2"
        if not disk.exists():
            make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image.disk), str(disk)]
            done = await asyncio.create_subprocess_exec(*make)
            assert await done.wait() == 0
        seed = Seed(instance_id=machine, hostname="router-1", channel=form, role="router")
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


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or shutil.which("xorriso") is None:
        pytest.skip("appliances need root, qemu-system-x86 and xorriso")
    try:
        image = ensure_image("appliance", print)
    except BuildError as error:
        pytest.skip(f"the image appliance cannot be built here: {error}")
    # Not pytest's folder: socket paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pileus-b-"))
    made = Rack(folder, image)
    await made.agent()
    yield made
    await made.tear_down()
    shutil.rmtree(folder)


def ready(fact: NodeFact) -> bool:
    return fact.state == "ready"


async def test_an_appliance_without_any_nic_takes_its_configuration_and_keeps_it(rack: Rack) -> None:
    machine = "0197-router"
    await rack.start(machine, "serial")
    await rack.guest.attach(machine, "serial")
    first = await rack.until(machine, ready)
    assert (first.hash, first.refused) == ("", "")
    await rack.guest.configure(machine, DOCUMENT)
    fact = await rack.until(machine, lambda fact: fact.hash != "" and fact.status.get("waiting", []) != [])
    assert fact.hash == document_hash(DOCUMENT)

    with pytest.raises(DriverError, match="refused") as caught:
        await rack.guest.connect(machine, "127.0.0.1", 1)
    assert caught.value.reason == "ConnectRefused"

    await rack.hypervisor.reset(machine)
    again = await rack.until(machine, lambda fact: ready(fact) and fact.boot_id != first.boot_id)
    assert again.hash == document_hash(DOCUMENT), "it runs what it was told before its host says anything"

    await rack.end_agent()
    await rack.agent()
    await rack.guest.attach(machine, "serial")
    assert (await rack.until(machine, ready)).boot_id == again.boot_id
    changed = {**DOCUMENT, "resolvers": {"192.0.2.53": {}}}
    await rack.guest.configure(machine, changed)
    assert (await rack.until(machine, ready)).hash == document_hash(changed)

    await rack.hypervisor.pause(machine)
    await rack.until(machine, lambda fact: fact.state == "silent")
    await rack.hypervisor.resume(machine)
    await rack.until(machine, ready)

    await rack.hypervisor.power_off(machine)
    await rack.until(machine, lambda fact: fact.state == "silent")
    await rack.start(machine, "serial")
    assert (await rack.until(machine, ready)).hash == document_hash(changed)


async def test_two_appliances_of_one_image_cannot_be_each_other(rack: Rack) -> None:
    keys = []
    for machine in ("0197-a", "0197-b"):
        await rack.guest.write_seed(machine, Seed(instance_id=machine, hostname="r", channel="serial", role="router"))
        keys.append(rack.paths.channel_key(machine).read_text())
    assert keys[0] != keys[1]
    await rack.start("0197-a", "serial")
    # From now on the host expects another key of this machine: as if another's port had been put in its place.
    rack.paths.channel_key("0197-a").write_text(keys[1])
    await rack.guest.attach("0197-a", "serial")
    fact = await rack.until("0197-a", lambda fact: fact.refused != "")
    assert fact.state == "silent"
    await rack.guest.detach("0197-a")
    rack.paths.channel_key("0197-a").write_text(keys[0])
    await rack.guest.attach("0197-a", "serial")
    await rack.until("0197-a", ready)


async def test_an_appliance_is_reached_through_its_nic_without_any_address(rack: Rack) -> None:
    if shutil.which("ovs-vsctl") is None:
        pytest.skip("a switch port needs openvswitch-switch")
    rack.has_switch = True
    await rack.switch.open()
    port = await rack.switch.plug(PortSpec(id="port-1", mac=MAC, addresses=(), vlan=100))
    machine = "0197-nic"
    await rack.start(machine, "nic", (NicAttachment(id="port-1", mac=MAC, tap=port.tap),))
    await rack.guest.attach(machine, "nic", "port-1")
    await rack.until(machine, ready)
    document: Document = {
        **DOCUMENT,
        "hosts": {
            f"52:54:00:00:01:{n:02x}": {"network": "n1", "address": f"10.1.1.{n}", "names": [f"vm-{n}"]}
            for n in range(2, 200)
        },
    }
    await rack.guest.configure(machine, document)
    assert (await rack.until(machine, ready)).hash == document_hash(document)
    await rack.end_agent()
    await rack.agent()
    await rack.guest.attach(machine, "nic", "port-1")
    before = await rack.until(machine, ready)
    assert before.hash == document_hash(document)
    await rack.hypervisor.reset(machine)
    # Whether it was seen silent in between depends on how fast it boots.
    after = await rack.until(machine, lambda fact: ready(fact) and fact.boot_id != before.boot_id)
    assert after.hash == document_hash(document)
