"""Appliances that flood and lie: nobody else's monitor is slower for it, and what is kept of them is bounded."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
from typing import Any, ClassVar

import msgspec
import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, RESTART, Apps
from tests.cloud.monitor.test_monitor_appliances import EngineStream
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.monitor.action.plan import UNDONE_MAX
from pileus.monitor.scan.plan import observed
from pileus.node.monitor.role import PORT
from pileus.server import deciding

EVIL = "evil"
MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}
MENDED_S = 15.0
FLOOD_S = 10.0
EVERY_S = 0.5
ACTIONS_MAX = 2 * (3 + UNDONE_MAX)
"""Of two liars in an hour: what the cap lets through, and what is only written."""


def _lies() -> Any:
    """Yield statuses that no honest node says, each another."""
    for number in itertools.count(1):
        yield {"applications": {"web": {"state": ("failed", "running")[number % 2], "exits": -number}}}
        yield {"applications": {f"a{number}-{each}": {"state": "failed", "exits": number} for each in range(200)}}
        yield {"applications": {"web": {"state": "failed", "exits": 10**6 - number}}, "x": "y" * 60_000}
        yield {"applications": ["web"], "findings": {"eicar": {"state": "found"}}, "ignored": -number}
        yield {"applications": {"web": number}, "deep": [[[[[[[[number]]]]]]]], "\x00": "\x1b[2J"}


async def _evil(world: Cloud, nodes: int = 2, **monitor: Any) -> list[Resource]:
    """Return nodes of another account, with a monitor of theirs that acts on anything."""
    await world.create("tenancy.account", EVIL)
    await world.create("fleet.manager", "theirs", EVIL)
    await world.create(
        "fleet.package", "apps", EVIL, manager="theirs", version="1", image="appliance", role="applications",
        vcpus=1, memory_mib=64, nics=0,
    )  # fmt: skip
    for number in range(nodes):
        await world.create("fleet.node", f"n{number}", EVIL, manager="theirs", package="apps")
    for number in range(nodes):
        await world.until(functools.partial(world.is_ready, "fleet.node", f"n{number}", EVIL))
    await world.create("monitor.monitor", "watch", EVIL, **monitor)
    await world.create("monitor.policy", "p0", EVIL, monitor="watch", **MEND)
    await world.until(lambda: world.is_ready("monitor.monitor", "watch", EVIL))
    return [await world.resource("fleet.node", f"n{number}", EVIL) for number in range(nodes)]


async def _flood(world: Cloud, nodes: list[Resource]) -> None:
    """Let the nodes say another lie again and again."""
    for lie in _lies():
        for node in nodes:
            world.hosts[node.host].guests.statuses[node.assigned.vm] = lie
            world.running[node.host]._converger.wake_owner(node.assigned.vm)
        await asyncio.sleep(EVERY_S)


def test_nodes_that_flood_and_lie_slow_down_nobody_and_fill_nothing() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND, actions_per_hour=1000)
            flood = asyncio.create_task(_flood(world, await _evil(world)))
            began, used, before = clock(), time.process_time(), (await world.store.fetch(sql.NEWEST))[0][0]
            node, slowest_s, number = await apps.node("n0"), 0.0, 0
            while clock() < began + FLOOD_S:
                number += 1
                apps.say(node, f"web{number}", "failed", 1)
                failed_at = clock()

                async def is_mended(number: int = number) -> bool:
                    return apps.done[node.assigned.vm, "restart", f"web{number}"] == 1

                await world.until(is_mended, MENDED_S)
                slowest_s = max(slowest_s, clock() - failed_at)
            took_s, busy_s = clock() - began, time.process_time() - used
            writes = (await world.store.fetch(sql.NEWEST))[0][0] - before
            flood.cancel()
            theirs = [each for each in await world.store.list(Filter(kind="monitor.state")) if each.account == EVIL]
            sizes = [len(msgspec.json.encode(each.observed)) for each in theirs]
            actions = [each for each in await apps.actions() if each.account == EVIL]
            print(
                f"measured: {took_s:.0f} s of flood: another's application restarted {slowest_s:.1f} s later at most,"
                f" {writes / took_s:.1f} writes/s, rows of {max(sizes)} bytes at most, {len(actions)} actions of the liar,"
                f" {busy_s / took_s:.0%} of a CPU"
            )
            assert max(sizes) < 64 << 10
            assert len(actions) <= ACTIONS_MAX
            assert busy_s < took_s
            assert all(
                step.state != "failed"
                for each in await apps.actions()
                if each.account == ACCOUNT
                for step in each.assigned.steps
            )

    run(main)


async def _written(world: Cloud, seconds: float) -> float:
    """Return the revisions in a second of the next seconds."""
    began, before = clock(), (await world.store.fetch(sql.NEWEST))[0][0]
    await asyncio.sleep(seconds)
    written: int = (await world.store.fetch(sql.NEWEST))[0][0] - before
    return written / (clock() - began)


@pytest.mark.long
def test_an_account_without_caps_writes_so_much_in_a_second_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deciding, "WRITES_BURST", 400.0)
    monkeypatch.setattr(deciding, "WRITES_PER_S", 50.0)

    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND, actions_per_hour=1000)
            flood = asyncio.create_task(_flood(world, await _evil(world, actions_per_hour=1000)))
            await asyncio.sleep(10.0)
            rate = await _written(world, 26.0)
            node, began = await apps.node("n0"), clock()
            apps.say(node, "web", "failed", 1)

            async def is_mended() -> bool:
                return apps.done[node.assigned.vm, "restart", "web"] == 1

            await world.until(is_mended, MENDED_S)
            took_s = clock() - began
            flood.cancel()
            count = len([each for each in await apps.actions() if each.account == EVIL])
            print(
                f"measured: {rate:.0f} revisions/s of {count} actions in 36 s; another's restarted {took_s:.1f} s later"
            )
            assert rate < 100.0
            # What was late is written when the flood is over: every incident that the engine found.
            await world.settle()
            assert len([each for each in await apps.actions() if each.account == EVIL]) >= count > 20

    run(main)


class Thief(EngineStream):
    """Wants things done to others' appliances, by others' policies, and writes others' rows."""

    wanted: ClassVar[list[dict[str, Any]]] = []
    rows: ClassVar[list[dict[str, Any]]] = []
    asked = 0

    async def write(self, data: bytes) -> None:
        Thief.asked += 1
        is_document = "configure" in json.loads(data)
        said = {} if is_document else {"states": self.rows, "actions": self.wanted, "polls": ["x", "../x"]}
        self._said.put_nowait(json.dumps(said).encode() + b"\n")


