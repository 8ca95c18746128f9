"""Appliances whose hypervisor hangs, and those that say nothing while they work, as a monitor sees and mends them."""

from __future__ import annotations

import pytest
from tests.cloud.monitor.monitor_world import Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.drivers.host.qemu.fake import FakeMachine
from pileus.kernel.kind import Resource

MEND = {
    "when": [{"field": "execution.state", "value": "hung"}],
    "do": [{"do": "restart"}],
    "mode": "enforce",
}
SEEN_S = 10.0 + 3.0
"""A poll, and the answer that it hangs."""


def machine(world: Cloud, node: Resource) -> FakeMachine:
    return world.hosts[node.host].machines.machines[node.assigned.vm]


def test_an_appliance_whose_hypervisor_hangs_is_started_anew_once() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND)
            node, other = await apps.node("n0"), await apps.node("n1")
            before, others = machine(world, node).pid, machine(world, other).pid
            world.hosts[node.host].machines.hang(node.assigned.vm)
            began = clock()

            async def is_hung() -> bool:
                return bool((await apps.row(node)).observed.execution.state == "hung")

            async def is_mended() -> bool:
                row = await apps.row(node)
                return row.observed.execution.state == "running" and await apps.states() == ["done"]

            await world.until(is_hung, SEEN_S)
            print(f"measured: hung to its monitor {clock() - began:.1f} s later")
            await world.until(is_mended, 60.0)
            print(f"measured: mended {clock() - began:.1f} s later")
            assert (machine(world, node).hung, machine(world, node).boots) == (False, 2)
            assert machine(world, node).pid != before
            await world.settle()
            assert await apps.states() == ["done"]
            assert machine(world, other).pid == others
            assert (await apps.row(other)).observed.execution.state == "running"

    run(main)


@pytest.mark.parametrize("work", ["busy", "idle"])
def test_a_silent_node_hangs_only_when_its_machine_does_nothing(work: str) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch({**MEND, "mode": "observe"})
            node = await apps.node("n0")
            if work == "idle":
                machine(world, node).disk = (4096, 1)
            world.hosts[node.host].guests.silent[node.assigned.vm] = clock()

            async def is_seen() -> bool:
                state = (await apps.row(node)).observed.execution.state
                return bool(state == ("hung" if work == "idle" else "silent"))

            await world.until(is_seen, 60.0)
            await world.settle()
            assert await is_seen()
            assert len(await apps.states()) == (1 if work == "idle" else 0)

    run(main)
