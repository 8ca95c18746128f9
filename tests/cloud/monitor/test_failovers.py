"""Servers die at any moment while applications fail: each incident is acted on once, none is missed, nothing is done twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest
from tests.cloud.monitor.deaths import Deaths
from tests.cloud.monitor.monitor_world import FAILED, RESTART, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.kernel.kind import Resource
from pileus.kernel.lease import holder
from pileus.kernel.store.lists import Filter

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}
NODES, APPLICATIONS = 4, 40
"""So many applications that each fails rarely: pauses between actions on one of them are another test's."""
WRITES_MAX = 12
"""A death comes at one of so many writes after the failure: an action, its steps and its request take about ten."""
ACTED_S = 60.0
NOTED_ROUNDS = 16
"""A node keeps the newest 256 requests: they are noted before any is forgotten."""


class Heard(Apps):
    """What the applications do is pushed at once, as real nodes do."""

    def say(self, node: Resource, name: str, state: str, exits: int) -> None:
        super().say(node, name, state, exits)
        self.world.running[node.host]._converger.wake_owner(node.assigned.vm)


class Failovers:
    """Lets applications fail, and servers die meanwhile."""

    def __init__(self, world: Cloud, seed: int) -> None:
        self.world = world
        self.apps = Heard(world)
        self.deaths = Deaths(world, seed)
        self.failed: Counter[tuple[str, str]] = Counter()
        """(VM, application) -> how often it ended."""
        self.waited_s: list[float] = []
        self.asked: dict[str, str] = {}
        """Request -> the action that it is of."""
        self._chance = random.Random(seed)

    async def prepare(self, **monitor: Any) -> list[Resource]:
        """Return the nodes, all of whose applications run and are watched."""
        await self.apps.furnish(NODES)
        nodes = [await self.apps.node(f"n{number}") for number in range(NODES)]
        for node in nodes:
            for number in range(APPLICATIONS):
                self.apps.say(node, f"a{number}", "running", 0)
        await self.apps.watch(MEND, actions_per_hour=1000, **monitor)
        return nodes

    async def go(self, nodes: list[Resource], rounds: int) -> None:
        """Do that many rounds, each after all is as it should be."""
        subjects = [(node, f"a{number}") for node in nodes for number in range(APPLICATIONS)]
        self._chance.shuffle(subjects)
        for number in range(rounds):
            self.deaths.arm(WRITES_MAX)
            count = self._chance.randint(1, 4)
            failing, subjects = subjects[:count], subjects[count:] + subjects[:count]
            for node, name in failing:
                self.failed[node.assigned.vm, name] += 1
                self.apps.say(node, name, "failed", self.failed[node.assigned.vm, name])
            await asyncio.sleep(self._chance.uniform(0.0, 12.0))
            began = clock()
            await self.deaths.strike()
            try:
                await self.world.until(self._are_done, ACTED_S)
            except AssertionError:
                raise AssertionError(await self._told()) from None
            self.waited_s.append(clock() - began)
            assert self._restarted() == self.failed
            if number % NOTED_ROUNDS == 0:
                await self._note_requests()

    async def _note_requests(self) -> None:
        requests = await self.world.store.list(Filter(kind="fleet.request"), limit=100_000)
        self.asked.update((each.id, each.owner) for each in requests)

    def _restarted(self) -> dict[tuple[str, str], int]:
        return {(vm, name): count for (vm, verb, name), count in self.apps.done.items() if verb == "restart"}

    async def _are_done(self) -> bool:
        if self.apps.done.total() < self.failed.total():
            return False
        states = Counter(action.observed.state for action in await self._actions())
        return states == {"done": self.failed.total()}

    async def _actions(self) -> list[Resource]:
        return await self.world.store.list(Filter(kind="monitor.action"), limit=100_000)

    async def _told(self) -> str:
        """Return what is not as it should be, for people."""
        missing = [key for key, count in self.failed.items() if self._restarted().get(key, 0) != count]
        actions = [(each.observed, each.assigned) for each in await self._actions() if each.observed.state != "done"]
        watchers = await self.world.store.list(Filter(kind="monitor.watcher"))
        held = [(each.observed, await holder(self.world.store, each.id)) for each in watchers]
        servers = [each.store.server for each in self.world.servers]
        connected = [each.agents.connected for each in self.world.servers]
        return f"restarts {missing}\nactions {actions}\nwatchers {held}\nservers {servers} with {connected} agents"

    async def check(self) -> None:
        """Assert that each incident has one action, and that each action asked once."""
        await self.world.settle()
        actions = await self._actions()
        incidents = Counter((each.assigned.vm, each.assigned.cause.subject) for each in actions)
        assert incidents == self.failed
        numbers = {(each.assigned.vm, each.assigned.cause.subject, each.assigned.cause.incident) for each in actions}
        assert len(numbers) == len(actions) == self.failed.total()
        await self._note_requests()
        assert len(set(self.asked.values())) == len(self.asked) == len(actions), "an action asked twice"
        assert self._restarted() == self.failed


@pytest.mark.parametrize("rounds", [10, pytest.param(500, marks=pytest.mark.long)])
def test_whenever_servers_die_each_incident_has_one_action_and_each_restart_is_asked_once(rounds: int) -> None:
    async def main() -> None:
        seed = int(time.time())
        print(f"seed {seed}")
        async with cloud(2, seed=seed) as world:
            failovers = Failovers(world, seed)
            await failovers.go(await failovers.prepare(), rounds)
            await failovers.check()
            waited = sorted(failovers.waited_s)
            print(
                f"measured: {rounds} deaths {dict(failovers.deaths.happened)}, {failovers.failed.total()} incidents,"
                f" all acted on {waited[len(waited) // 2]:.1f} s later at the median, {waited[-1]:.1f} s at most"
            )

    run(main)