def test_a_monitors_appliance_does_nothing_to_what_is_others() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND)
            (evil,) = await _evil(world, 1)
            (row,) = [each for each in await apps.rows() if each.account == ACCOUNT]
            policies = {each.account: each.id for each in await world.store.list(Filter(kind="monitor.policy"))}
            Thief.rows = [{"vm": row.assigned.vm, "epoch": row.assigned.epoch, "at": 2e9, "origin": "push"}]
            Thief.wanted = [
                {"vm": vm, "epoch": epoch, "policy": policy, "subject": "web", "incident": 1, "cause": {}}
                for vm in (row.assigned.vm, evil.assigned.vm)
                for epoch in range(4)
                for policy in (*policies.values(), row.id, "", "x" * 10_000)
            ]
            for host in world.hosts.values():
                host.guests.listening["127.0.0.1", PORT] = Thief
            await world.create("monitor.monitor", "thief", EVIL, form="appliance")

            async def has_tried() -> bool:
                return Thief.asked > 20

            await world.until(has_tried, 300.0)
            await world.settle()
            assert await apps.actions() == []
            assert not apps.done
            now = await world.store.get(row.id)
            assert now.observed.origin != "push" or now.observed.at != 2e9
            assert now.assigned.epoch == row.assigned.epoch
            apps.say(await apps.node("n0"), "web", "failed", 1)

            async def is_done() -> bool:
                return await apps.states() == ["done"]

            await world.until(is_done, MENDED_S)

    run(main)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"state":"clean","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"state":"clean","files":1' + b"0" * 40 + b"}",
        b'{"state":"clean","message":"\\ud800"}',
        b'{"state":"clean","files":true}',
        b"[]",
        b"\xff",
        b"",
    ],
)
def test_an_answer_to_a_scan_that_is_none_is_unknown(answer: bytes) -> None:
    said = observed(answer)
    assert said.state == "unknown"
    assert len(msgspec.json.encode(said)) < 1000


def test_of_many_findings_a_bounded_number_is_kept() -> None:
    findings = [
        {"rule": "r" * 10_000, "where": "file", "pid": 10**40, "path": f"/{number}\x1b[2J"} for number in range(10_000)
    ]
    said = observed(json.dumps({"state": "found", "findings": findings}).encode())
    assert said.state == "found"
    assert len(msgspec.json.encode(said)) < 256 << 10
    assert "\x1b" not in said.findings[0].path
    assert said.findings[0].pid == 0
