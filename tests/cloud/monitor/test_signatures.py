"""Signatures on simulated hosts: appliances are scanned in turn, what is found is acted on, a broken scanner is never clean."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tests.cloud.monitor.monitor_world import ACCOUNT, MONITOR, Apps
from tests.cloud.world import cloud
from tests.virtual_time import clock, run

from pileus.kernel.kind import Resource

QUARANTINE = {
    "when": [{"field": "other.findings.*.state", "value": "found"}],
    "do": [{"do": "isolate"}, {"do": "suspend"}],
    "mode": "enforce",
}
CLEAN = {"state": "clean", "files": 10, "processes": 2}
FOUND = {**CLEAN, "state": "found", "findings": [{"rule": "EICAR_Test_File", "where": "file", "path": "/tmp/x\x1b"}]}


async def answering(apps: Apps, name: str, answer: Any) -> Resource:
    """Let the node answer each scan so."""
    node = await apps.node(name)
    said = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    apps.world.hosts[node.host].guests.roles[node.assigned.vm] = lambda payload: said
    return node


def test_what_is_found_is_isolated_and_suspended_and_others_go_on() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(3)
            node = await answering(apps, "n0", CLEAN)
            await answering(apps, "n1", CLEAN)
            await answering(apps, "n2", b"\xff{")
            await apps.watch(QUARANTINE)
            await world.create("monitor.signature", "eicar", ACCOUNT, monitor=MONITOR, every_s=600)

            async def states() -> dict[str, int]:
                found = await world.resource("monitor.signature", "eicar", ACCOUNT)
                return dict(found.observed.states) if found.observed is not None else {}

            async def are_looked_at() -> bool:
                return await states() == {"clean": 2, "unknown": 1}

            await world.until(are_looked_at)
            assert not await apps.actions()
            await answering(apps, "n0", FOUND)
            await world.patch("monitor.signature", "eicar", ACCOUNT, scan_serial=1)

            async def is_found() -> bool:
                return await states() == {"clean": 1, "found": 1, "unknown": 1}

            await world.until(is_found)
            scans = [each for each in await world.list("monitor.scan") if each["observed"]["state"] == "found"]
            assert scans[0]["observed"]["findings"][0]["path"] == "/tmp/x "
            began = clock()

            async def is_held() -> bool:
                return await apps.states() == ["done"]

            await world.until(is_held)
            assert clock() - began < 5.0
            vm = await world.store.get(node.assigned.vm)
            assert (vm.observed.isolated, vm.observed.power) == ("yes", "paused")
            others = [await world.store.get((await apps.node(name)).assigned.vm) for name in ("n1", "n2")]
            assert {(other.observed.isolated, other.observed.power) for other in others} == {("no", "running")}
            (action,) = await apps.actions()
            assert action.assigned.cause.subject == "eicar"

    run(main)


def test_appliances_are_scanned_again_after_their_time_and_never_two_at_once() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            asked: list[float] = []
            node = await apps.node("n0")

            def role(payload: bytes) -> bytes:
                asked.append(clock())
                return json.dumps(CLEAN).encode()

            world.hosts[node.host].guests.roles[node.assigned.vm] = role
            await answering(apps, "n1", CLEAN)
            await apps.watch()
            await world.create("monitor.signature", "often", ACCOUNT, monitor=MONITOR, every_s=60)

            async def is_asked_thrice() -> bool:
                return len(asked) >= 3

            await world.until(is_asked_thrice, limit_s=400.0)
            gaps = [later - sooner for sooner, later in itertools.pairwise(asked)]
            assert all(60.0 <= gap < 85.0 for gap in gaps), gaps
            assert len(await world.list("monitor.scan")) <= 4

    run(main)
