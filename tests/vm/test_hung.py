"""QEMU stopped by SIGSTOP: it is found to hang, keeps no other VM waiting, and a restart ends it and starts it anew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pileus.agent.vitals import VitalSigns
from pileus.cli.client import Client
from pileus.drivers.host.guest.base import Document
from pileus.drivers.host.ovs.base import PortSpec
from pileus.drivers.host.qemu.base import NicAttachment
from pileus.fleet.vitals import Vitals

if TYPE_CHECKING:
    from tests.vm.appliance_rack import LIMIT_S, Rack, a_rack, ready
    from tests.vm.realcloud import RealCloud, until
else:
    from appliance_rack import LIMIT_S, Rack, a_rack, ready
    from realcloud import RealCloud, until

FOUND_S = 3.0
"""From the question to the answer that a process hangs."""
OTHER_S = 3.0
"""What two changes of another VM may take while one hangs; if each look at the host waited for it, they would take 8 s."""
BACK_S = 10.0
MAC = "52:54:00:77:00:09"
DOCUMENT: Document = {
    "links": {"guest": {"mac": MAC}},
    "addresses": {"10.1.1.9": {"link": "guest", "prefix": 24}},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack() as made:
        yield made


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for the block; it may be gone afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.anyio
async def test_vitals_of_real_appliances(rack: Rack) -> None:
    await rack.switch.open()
    rack.has_switch = True
    port = await rack.switch.plug(PortSpec(id="nic-1", mac=MAC, addresses=("10.1.1.9",), vlan=5))
    await rack.start("one", "serial", (NicAttachment(id="nic-1", mac=MAC, tap=port.tap),))
    await rack.start("two", "serial")
    for machine in ("one", "two"):
        await rack.guest.attach(machine, "serial")
        await rack.until(machine, ready)
    await rack.guest.configure("one", DOCUMENT)
    signs = VitalSigns(rack.hypervisor, rack.switch, rack.guest)

    async def look() -> dict[str, Vitals]:
        return {each.vm: each for each in await signs.look(("one", "two", "three"))}

    async with asyncio.timeout(LIMIT_S):
        while not (before := await look())["one"].net_bytes:
            pass
    for machine in ("one", "two"):
        seen = before[machine]
        assert (seen.process, seen.node, seen.boots) == ("running", "ready", 1)
        assert 0 <= seen.heard_s < FOUND_S
        assert seen.boot_id
        assert seen.version
        assert seen.disk_bytes > 1_000_000  # it booted from its disk
    assert before["three"] == Vitals(vm="three", process="stopped")

    pid = (await rack.hypervisor.observe())["one"].pid
    assert pid is not None
    with stopped(pid):
        began = time.monotonic()
        found = await look()
        found_s = time.monotonic() - began
        print(f"measured: found to hang {found_s:.2f} s after it was asked")
        assert (found["one"].process, found["one"].disk_bytes) == ("hung", before["one"].disk_bytes)
        assert (found["two"].process, found["two"].node) == ("running", "ready")
        assert found["two"].heard_s < found["one"].heard_s
        assert found_s <= FOUND_S
    async with asyncio.timeout(LIMIT_S):
        while (seen := (await look())["one"]).process != "running" or seen.heard_s > 1:
            pass
    assert seen.boot_id == before["one"].boot_id


def test_a_reboot_brings_back_a_hung_vm_and_others_do_not_wait(cloud: RealCloud) -> None:
    for name in ("stuck", "well"):
        cloud.pileus("create", "vm", name, "--account", "acme")
    cloud.pileus("wait", "vm", "stuck", "well", "--account", "acme", "--timeout", "60")
    cloud.until_printed("stuck", "PILEUS-READY")
    vm, well = cloud.vm("stuck"), cloud.vm("well")["id"]
    pid = cloud.qemus()[vm["id"]]
    with stopped(pid), cloud.client() as client:
        began = time.monotonic()
        for power in ("paused", "running"):
            wish = json.dumps({"desired": {"power": power}}).encode()
            client.request("PATCH", f"/v1/compute.vm/{well}", body=wish)
            until("it is so", lambda power=power: power_of(client, well) == power)  # type: ignore[misc]
        others_s = time.monotonic() - began
        began = time.monotonic()
        cloud.pileus("reboot", "vm", "stuck", "--account", "acme", "--wait", "--timeout", "60")
        back_s = time.monotonic() - began
        until("the process that hung is gone", lambda: not os.path.exists(f"/proc/{pid}"))
    print(f"measured: another VM paused and resumed in {others_s:.2f} s; rebooted {back_s:.2f} s after it was asked")
    assert cloud.qemus()[vm["id"]] != pid
    assert others_s <= OTHER_S
    assert back_s <= BACK_S
    cloud.until_printed("stuck", "PILEUS-READY", count=2)
    now = cloud.vm("stuck")
    assert (now["observed"]["boots"], now["observed"]["failures"]) == (vm["observed"]["boots"] + 1, 0)


def power_of(client: Client, vm: str) -> str:
    return str(client.get(f"/v1/compute.vm/{vm}")["observed"]["power"])


def test_a_hung_vm_says_so_and_goes_on_when_its_process_does(cloud: RealCloud) -> None:
    cloud.pileus("create", "vm", "dozing", "--account", "acme", "--wait", "--timeout", "60")
    pid = cloud.qemus()[cloud.vm("dozing")["id"]]
    with stopped(pid):
        # Any look at the host is one at all its machines.
        cloud.pileus("create", "vm", "looked", "--account", "acme", "--wait", "--timeout", "60")
        _, told_s = cloud.until_vm("dozing", lambda vm: vm["conditions"][0]["reason"] == "Hung")
        print(f"measured: told {told_s:.2f} s later")
    cloud.until_vm("dozing", lambda vm: vm["conditions"][0]["status"] == "true", FOUND_S)
    assert cloud.qemus()[cloud.vm("dozing")["id"]] == pid
