"""What every hypervisor driver does, asked of the fake and of real QEMU."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu.base import Hypervisor, MachineFact, Throttle

if TYPE_CHECKING:
    from tests.contract.qemu.qemu_bench import SEEN_S, Bench, until
else:
    from qemu_bench import SEEN_S, until

pytestmark = pytest.mark.anyio

ROUNDING_S = 0.01
"""Of times in files, and what a signal takes."""


async def fact(hypervisor: Hypervisor, machine: str) -> MachineFact:
    return (await hypervisor.observe())[machine]


class Hints:
    """The hints of a driver; ``next`` waits for one about a machine."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.seen: list[str] = []
        hypervisor.on_change(self.seen.append)

    async def next(self, machine: str, timeout_s: float) -> None:
        await until(lambda: machine in self.seen, timeout_s)


async def test_a_started_machine_runs_with_what_it_was_given(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", disks=2, nics=1))
    found = await fact(agent, "m1")
    assert found.state == "running"
    assert found.pid is not None
    assert found.started_at is not None
    assert abs(found.started_at - time.time()) < 60
    assert found.boots == 1
    assert found.disks == ("m1-disk0", "m1-disk1")
    assert found.nics == ("m1-nic0",)
    assert (found.vcpus, found.memory_mib) == (1, bench.spec("m1").memory_mib)


async def test_starting_twice_gives_one_process(bench: Bench) -> None:
    agent = await bench.agent()
    spec = bench.spec("m1")
    await asyncio.gather(*(agent.start(spec) for _ in range(5)))
    first = await fact(agent, "m1")
    await agent.start(spec)
    assert await fact(agent, "m1") == first
    assert first.boots == 1


async def test_a_powered_off_machine_is_stopped_and_says_that_we_did_it(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    await agent.power_off("m1")
    found = await fact(agent, "m1")
    assert (found.state, found.pid, found.started_at) == ("stopped", None, None)
    assert found.exit is not None
    assert found.exit.reason == "powered-off"
    assert found.disks == ("m1-disk0",)
    await agent.power_off("m1")
    await agent.shutdown("m1")
    await agent.start(bench.spec("m1"))
    assert (await fact(agent, "m1")).boots == 2


async def test_a_paused_machine_goes_on_when_resumed(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    for _ in range(2):
        await agent.pause("m1")
        assert (await fact(agent, "m1")).state == "paused"
    await agent.start(bench.spec("m1"))
    assert (await fact(agent, "m1")).state == "paused"
    for _ in range(2):
        await agent.resume("m1")
        assert (await fact(agent, "m1")).state == "running"


async def test_a_pause_is_hinted(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    hints = Hints(agent)
    await agent.pause("m1")
    await hints.next("m1", SEEN_S)


async def test_a_reset_counts_as_a_boot_of_the_same_process(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    before = await fact(agent, "m1")
    await agent.reset("m1")
    after = await fact(agent, "m1")
    assert (after.pid, after.boots) == (before.pid, 2)


async def test_a_killed_process_is_seen_within_a_second(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    hints = Hints(agent)
    await bench.kill(await fact(agent, "m1"))
    async with asyncio.timeout(SEEN_S):
        await hints.next("m1", SEEN_S)
        # Its monitor's end may be told before its own.
        while (found := await fact(agent, "m1")).state != "stopped":
            await hints.next("m1", SEEN_S)
    assert found.exit is not None
    assert found.exit.reason == "killed"
    await agent.start(bench.spec("m1"))
    assert (await fact(agent, "m1")).state == "running"


async def test_a_guest_that_heeds_the_power_button_ends_by_itself(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", live=True))
    await bench.guest_ready("m1")
    hints = Hints(agent)
    await agent.shutdown("m1")
    await hints.next("m1", 30.0)
    found = await stopped(agent, "m1")
    assert found.exit is not None
    assert found.exit.reason == "guest-shutdown"


async def stopped(agent: Hypervisor, machine: str) -> MachineFact:
    async with asyncio.timeout(30):
        while True:
            found = await fact(agent, machine)
            if found.state == "stopped":
                return found
            await asyncio.sleep(0.01)


async def test_a_new_agent_finds_every_machine_as_it_is(bench: Bench) -> None:
    first = await bench.agent()
    machines = [f"m{number}" for number in range(4)]
    await asyncio.gather(*(first.start(bench.spec(machine)) for machine in machines))
    await first.pause("m1")
    await first.power_off("m2")
    before = await first.observe()
    await first.close()
    started = time.monotonic()
    second = await bench.agent()
    after = await second.observe()
    took_s = time.monotonic() - started
    print(f"re-adoption of {len(machines)} machines took {took_s:.3f} s")
    assert after == before
    assert took_s < SEEN_S
    hints = Hints(second)
    await bench.kill(after["m3"])
    await hints.next("m3", SEEN_S)
    await second.resume("m1")
    assert (await fact(second, "m1")).state == "running"


async def test_a_machine_killed_while_no_agent_looked_is_found_stopped(bench: Bench) -> None:
    first = await bench.agent()
    await first.start(bench.spec("m1"))
    running = await fact(first, "m1")
    await first.close()
    await bench.kill(running)
    second = await bench.agent()
    found = await stopped(second, "m1")
    assert found.exit is not None
    assert found.exit.reason == "killed"


async def test_a_machine_that_ended_while_no_agent_looked_ended_after_one_looked_last_and_not_after_its_end(
    bench: Bench,
) -> None:
    first = await bench.agent()
    await first.start(bench.spec("m1"))
    running = await fact(first, "m1")
    looked = time.time()
    await first.close()
    await bench.kill(running)
    ended = time.time()
    await until(lambda: time.time() > ended + 10 * ROUNDING_S)  # who takes the moment of discovery is told apart
    found = await stopped(await bench.agent(), "m1")
    assert found.exit is not None
    assert looked - ROUNDING_S <= found.exit.at <= ended + ROUNDING_S


async def test_a_machine_whose_disk_is_missing_does_not_start_and_says_why(bench: Bench) -> None:
    agent = await bench.agent()
    spec = replace(bench.spec("m1"), disks=(bench.disk("gone", missing=True),))
    with pytest.raises(DriverError, match="gone") as refused:
        await agent.start(spec)
    assert refused.value.reason == "StartFailed"
    found = await fact(agent, "m1")
    assert found.state == "stopped"
    assert found.exit is not None
    assert found.exit.reason == "failed"
    await agent.start(bench.spec("m1"))
    assert (await fact(agent, "m1")).state == "running"


async def test_a_machine_larger_than_the_host_does_not_start_for_lack_of_memory(bench: Bench) -> None:
    agent = await bench.agent()
    spec = replace(bench.spec("m1"), memory_mib=(1 << 30) + 1 if not bench.real else 900 * 1024)
    with pytest.raises(DriverError) as refused:
        await agent.start(spec)
    assert refused.value.reason == "NoMemory"
    assert (await fact(agent, "m1")).state == "stopped"


@pytest.mark.parametrize("wrong", ["../m1", "", "m 1", "m,1", "-m", "m\n"])
async def test_an_id_that_could_be_a_path_or_an_option_is_refused(bench: Bench, wrong: str) -> None:
    agent = await bench.agent()
    with pytest.raises(DriverError) as refused:
        await agent.start(replace(bench.spec("m1"), id=wrong))
    assert refused.value.reason == "BadSpec"


async def test_a_disk_and_a_nic_can_be_attached_twice_with_the_effect_of_once(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    disk, nic = bench.disk("extra"), bench.nic("port")
    for _ in range(2):
        await agent.attach_disk("m1", disk)
        await agent.attach_nic("m1", nic)
    found = await fact(agent, "m1")
    assert (found.disks, found.nics) == (("m1-disk0", "extra"), ("port",))


async def test_an_attach_that_fails_leaves_the_machine_as_it_was(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    before = await fact(agent, "m1")
    with pytest.raises(DriverError):
        await agent.attach_disk("m1", bench.disk("gone", missing=True))
    assert await fact(agent, "m1") == before


async def test_a_stopped_machine_takes_no_disk_and_gives_one_back(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", disks=2))
    await agent.power_off("m1")
    with pytest.raises(DriverError) as refused:
        await agent.attach_disk("m1", bench.disk("extra"))
    assert refused.value.reason == "NotRunning"
    await agent.detach_disk("m1", "m1-disk1")
    await agent.detach_disk("m1", "never-there")
    assert (await fact(agent, "m1")).disks == ("m1-disk0",)


async def test_detaching_what_is_not_there_does_nothing(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    await agent.detach_disk("m1", "never-there")
    await agent.detach_nic("m1", "never-there")
    assert (await fact(agent, "m1")).disks == ("m1-disk0",)


async def test_a_live_guest_lets_go_of_disk_and_nic(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", live=True))
    await bench.guest_ready("m1")
    disk, nic = bench.disk("extra"), bench.nic("port")
    for _ in range(2):
        await agent.attach_disk("m1", disk)
        await agent.attach_nic("m1", nic)
        await detached(agent.detach_disk("m1", "extra"), lambda: agent.detach_disk("m1", "extra"))
        await detached(agent.detach_nic("m1", "port"), lambda: agent.detach_nic("m1", "port"))
        found = await fact(agent, "m1")
        assert (found.disks, found.nics) == (("m1-disk0",), ())


async def detached(first: object, again: object) -> None:
    """The bench's unplug time-out is short, so that deaf guests do not hold up the tests: ask again for 30 s."""
    async with asyncio.timeout(30):
        work = first
        while True:
            try:
                await work  # type: ignore[misc]
            except QmpRefused:
                work = again()  # type: ignore[operator]
            else:
                return


async def test_the_limits_of_a_disk_change_while_it_runs(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    limited = Throttle(iops=10, bytes_per_s=1 << 20)
    await agent.set_throttle("m1", "m1-disk0", limited)
    assert (await agent.observe())["m1"].throttles == (limited,)
    agent = await bench.agent()
    assert (await agent.observe())["m1"].throttles == (limited,)
    await agent.set_throttle("m1", "m1-disk0", Throttle())
    assert (await agent.observe())["m1"].throttles == (Throttle(),)
    with pytest.raises(DriverError) as refused:
        await agent.set_throttle("m1", "never-there", Throttle())
    assert refused.value.reason == "NoDisk"


async def test_counters_of_running_machines_never_fall(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1"))
    await agent.start(bench.spec("m2"))
    await agent.power_off("m2")
    first = await agent.counters()
    second = await agent.counters()
    assert set(first) == set(second) == {"m1"}
    assert second["m1"].cpu_s >= first["m1"].cpu_s > 0
    assert second["m1"].memory_bytes > 1 << 20
    assert second["m1"].disk_read_ops >= first["m1"].disk_read_ops


async def test_a_removed_machine_leaves_nothing(bench: Bench) -> None:
    agent = await bench.agent()
    await agent.start(bench.spec("m1", nics=1))
    assert bench.remains("m1")
    await agent.remove("m1")
    assert bench.remains("m1") == []
    assert await agent.observe() == {}
    await agent.remove("m1")
    await agent.start(bench.spec("m1"))
    assert (await fact(agent, "m1")).boots == 1


async def test_commands_to_a_machine_that_does_not_run_say_so(bench: Bench) -> None:
    agent = await bench.agent()
    for command in (agent.reset, agent.pause, agent.resume):
        with pytest.raises(DriverError) as refused:
            await command("m1")
        assert refused.value.reason == "NotRunning"
