"""Monitors on simulated hosts: what is seen, what is done about it, once, and what is not done."""

from __future__ import annotations

import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.world import cloud
from tests.virtual_time import clock, run

from pileus.kernel.errors import Conflict
from pileus.kernel.store.lists import Filter

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


def test_an_application_that_ended_is_restarted_once_and_the_cause_is_written() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND)
            node, other = await apps.node("n0"), await apps.node("n1")
            apps.say(node, "web", "failed", 1)

            async def is_done() -> bool:
                return await apps.states() == ["done"]

            began = clock()
            await world.until(is_done)
            assert clock() - began < 15.0
            assert apps.done == {(node.assigned.vm, "restart", "web"): 1}
            (action,) = await apps.actions()
            cause = action.assigned.cause
            assert (cause.actor, cause.subject, cause.incident) == (f"monitor {MONITOR}", "web", 1)
            assert cause.at <= action.assigned.steps[0].began_at <= action.assigned.ended_at
            assert [step.state for step in action.assigned.steps] == ["done"]
            row = await apps.row(other)
            assert row.observed.applications["web"]["state"] == "running"
            await world.settle()
            assert apps.done == {(node.assigned.vm, "restart", "web"): 1}

            apps.say(node, "web", "failed", 2)

            async def is_done_twice() -> bool:
                return await apps.states() == ["done", "done"]

            await world.until(is_done_twice)
            assert apps.done[node.assigned.vm, "restart", "web"] == 2

    run(main)


def test_a_policy_that_observes_writes_what_it_would_do() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch({**MEND, "mode": "observe"})
            apps.say(await apps.node("n0"), "web", "failed", 1)

            async def is_written() -> bool:
                return await apps.states() == ["observed"]

            await world.until(is_written)
            await world.settle()
            assert not apps.done
            (action,) = await apps.actions()
            assert "mode to enforce" in action.observed.message

    run(main)


def test_the_cap_of_an_appliance_holds_what_comes_too_often() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch(MEND, actions_per_hour=2)
            node = await apps.node("n0")
            for number in range(1, 5):
                apps.say(node, "web", "failed", number)

                async def is_written(number: int = number) -> bool:
                    return len(await apps.states()) == number and "doing" not in await apps.states()

                await world.until(is_written, limit_s=900.0)
            assert await apps.states() == ["done", "done", "held", "held"]
            assert apps.done == {(node.assigned.vm, "restart", "web"): 2}
            # What still stands when the hour is over is done then; what passed is not.
            began = clock()

            async def is_done() -> bool:
                return await apps.states() == ["done", "done", "held", "done"]

            await world.until(is_done, limit_s=4000.0)
            assert clock() - began > 2000.0
            assert apps.done == {(node.assigned.vm, "restart", "web"): 3}

    run(main)


def test_another_server_takes_over_and_nothing_is_done_twice() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND, actions_per_hour=1000)
            node = await apps.node("n0")
            for number in range(1, 6):
                apps.say(node, "web", "failed", number)
                await world.stop_server()
                await world.start_server(f"server{number}")

                async def is_done(number: int = number) -> bool:
                    return await apps.states() == ["done"] * number

                began = clock()
                await world.until(is_done, limit_s=600.0)
                assert number > 1 or clock() - began < 15.0
            assert apps.done == {(node.assigned.vm, "restart", "web"): 5}

    run(main)


def test_what_a_monitor_watches_follows_names_and_labels_and_what_it_had_goes_with_it() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await world.create("compute.vm", "plain", ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, vms=["plain"])
            await world.until(lambda: world.is_ready("monitor.monitor", MONITOR, ACCOUNT))

            async def watched() -> list[str]:
                return sorted([(await world.store.get(row.assigned.vm)).name for row in await apps.rows()])

            assert await watched() == ["plain"]
            await world.patch("monitor.monitor", MONITOR, ACCOUNT, vms=[])

            async def are_both() -> bool:
                return len(await watched()) == 2

            await world.until(are_both)
            await world.delete("compute.vm", "plain", ACCOUNT)

            async def is_one() -> bool:
                return len(await apps.rows()) == 1

            await world.until(is_one)
            await world.delete("monitor.monitor", MONITOR, ACCOUNT)

            async def is_gone() -> bool:
                kinds = ("monitor.monitor", "monitor.watcher", "monitor.state")
                return not any([await world.store.list(Filter(kind=kind)) for kind in kinds])

            await world.until(is_gone)

    run(main)


def test_a_person_acts_is_asked_and_evidence_outlives_the_appliance() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            vm = await world.store.get((await apps.node("n0")).assigned.vm)
            steps = [{"do": "snapshot"}, {"do": "ask"}, {"do": "terminate"}]
            await world.create("monitor.action", "away", ACCOUNT, vm=vm.id, do=steps, reason="seized")

            async def is_in(state: str) -> bool:
                found = await world.resource("monitor.action", "away", ACCOUNT)
                return bool(found.observed.state == state)

            await world.until(lambda: is_in("asking"))
            assert await world.store.find_id(vm.id) is not None
            with pytest.raises(Conflict, match="log of actions"):
                await world.delete("monitor.action", "away", ACCOUNT)
            await world.patch("monitor.action", "away", ACCOUNT, approved="yes")
            await world.until(lambda: is_in("done"))
            assert await world.store.find_id(vm.id) is None
            (snapshot,) = await world.store.list(Filter(kind="storage.snapshot"))
            assert snapshot.observed.state == "present"
            assert "seized" in snapshot.desired.reason
            await world.delete("storage.snapshot", snapshot.name, ACCOUNT)

            async def is_gone() -> bool:
                return not await world.store.list(Filter(kind="storage.snapshot"))

            await world.until(is_gone)

    run(main)


def test_a_step_that_fails_ends_the_action_and_says_why() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.create("compute.vm", "plain", ACCOUNT)
            await world.until(lambda: world.is_ready("compute.vm", "plain", ACCOUNT))
            do = [{"do": "restart-application", "application": "web"}, {"do": "stop"}]
            await world.create("monitor.action", "try", ACCOUNT, vm="plain", do=do)

            async def is_over() -> bool:
                found = await world.resource("monitor.action", "try", ACCOUNT)
                return bool(found.observed.state == "failed")

            await world.until(is_over)
            action = await world.resource("monitor.action", "try", ACCOUNT)
            assert [step.state for step in action.assigned.steps] == ["failed", "skipped"]
            assert "no node of a manager" in action.observed.message
            assert (await world.resource("compute.vm", "plain", ACCOUNT)).observed.power == "running"

    run(main)
