"""Vitals over both hypervisors: of machines that work, hang, are paused or gone, with nodes that answer and that do not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pileus.agent.vitals import VitalSigns
from pileus.drivers.host.guest.fake import FakeGuest, GuestWorld
from pileus.drivers.host.ovs.base import PortCounters, PortSpec
from pileus.drivers.host.ovs.fake import FakeSwitch, FakeSwitchWorld
from pileus.fleet.vitals import Vitals

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import Bench

pytestmark = pytest.mark.anyio

LOOK_S = 3.0
"""For all of them together, whatever they do."""


async def test_all_are_looked_at_in_the_time_of_the_slowest(bench: Bench) -> None:
    agent = await bench.agent()
    for machine in ("well", "hung", "paused", "off", "mute"):
        await agent.start(bench.spec(machine, nics=1 if machine == "well" else 0))
    await agent.pause("paused")
    await agent.power_off("off")
    ports = FakeSwitchWorld()
    switch = FakeSwitch(ports)
    await switch.open()
    await switch.plug(PortSpec(id="well-nic0", mac="52:54:00:00:00:01", addresses=("10.1.1.2",), vlan=7))
    ports.traffic["well-nic0"] = PortCounters(rx_bytes=5, rx_packets=1, tx_bytes=900, tx_packets=9)
    guests = GuestWorld(statuses={"well": {"role": "applications"}}, silent={"mute": time.time() - 40})
    guest = FakeGuest(guests)
    for machine in ("well", "off", "mute"):
        await guest.attach(machine, "serial")
    signs = VitalSigns(agent, switch, guest)
    bench.hang((await agent.observe())["hung"])

    began = time.monotonic()
    found = {each.vm: each for each in await signs.look(("well", "hung", "paused", "off", "mute", "nobody"))}
    assert time.monotonic() - began <= LOOK_S
    well = found["well"]
    assert (well.process, well.boots, well.net_bytes, well.node) == ("running", 1, 900, "ready")
    assert (well.status, well.boot_id) == ({"role": "applications"}, "well-1")
    assert 0 <= well.heard_s < LOOK_S
    assert (found["mute"].process, found["mute"].node) == ("running", "silent")
    assert 40 <= found["mute"].heard_s < 60
    assert (found["hung"].process, found["hung"].node) == ("hung", "absent")
    assert (found["paused"].process, found["paused"].boots) == ("paused", 1)
    assert found["off"] == Vitals(vm="off", process="stopped", boots=1)
    assert found["nobody"] == Vitals(vm="nobody", process="stopped")
    assert (await signs.look(("hung",), 0.1))[0].process == "hung", "known already"
