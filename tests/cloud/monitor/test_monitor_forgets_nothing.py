"""What a host forgets when its agent begins anew is no news of its appliances."""

from __future__ import annotations

from tests.cloud.monitor.monitor_world import FAILED, RESTART, Apps
from tests.cloud.world import cloud
from tests.virtual_time import clock, run

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


def test_an_agent_that_begins_anew_opens_no_incident() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND)
            node = await apps.node("n0")
            guests, vm = world.hosts[node.host].guests, node.assigned.vm
            apps.stubborn.add(vm)
            apps.say(node, "web", "failed", 1)

            async def is_done() -> bool:
                return await apps.states() == ["done"]

            async def is_silent() -> bool:
                return bool((await apps.row(node)).observed.execution.state == "silent")

            async def is_running() -> bool:
                return bool((await apps.row(node)).observed.execution.state == "running")

            await world.until(is_done)
            for _ in range(3):
                await world.stop_agent(node.host)
                said, guests.statuses[vm], guests.silent[vm] = guests.statuses[vm], {}, clock()
                await world.start_agent(node.host)
                await world.until(is_silent, 60.0)
                guests.statuses[vm] = said
                del guests.silent[vm]
                await world.until(is_running, 60.0)
            await world.settle()
            assert await apps.states() == ["done"]

    run(main)
