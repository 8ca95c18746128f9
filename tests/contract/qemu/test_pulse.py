"""Pulses of many machines, and machines that hang: the same of the fake and of real QEMU stopped by SIGSTOP."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import HUNG_S, Hypervisor, MachineFact, Pulse

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import Bench, RealBench, until
else:
    from qemu_bench import until

pytestmark = pytest.mark.anyio

FOUND_S = 3.0
"""A hung process must be seen as such by then."""
OTHERS_S = 1.0
"""What a look at the other machines may take meanwhile."""


async def fact(agent: Hypervisor, machine: str = "m1") -> MachineFact:
    return (await agent.observe())[machine]


async def pulse(agent: Hypervisor, machine: str = "m1", timeout_s: float = HUNG_S) -> Pulse:
    return (await agent.pulses([machine], timeout_s))[machine]


async def hung(bench: Bench, machine: str = "m1") -> tuple[Hypervisor, MachineFact]:
    """Return an agent with a running machine ``other``, and one that hangs."""
    agent = await bench.agent()
    for each in (machine, "other"):
        await agent.start(bench.spec(each))
    found = await fact(agent, machine)
    bench.hang(found)
    return agent, found


async def test_a_pulse_tells_what_the_machine_does(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", disks=2, nics=1))
    running = await pulse(agent)
    assert (running.state, running.boots, running.nics) == ("running", 1, ("m1-nic0",))
    await agent.pause("m1")
    assert (await pulse(agent)).state == "paused"
    await agent.resume("m1")
    await agent.reset("m1")
    assert ((await pulse(agent)).state, (await pulse(agent)).boots) == ("running", 2)
    await agent.power_off("m1")
    assert await pulse(agent) == Pulse(state="stopped", boots=2)


async def test_a_machine_that_is_not_there_is_stopped(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    found = await agent.pulses(["m1", "nobody", "m1"])
    assert {machine: each.state for machine, each in found.items()} == {"m1": "running", "nobody": "stopped"}
    assert "nobody" not in await agent.observe()


async def test_a_hung_machine_is_found_in_time_and_the_others_with_it(bench: Bench) -> None:
    agent, _ = await hung(bench)
    began = time.monotonic()
    found = await agent.pulses(["m1", "other"])
    assert {machine: each.state for machine, each in found.items()} == {"m1": "hung", "other": "running"}
    assert time.monotonic() - began <= FOUND_S
    began = time.monotonic()
    assert (await pulse(agent)).state == "hung"
    assert time.monotonic() - began <= OTHERS_S


async def test_a_hung_machine_is_unknown_to_who_cannot_wait(bench: Bench) -> None:
    agent, _ = await hung(bench)
    began = time.monotonic()
    assert (await pulse(agent, timeout_s=0.2)).state == "unknown"
    assert time.monotonic() - began <= OTHERS_S


async def test_a_hung_machine_keeps_no_look_at_the_others_waiting(bench: Bench) -> None:
    agent, before = await hung(bench)
    hints: list[str] = []
    agent.on_change(hints.append)
    began = time.monotonic()
    found = await fact(agent)
    assert time.monotonic() - began <= OTHERS_S
    assert (found.state, found.pid, found.process) == ("running", before.pid, "answers")  # nobody knows better yet
    await until(lambda: "m1" in hints, FOUND_S)
    found = await fact(agent)
    assert (found.state, found.process) == ("running", "hung")
    assert (await fact(agent, "other")).process == "answers"


async def test_a_machine_that_comes_to_itself_is_told_at_once(bench: Bench) -> None:
    agent, before = await hung(bench)
    assert (await pulse(agent)).state == "hung"
    hints: list[str] = []
    agent.on_change(hints.append)
    bench.hang(before, signal.SIGCONT)
    await until(lambda: "m1" in hints, OTHERS_S)
    assert ((await pulse(agent)).state, (await fact(agent)).process) == ("running", "answers")


async def test_a_hung_machine_is_not_reset_but_ended_and_started(bench: Bench) -> None:
    agent, before = await hung(bench)
    began = time.monotonic()
    with pytest.raises(DriverError) as refused:
        await agent.reset("m1")
    assert refused.value.reason == "NoAnswer"
    assert (await fact(agent)).boots == before.boots
    await agent.power_off("m1")
    ended = await fact(agent)
    assert ended.exit is not None
    assert (ended.state, ended.exit.reason, ended.process) == ("stopped", "powered-off", "answers")
    assert time.monotonic() - began <= FOUND_S
    await agent.start(bench.spec("m1"))
    assert ((await pulse(agent)).state, (await pulse(agent)).boots) == ("running", before.boots + 1)


async def test_a_hung_machine_is_found_by_a_new_agent(bench: Bench) -> None:
    _, before = await hung(bench)
    began = time.monotonic()
    agent = await bench.agent()
    assert (await agent.pulses(["m1", "other"]))["m1"].state == "hung"
    assert time.monotonic() - began <= 2 * FOUND_S
    bench.hang(before, signal.SIGCONT)
    async with asyncio.timeout(FOUND_S):
        while (await pulse(agent)).state != "running":
            continue


@pytest.mark.long
async def test_what_a_guest_reads_and_writes_is_counted(real: RealBench) -> None:
    agent = await real.agent()
    await agent.start(real.spec("m1", live=True))
    await real.guest_ready("m1")
    before = await pulse(agent)
    await real.ask("m1", "dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync")
    after = await pulse(agent)
    assert after.disk_bytes >= before.disk_bytes + 16 * 65536
    assert after.disk_operations > before.disk_operations
    real.hang(await fact(agent))
    silent = await pulse(agent)
    assert (silent.state, silent.disk_bytes) == ("hung", after.disk_bytes)
