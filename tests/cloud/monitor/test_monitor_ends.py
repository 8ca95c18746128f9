"""Monitors with an end: warned of, stopped or deleted at it with their appliances, and going on when it is put off."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import sqlalchemy as sa
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.monitor.test_monitor_appliances import Appliances
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.clock import unix
from pileus.kernel.errors import Invalid
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


async def ready(world: Cloud) -> tuple[str, str]:
    found = await world.get("monitor.monitor", MONITOR, ACCOUNT)
    (condition,) = [each for each in found["conditions"] if each["type"] == "Ready"]
    return str(condition["status"]), str(condition["reason"])


async def end_of(world: Cloud) -> float:
    return unix((await world.get("monitor.monitor", MONITOR, ACCOUNT))["observed"]["ends_at"])


async def says(world: Cloud, *words: str) -> bool:
    return await ready(world) == words


async def has_watchers(world: Cloud, count: int) -> bool:
    return len(await world.store.list(Filter(kind="monitor.watcher"))) == count


async def has_done(apps: Apps, count: int) -> bool:
    return (await apps.states()).count("done") == count


def test_a_monitor_ends_with_its_appliances_and_goes_on_where_it_was() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(1)
            Appliances(world)
            await apps.watch(MEND, form="appliance", replicas=2, duration_s=900, warn_s=200)
            node, end = await apps.node("n0"), await end_of(world)
            apps.say(node, "web", "failed", 1)
            await world.until(lambda: has_done(apps, 1))
            await world.until(lambda: says(world, "true", "EndsSoon"), 900.0)
            assert end - 201 <= clock() <= end - 199
            counted = await world.store.fetch(sa.text("SELECT count(*) FROM event WHERE reason = 'EndsSoon'"))
            assert counted[0][0] == 1
            await asyncio.sleep(end - clock() - 1)
            assert await has_watchers(world, 2), "it stopped early"
            await asyncio.sleep(1.001)
            apps.say(node, "web", "failed", 2)
            await world.until(lambda: says(world, "false", "Ended"))
            await world.until(lambda: has_watchers(world, 0))
            await asyncio.sleep(300)
            assert len(await apps.actions()) == 1, "it acted past its end"
            vdc = await world.resource("tenancy.vdc", "main", ACCOUNT)
            _, used = await world.store.write(lambda tx: tx.budget(space(vdc.id, "vms")))
            assert used == 1, "its appliances are still on the account's quota"
            assert [row.assigned.watcher for row in await apps.rows()] == [""]
            with pytest.raises(Invalid, match="in the past"):
                await world.patch("monitor.monitor", MONITOR, ACCOUNT, duration_s=100)
            await world.patch("monitor.monitor", MONITOR, ACCOUNT, duration_s=0)
            await world.until(lambda: has_done(apps, 2))
            await asyncio.sleep(100)
            assert len(await apps.actions()) == 2, "what was acted on before the end was acted on again"

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_a_monitor_that_goes_at_its_end_takes_its_policies_along_whichever_server_dies(seed: int) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND, duration_s=300, at_end="delete")
            end = await end_of(world)
            draw = random.Random(seed)
            for number, at in enumerate(sorted(draw.uniform(end - 20, end + 5) for _ in range(3))):
                await asyncio.sleep(at - clock())
                assert clock() >= end or await world.exists("monitor.policy", "p0", ACCOUNT), "it went early"
                await world.stop_server()
                await asyncio.sleep(draw.uniform(0, 8))
                await world.start_server(f"after{number}")

            async def is_gone() -> bool:
                kinds = ("monitor.monitor", "monitor.policy", "monitor.watcher", "monitor.state")
                found: list[Any] = [each for kind in kinds for each in await world.store.list(Filter(kind=kind))]
                return not found

            await world.until(is_gone)

    run(main)
