"""New versions of an application for many appliances: a result for each, what failed goes on after it is mended."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from tests.cloud.monitor.deaths import Deaths
from tests.cloud.monitor.monitor_world import ACCOUNT, MANAGER, MONITOR
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.fleet.rollout.types import RolloutResult
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter

NODES, REFUSING = 20, (2, 7, 11, 19)
WHY = "no room for version 2"


def _web(version: str) -> dict[str, Any]:
    return {"applications": {"web": {"command": ["web"], "version": version, "restart": "always"}}}


def _status(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the role ``applications`` says that runs the document."""
    running = {
        name: {"state": "running", "version": each["version"], "exits": 0, "code": "", "since": 0}
        for name, each in document.get("applications", {}).items()
    }
    return {"role": "applications", "applications": running}


async def _furnish(world: Cloud) -> list[Resource]:
    """Make nodes that run version 1, and a monitor of them."""
    for host in world.hosts.values():
        host.guests.status_of = _status
    await world.create("tenancy.account", ACCOUNT)
    await world.create("fleet.manager", MANAGER, ACCOUNT)
    await world.create(
        "fleet.package", "apps", ACCOUNT, manager=MANAGER, version="1", image="appliance", role="applications",
        vcpus=1, memory_mib=64, nics=0,
    )  # fmt: skip
    names = [f"n{number:02}" for number in range(NODES)]
    for name in names:
        await world.create("fleet.node", name, ACCOUNT, manager=MANAGER, package="apps", document=_web("1"))
    await world.create("monitor.monitor", MONITOR, ACCOUNT)
    for name in names:
        await world.until(functools.partial(world.is_ready, "fleet.node", name, ACCOUNT), 600.0)
    await _until_seen(world, {name: "1" for name in names})
    return [await world.resource("fleet.node", name, ACCOUNT) for name in names]


async def _until_seen(world: Cloud, wanted: dict[str, str]) -> None:
    """Wait until the appliance state table says this version of each node."""

    async def is_seen() -> bool:
        nodes = {node.assigned.vm: node.name for node in await world.store.list(Filter(kind="fleet.node"))}
        rows = await world.store.list(Filter(kind="monitor.state"))
        seen = {
            nodes[row.assigned.vm]: row.observed.applications.get("web", {}).get("version")
            for row in rows
            if row.observed is not None
        }
        return seen == wanted

    await world.until(is_seen, 300.0)


async def _until_over(world: Cloud, attempt: int) -> dict[str, RolloutResult]:
    async def is_over() -> bool:
        rollout = await world.resource("fleet.rollout", "two", ACCOUNT)
        return rollout.assigned.attempt == attempt and bool(rollout.observed.phase in ("done", "stopped"))

    await world.until(is_over, 1800.0)
    rollout = await world.resource("fleet.rollout", "two", ACCOUNT)
    return {each.name: each for each in rollout.observed.results}


async def _with_deaths(world: Cloud, deaths: Deaths, rounds: int) -> None:
    for _ in range(rounds):
        deaths.arm(20)
        await asyncio.sleep(deaths.random.uniform(1.0, 10.0))
        await deaths.strike()


def test_of_twenty_updates_four_fail_each_says_why_and_only_those_are_done_again_though_servers_die() -> None:
    async def main() -> None:
        async with cloud(3) as world:
            nodes = await _furnish(world)
            bad = {nodes[number].name for number in REFUSING}
            guests = {node.name: world.hosts[node.host].guests for node in nodes}
            vms = {node.name: node.assigned.vm for node in nodes}
            for name in bad:
                guests[name].refusals[vms[name]] = WHY
            wish = {"manager": MANAGER, "document": _web("2"), "waves": [20, 100], "settle_s": 2}
            await world.create("fleet.rollout", "two", ACCOUNT, **wish, failures_max=4, on_failure="pause")
            deaths = Deaths(world, seed=1)
            await _with_deaths(world, deaths, 4)
            results = await _until_over(world, 0)
            assert {name for name, each in results.items() if each.state == "failed"} == bad
            assert {name for name, each in results.items() if each.state == "done"} == results.keys() - bad
            assert {each.failure for each in results.values()} == {"", WHY}
            await _until_seen(world, {name: "1" if name in bad else "2" for name in results})

            for name in bad:
                del guests[name].refusals[vms[name]]
            taken = sum(each.configured for each in {id(one): one for one in guests.values()}.values())
            await world.patch("fleet.rollout", "two", ACCOUNT, attempt=1)
            await _with_deaths(world, deaths, 2)
            results = await _until_over(world, 1)
            assert {each.state for each in results.values()} == {"done"}
            await _until_seen(world, dict.fromkeys(results, "2"))
            again = sum(each.configured for each in {id(one): one for one in guests.values()}.values()) - taken
            assert again == len(bad), "a node that was done is told its document again"
            rollout = await world.resource("fleet.rollout", "two", ACCOUNT)
            assert (rollout.observed.done, rollout.observed.failed, rollout.observed.total) == (NODES, 0, NODES)
            print(f"measured: servers died {dict(deaths.happened)}")

    run(main)
