"""A monitor whose appliances are made of an imported disk goes on with the inventory on it, whatever that says."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.monitor.test_monitor_appliances import Appliances
from tests.cloud.monitor.test_monitor_rights import MONITORING, user
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.reading import Call
from pileus.kernel.store.lists import Filter

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}
IMAGE = "carried"
CARRIED = {"form": "appliance", "image": IMAGE}


@asynccontextmanager
async def carried(disk: Path, nodes: int = 3) -> AsyncIterator[tuple[Cloud, Apps]]:
    """Give a cloud in which a monitor watched, acted on a failure that still stands, and is gone: its disk is left."""
    async with cloud(2) as world:
        apps = Apps(world)
        await apps.furnish(nodes)
        Appliances(world, disk)
        await apps.watch(MEND, form="appliance")
        failed = await apps.node("n0")
        apps.stubborn.add(failed.assigned.vm)
        apps.say(failed, "web", "failed", 1)

        async def has_acted() -> bool:
            return await apps.states() == ["done"]

        await world.until(has_acted)
        await asyncio.sleep(10)
        carry = disk.with_name("carried.json")
        shutil.copy(disk, carry)
        await remove(world, "monitor.policy", "p0")
        await remove(world, "monitor.monitor", MONITOR)
        shutil.copy(carry, disk)
        await world.add_image(IMAGE, account=ACCOUNT)
        yield world, apps


async def remove(world: Cloud, kind: str, name: str) -> None:
    async def is_gone() -> bool:
        return not await world.exists(kind, name, ACCOUNT)

    await world.delete(kind, name, ACCOUNT)
    await world.until(is_gone)


async def enforce(world: Cloud, principal: Principal) -> None:
    body = b'{"desired": {"mode": "enforce"}}'
    await world.servers[0].surface.patch(Call(principal=principal, account=""), "monitor.policy", "p0", body)


async def comes_in(world: Cloud) -> dict[str, Any]:
    await world.until(lambda: world.is_ready("monitor.monitor", MONITOR, ACCOUNT))
    return await world.get("monitor.monitor", MONITOR, ACCOUNT)


def test_it_watches_what_was_watched_and_does_not_repeat_what_was_done(tmp_path: Path) -> None:
    async def main() -> None:
        async with carried(tmp_path / "inventory.json") as (world, apps):
            lost = await world.store.get((await apps.node("n2")).assigned.vm)
            await remove(world, "fleet.node", "n2")
            await world.create("compute.vm", "stranger", ACCOUNT, nics=[])
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED)
            found = await comes_in(world)
            assert found["conditions"][0]["message"].endswith("of its inventory no VM here is n2")
            assert lost.id not in {row.assigned.vm for row in await apps.rows()}
            here = {(await apps.node(name)).assigned.vm for name in ("n0", "n1")}
            assert {row.assigned.vm for row in await apps.rows()} == here
            policy = await world.get("monitor.policy", "p0", ACCOUNT)
            assert (policy["desired"]["mode"], policy["desired"]["monitor"]) == ("observe", MONITOR)
            await asyncio.sleep(100)
            assert await apps.states() == ["done"], "what was acted on before was acted on again"

            watcher_only = await user(world, ACCOUNT, MONITORING)
            with pytest.raises(Denied):
                await enforce(world, watcher_only)
            await enforce(world, await user(world, ACCOUNT, Rule(kinds=("*",), verbs=MONITORING.verbs)))
            await asyncio.sleep(20)
            assert await apps.states() == ["done"]
            for name, exits in (("n0", 2), ("n1", 1)):
                apps.say(await apps.node(name), "web", "failed", exits)

            async def is_mended() -> bool:
                return await apps.states() == ["done"] * 3

            await world.until(is_mended)
            counted = [(action.assigned.vm, action.assigned.cause.incident) for action in await apps.actions()]
            first, second = (await apps.node("n0")).assigned.vm, (await apps.node("n1")).assigned.vm
            assert sorted(counted) == sorted([(first, 1), (first, 2), (second, 1)])

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_it_moves_in_once_whichever_server_dies_meanwhile(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with carried(tmp_path / "inventory.json", nodes=2) as (world, apps):
            draw = random.Random(seed)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED, replicas=2)
            for number in range(4):
                await asyncio.sleep(draw.uniform(0.0, 1.5))
                await world.stop_server()
                await world.start_server(f"after{number}")
            await comes_in(world)
            await asyncio.sleep(60)
            assert [policy.name for policy in await world.store.list(Filter(kind="monitor.policy"))] == ["p0"]
            assert await apps.states() == ["done"]
            assert len(await apps.rows()) == 2

    run(main)


BAD: tuple[tuple[bytes, str], ...] = (
    (b"", "its disk kept none"),
    (b'{"version": 2}', "version 2"),
    (b'{"version": 1, "appliances": []}', "cannot be read"),
    (b'{"version": 1, "appliances": {"a": {"name": "' + b"x" * 10_000 + b'"}}}', "cannot be read"),
    (json.dumps({"version": 1, "appliances": {f"{n}": {} for n in range(2000)}}).encode(), "1000 can move in"),
    (json.dumps({"version": 1, "policies": {f"{n}": {} for n in range(300)}}).encode(), "300 policies"),
)


@pytest.mark.parametrize(("content", "words"), BAD)
def test_nonsense_is_said_and_the_monitor_works_without(content: bytes, words: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            disk = tmp_path / "inventory.json"
            disk.write_bytes(content)
            Appliances(world, disk)
            await world.add_image(IMAGE, account=ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED)
            found = await comes_in(world)
            assert words in found["conditions"][0]["message"]
            assert found["observed"]["watched"] == 1
            assert not await world.store.list(Filter(kind="monitor.policy"))

    run(main)


def test_policies_that_cannot_be_are_left_out_and_the_others_observe(tmp_path: Path) -> None:
    good = {"name": "Mend it!", "when": [FAILED], "do": [RESTART], "mode": "enforce", "cooldown_s": 20}
    standing = {"a/web": {"since": 1.0, "incident": 7, "acted": 7}, "b/" + "x" * 500: {}, "c/web": "nonsense", "/": {}}
    kept = {
        "version": 1,
        "appliances": {"old": {"name": "elsewhere", "node": "n0", "row": {"standing": standing}}},
        "policies": {
            "a": good,
            "b": {**good, "name": "wild", "do": [{"do": "format-disk"}]},
            "c": {**good, "name": "never", "when": [{"field": "execution.state", "value": "frozen"}]},
            "d": {"when": 1},
        },
    }

    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            disk = tmp_path / "inventory.json"
            disk.write_text(json.dumps(kept))
            Appliances(world, disk)
            await world.add_image(IMAGE, account=ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED)
            found = await comes_in(world)
            (policy,) = await world.store.list(Filter(kind="monitor.policy"))
            assert (policy.desired.mode, policy.desired.cooldown_s) == ("observe", 20)
            assert policy.name.startswith("policy-")
            assert "wild is left out" in found["conditions"][0]["message"]
            assert len(found["assigned"]["moved_in"]["left_out"]) == 3
            (row,) = await apps.rows()
            assert row.observed is not None
            assert row.observed.standing[f"{policy.id}/web"]["incident"] == 7

    run(main)


def test_an_image_is_for_appliances_and_stays_while_a_monitor_has_it() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.add_image(IMAGE, account=ACCOUNT)
            with pytest.raises(Invalid, match="say form appliance"):
                await world.create("monitor.monitor", MONITOR, ACCOUNT, image=IMAGE)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED)
            with pytest.raises(Conflict, match="is used by monitor watch"):
                await world.delete("storage.image", IMAGE, ACCOUNT)

            async def is_its_own() -> bool:
                found = await world.store.list(Filter(kind="fleet.package"))
                return [each.account for each in found] == [ACCOUNT]

            await world.until(is_its_own)

    run(main)


def test_an_image_that_is_no_monitors_is_said_by_whoever_waits_for_it() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.add_image(IMAGE, account=ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, **CARRIED)

            async def says_why() -> bool:
                found = await world.get("monitor.monitor", MONITOR, ACCOUNT)
                words = found["conditions"][0]["message"]
                return bool(words == "the inventory on its image is not read yet: its appliance does not answer yet")

            await world.until(says_why)

    run(main)
