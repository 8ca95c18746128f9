"""A simulation over a history says what the cloud did while the history was written."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.monitor.test_history import CUSTOMER, Receiver
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.cli.past import read_moments
from pileus.kernel.clock import unix
from pileus.kernel.kind import Resource
from pileus.monitor.action import plan
from pileus.monitor.policy.plan import engine_policy
from pileus.monitor.simulation import Moment, Rules, engine_policies, simulate

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce", "cooldown_s": 0}
STOPPED = {"when": [{"field": "execution.state", "value": "stopped"}], "do": [{"do": "restart"}], "mode": "enforce"}

LATE_S = 2 * plan.HELD_S + 2.0
"""A cap is looked at every ten seconds, and what was done that late counts that long for the next."""


def past(receiver: Receiver) -> list[Moment]:
    """Return what arrived."""
    entries = sorted(receiver.rows.items())
    return list(read_moments(((each.seq, unix(each.at), each.kind, each.body) for _, each in entries), "the history"))


def written(action: Resource) -> tuple[Any, ...]:
    """Return what both know of an action that the cloud wrote, with whether it was done."""
    cause = action.assigned.cause
    return action.assigned.vm, cause.policy, cause.subject, cause.incident, action.observed.state == "done"


@pytest.mark.parametrize(
    ("seed", "rounds", "last_s"), [(1, 4, 700.0), pytest.param(2, 12, 4000.0, marks=pytest.mark.long)]
)
def test_a_simulation_of_the_policies_that_acted_says_what_they_did_and_what_was_held(
    seed: int, rounds: int, last_s: float
) -> None:
    receiver = Receiver(seed)
    chance = random.Random(seed)

    async def main() -> None:
        async with cloud(1, seed=seed, receiver=receiver) as world:
            apps = Apps(world)
            await apps.furnish(5)
            await apps.watch(MEND, STOPPED, actions_per_hour=2, poll_s=60)
            await world.create("monitor.history", "outside", ACCOUNT, **CUSTOMER)
            await asyncio.sleep(30.0)
            nodes = [await apps.node(f"n{number}") for number in range(5)]
            for exits in range(1, rounds + 1):
                for node in chance.sample(nodes, 2):
                    apps.say(node, "web", "failed", exits)
                await asyncio.sleep(chance.uniform(60.0, 600.0))
            for node in nodes:
                world.hosts[node.host].machines.crash(node.assigned.vm, "guest-shutdown", "")
            await asyncio.sleep(last_s)
            actions = await apps.actions()
            policies = {each: await world.resource("monitor.policy", each, ACCOUNT) for each in ("p0", "p1")}
            rules = Rules(
                monitor=(await world.resource("monitor.monitor", MONITOR, ACCOUNT)).desired,
                policies={each.id: each.desired for each in policies.values()},
                read=engine_policies({each.id: engine_policy(each) for each in policies.values()}),
            )
            found = simulate(rules, past(receiver))
            told = {
                (each.vm, each.policy, each.subject, each.incident, each.done_at is not None): each
                for each in found.actions
            }
            assert set(told) == {written(action) for action in actions}
            assert any(each.why and (each.done_at or last_s < plan.HOUR_S) for each in found.actions), "none was held"
            for action in actions:
                would = told[written(action)]
                assert abs(would.at - action.assigned.cause.at) < 2.0
                if would.done_at is not None:
                    assert abs(would.done_at - action.assigned.steps[0].began_at) < LATE_S
            print(f"{len(actions)} actions, {sum(1 for each in found.actions if each.why)} held")

    run(main)


def test_an_appliance_that_is_gone_is_so_in_the_history() -> None:
    receiver = Receiver(seed=3)

    async def main() -> None:
        async with cloud(1, receiver=receiver) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch()
            await world.create("monitor.history", "outside", ACCOUNT, **CUSTOMER)
            vm = (await apps.node("n0")).assigned.vm
            await world.delete("fleet.node", "n0", ACCOUNT)
            await asyncio.sleep(120.0)
            gone = [entry for entry in receiver.rows.values() if entry.kind == "gone"]
            assert [msgspec.json.decode(entry.body)["vm"] for entry in gone] == [vm]
            assert [moment.vm for moment in past(receiver) if moment.row is None] == [vm]

    run(main)
