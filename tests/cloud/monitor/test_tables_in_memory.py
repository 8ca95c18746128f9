"""A state table in memory: what appliances say is shown by the server that watches them, and stored nowhere."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.kernel.kind import Resource

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}
KEPT = {"mode": "observe", "table": "memory"}


async def _shown(world: Cloud, row: Resource) -> dict[str, Any]:
    found: dict[str, Any] = await world.get("monitor.state", row.name, ACCOUNT)
    return found


def test_what_appliances_say_is_shown_and_not_stored_and_what_was_acted_on_is() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND, table="memory")
            node = await apps.node("n0")
            row = await apps.row(node)

            async def web() -> str:
                applications = (await _shown(world, row))["observed"]["applications"]
                return str(applications.get("web", {}).get("state", ""))

            async def is_running() -> bool:
                return await web() == "running"

            await world.until(is_running)
            stored = await world.store.get(row.id)
            assert stored.observed.execution.state == "running"
            assert (stored.observed.applications, stored.observed.other) == ({}, {})
            assert stored.observed.kept_by == "server"
            (listed,) = await world.list("monitor.state")
            assert listed["observed"]["applications"]["web"]["state"] == "running"

            before = (await world.store.get(row.id)).revision
            for number in range(20):
                apps.say(node, f"quiet{number}", "running", 0)
                await asyncio.sleep(1.5)

            async def are_shown() -> bool:
                return len((await _shown(world, row))["observed"]["applications"]) == 21

            await world.until(are_shown)
            assert (await world.store.get(row.id)).revision == before, "a change of words alone is not written"

            apps.say(node, "web", "failed", 1)

            async def is_done() -> bool:
                return await apps.states() == ["done"]

            await world.until(is_done)
            stored = await world.store.get(row.id)
            (standing,) = [entry for key, entry in stored.observed.standing.items() if key.endswith("/web")]
            assert (standing["incident"], standing["acted"]) == (1, 1)
            assert stored.observed.applications == {}

    run(main)


def test_whoever_takes_over_acts_on_nothing_twice_and_on_what_comes_then() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND, table="memory", actions_per_hour=1000)
            node = await apps.node("n0")
            vm = node.assigned.vm
            apps.stubborn.add(vm)
            for number in (1, 2):
                apps.say(node, "web", "failed", number)

                async def is_done(number: int = number) -> bool:
                    return await apps.states() == ["done"] * number

                await world.until(is_done, 600.0)
                await world.stop_server()
                await world.start_server(f"server{number}")
                await asyncio.sleep(60.0)
                assert apps.done[vm, "restart", "web"] == number, "the incident stands still and was acted on"
            row = await _shown(world, await apps.row(node))
            assert row["observed"]["kept_by"] == "server2"
            assert row["observed"]["applications"]["web"]["state"] == "failed"
            assert row["conditions"][0]["reason"] == "ApplicationFailed"

    run(main)


def test_a_table_is_stored_from_when_its_monitor_says_so_and_forgotten_when_it_says_that() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(**KEPT)
            row = await apps.row(await apps.node("n0"))

            async def is_stored() -> bool:
                return "web" in (await world.store.get(row.id)).observed.applications

            async def is_forgotten() -> bool:
                return not await is_stored() and "web" in (await _shown(world, row))["observed"]["applications"]

            await world.until(is_forgotten)
            await world.patch("monitor.monitor", MONITOR, ACCOUNT, table="stored")
            await world.until(is_stored)
            assert not world.store.unstored
            await world.patch("monitor.monitor", MONITOR, ACCOUNT, table="memory")
            await world.until(is_forgotten, 400.0)
            await world.delete("monitor.monitor", MONITOR, ACCOUNT)
            await world.settle()
            assert not world.store.unstored

    run(main)
