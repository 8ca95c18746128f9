"""An appliance that says nothing for an hour while its disks are busy is never started anew."""

from __future__ import annotations

import asyncio

from tests.cloud.monitor.monitor_world import Apps
from tests.cloud.world import cloud
from tests.virtual_time import clock, run

HOUR_S, LOOK_S = 3600.0, 20.0
MEND = {"when": [{"field": "execution.state", "value": "hung"}], "do": [{"do": "restart"}], "mode": "enforce"}


def test_an_hour_of_silence_with_heavy_io_is_no_hang() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND)
            node = await apps.node("n0")
            vm, host = node.assigned.vm, world.hosts[node.host]
            machine = host.machines.machines[vm]
            pid, began = machine.pid, clock()
            host.guests.silent[vm] = began
            for turn in range(1, int(HOUR_S / LOOK_S) + 1):
                machine.disk = (turn << 30, turn * 10_000)
                await asyncio.sleep(LOOK_S)
                assert (await apps.row(node)).observed.execution.state in ("running", "silent")
            assert (await apps.row(node)).observed.execution.state == "silent"
            assert await apps.actions() == []
            assert (machine.pid, machine.boots) == (pid, 1)

    run(main)
