"""The backchannel of real appliances: by a virtio-serial port and no NIC at all, and by the switch and no address."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Document, Seed
from pileus.drivers.host.ovs.base import PortSpec
from pileus.drivers.host.qemu.base import NicAttachment
from pileus.node.document import document_hash

if TYPE_CHECKING:
    from tests.vm.appliance_rack import Rack, a_rack, ready
else:
    from appliance_rack import Rack, a_rack, ready

pytestmark = pytest.mark.anyio

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


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack() as made:
        yield made


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
    spec = PortSpec(id="port-1", mac=MAC, addresses=(), vlan=100)
    port = await rack.switch.plug(spec)
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
    await rack.switch.plug(msgspec.structs.replace(spec, isolated=True))  # what follows is said to an isolated one
    await rack.end_agent()
    await rack.agent()
    await rack.guest.attach(machine, "nic", "port-1")
    before = await rack.until(machine, ready)
    assert before.hash == document_hash(document)
    await rack.hypervisor.reset(machine)
    # Whether it was seen silent in between depends on how fast it boots.
    after = await rack.until(machine, lambda fact: ready(fact) and fact.boot_id != before.boot_id)
    assert after.hash == document_hash(document)
