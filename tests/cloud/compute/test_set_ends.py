"""Sets with an end: warned of before, stopped or deleted at it, never earlier, never later, and put off at any time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import sqlalchemy as sa
from tests.cloud.compute.machine_world import CHARGES, ask, comes_to, running, site
from tests.cloud.world import Cloud, leftovers
from tests.virtual_time import clock, run

from pileus.kernel.clock import iso, unix
from pileus.kernel.errors import Denied, Invalid
from pileus.kernel.term import SLACK_S

STOPS_S = 30 + SLACK_S


async def make(world: Cloud, **desired: Any) -> float:
    """Make a set of three and return its end."""
    await world.create("compute.set", "web", "acme", **{"count": 3, "nics": [], **desired})
    await world.until(lambda: world.is_ready("compute.set", "web", "acme"))
    return unix((await found(world))["observed"]["ends_at"])


async def found(world: Cloud) -> dict[str, Any]:
    return await world.get("compute.set", "web", "acme")


async def says(world: Cloud, reason: str) -> bool:
    (ready,) = [each for each in (await found(world))["conditions"] if each["type"] == "Ready"]
    return bool(ready["reason"] == reason and ready["status"] == "true")


async def warnings(world: Cloud) -> int:
    counted = await world.store.fetch(sa.text("SELECT count(*) FROM event WHERE reason = 'EndsSoon'"))
    return int(counted[0][0])


async def look_on(world: Cloud, end: float, until: float) -> None:
    """Look at the machines all the time: all run until they are told to stop, and none at the end or after it."""
    while clock() < until:
        if clock() < end - STOPS_S:
            assert running(world) == 3
        assert clock() <= end or not running(world)
        await asyncio.sleep(0.5)


def test_a_set_is_warned_of_and_stopped_at_its_end_and_goes_on_when_that_is_put_off() -> None:
    async def main() -> None:
        async with site() as world:
            end = await make(world, duration_s=600, warn_s=120)
            assert end == pytest.approx(unix((await found(world))["created_at"]) + 600, abs=0.01)
            await world.until(lambda: says(world, "EndsSoon"), 600.0)
            assert end - 121 <= clock() <= end - 119
            assert await warnings(world) == 1
            await look_on(world, end, end + 60)
            assert await says(world, "Ended")
            await world.patch("compute.set", "web", "acme", count=5)
            await world.settle()
            assert running(world) == 0, "members that come after the end run"
            await world.patch("compute.set", "web", "acme", duration_s=1800)
            await world.until(lambda: says(world, "AsDesired"))
            assert running(world) == 5
            await world.until(lambda: says(world, "Ended"), 1900.0)
            await world.patch("compute.set", "web", "acme", duration_s=0)
            await world.until(lambda: says(world, "AsDesired"))
            await asyncio.sleep(1900)
            assert (await found(world))["observed"]["ends_at"] == ""
            assert running(world) == 5

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_a_set_is_deleted_at_its_end_whichever_server_dies_meanwhile(seed: int) -> None:
    async def main() -> None:
        async with site() as world:
            before = await world.store.fetch(CHARGES)
            end = clock() + 400
            await make(world, end_at=iso(end), warn_s=100, at_end="delete")
            watch = asyncio.create_task(look_on(world, end, end + 100))
            draw = random.Random(seed)
            for number, at in enumerate(sorted(draw.uniform(end - 110, end + 10) for _ in range(3))):
                await asyncio.sleep(at - clock())
                await world.stop_server()
                await asyncio.sleep(draw.uniform(0, 8))
                await world.start_server(f"after{number}")
            await watch

            async def is_gone() -> bool:
                return not await world.exists("compute.set", "web", "acme")

            await world.until(is_gone)
            await world.settle()
            assert await leftovers(world) == {}
            assert await world.store.fetch(CHARGES) == before

    run(main)


def test_deaf_guests_end_in_time_too() -> None:
    async def main() -> None:
        async with site() as world:
            end = await make(world, duration_s=300, shutdown_timeout_s=30)
            for host in world.hosts.values():
                for machine in host.machines.machines.values():
                    machine.deaf = True
            await look_on(world, end, end + 30)

    run(main)


def test_ends_that_cannot_be_are_refused() -> None:
    async def main() -> None:
        async with site() as world:
            with pytest.raises(Invalid, match="in the past"):
                await world.create("compute.set", "web", "acme", nics=[], end_at=iso(clock() - 1))
            with pytest.raises(Invalid, match="is no time such as"):
                await world.create("compute.set", "web", "acme", nics=[], end_at="tomorrow")
            await make(world, duration_s=100)
            await world.until(lambda: says(world, "Ended"), 200.0)
            with pytest.raises(Invalid, match="in the past"):
                await world.patch("compute.set", "web", "acme", duration_s=50)
            await world.patch("compute.set", "web", "acme", count=1)
            await ask(world, "job", count=1, duration_s=600)
            await comes_to(world, "running")
            with pytest.raises(Denied, match="ends with request job"):
                await world.patch("compute.set", "job", "acme", duration_s=50)

    run(main)
