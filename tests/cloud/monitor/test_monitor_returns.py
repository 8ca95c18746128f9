"""What comes back, changes or has another's name is taken for what it is: nothing is left undone, or said to be done."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR, RESTART, Apps
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.kernel.transaction import Transaction
from pileus.monitor.action.steps import Configure, Task
from pileus.monitor.action.types import OVER, STEP_S, ActionObserved, ActionStep
from pileus.monitor.policy.types import PolicyAct
from pileus.node.document import document_hash

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


def has_states(apps: Apps, *wanted: str) -> Callable[[], Awaitable[bool]]:
    async def are_there() -> bool:
        return await apps.states() == list(wanted)

    return are_there


async def label(world: Cloud, kind: str, name: str, **labels: str | None) -> None:
    body = msgspec.json.encode({"labels": labels})
    await world.servers[0].surface.patch(world.call(ACCOUNT), kind, name, body)


def test_an_appliance_that_is_watched_again_is_acted_on_again() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await apps.watch(MEND)
            node, other = await apps.node("n0"), await apps.node("n1")
            apps.say(node, "web", "failed", 1)
            await world.until(has_states(apps, "done"))

            await world.patch("monitor.monitor", MONITOR, ACCOUNT, vms=[other.assigned.vm])

            async def is_alone() -> bool:
                return [row.assigned.vm for row in await apps.rows()] == [other.assigned.vm]

            await world.until(is_alone)
            await world.patch("monitor.monitor", MONITOR, ACCOUNT, vms=[])

            async def is_back() -> bool:
                rows = await apps.rows()
                return len(rows) == 2 and all(row.observed is not None for row in rows)

            await world.until(is_back)
            apps.say(node, "web", "failed", 2)
            await world.until(has_states(apps, "done", "done"))
            assert apps.done == {(node.assigned.vm, "restart", "web"): 2}
            first, second = await apps.actions()
            assert first.assigned.cause.key != second.assigned.cause.key

    run(main)


def test_labels_that_a_node_gets_later_bring_its_vm_under_a_policy_and_out_again() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            await apps.watch({**MEND, "labels": {"tier": "web"}})
            node = await apps.node("n0")
            apps.say(node, "web", "failed", 1)
            await world.settle()
            assert not await apps.actions()
            await label(world, "fleet.node", "n0", tier="web")
            await world.until(has_states(apps, "done"))
            await label(world, "fleet.node", "n0", tier=None)
            await world.settle()
            apps.say(node, "web", "failed", 2)

            async def is_seen() -> bool:
                return bool((await apps.row(node)).observed.applications["web"]["exits"] == 2)

            await world.until(is_seen)
            await world.settle()
            assert await apps.states() == ["done"]

    run(main)


def test_a_request_or_snapshot_of_the_same_name_is_not_taken_for_the_actions_own() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            node, other = await apps.node("n0"), await apps.node("n1")
            payload = '{"do": "restart", "application": "web"}'
            await world.create("fleet.request", "save-0", ACCOUNT, node="n1", payload=payload)
            disk = (await world.store.get(other.assigned.vm)).assigned.volumes[0]
            await world.create("storage.snapshot", "save-1", ACCOUNT, volume=disk)
            await world.settle()
            do = [{**RESTART, "application": "web"}, {"do": "snapshot"}]
            await world.create("monitor.action", "save", ACCOUNT, vm=node.assigned.vm, do=do)
            await world.until(has_states(apps, "done"))
            assert apps.done == {(vm.assigned.vm, "restart", "web"): 1 for vm in (node, other)}
            own = (await world.store.get(node.assigned.vm)).assigned.volumes[0]
            assert own in [each["desired"]["volume"] for each in await world.list("storage.snapshot")]

    run(main)


def test_a_monitor_with_labels_watches_the_nodes_that_have_them() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(2)
            await label(world, "fleet.node", "n1", tier="web")
            await apps.watch(MEND, labels={"tier": "web"})
            node = await apps.node("n1")
            assert [row.assigned.vm for row in await apps.rows()] == [node.assigned.vm]
            apps.say(node, "web", "failed", 1)
            await world.until(has_states(apps, "done"))

    run(main)


def test_an_appliance_is_not_configured_before_its_controller_has_seen_the_new_document() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            node = await apps.node("n0")
            vm = await world.store.get(node.assigned.vm)
            act = PolicyAct(do="configure", document={"applications": {"web": {"version": "2"}}})
            task = Task(action=vm, position=0, act=act, subject="")
            step = ActionStep(do="configure", state="doing")

            async def begun_and_looked(tx: Transaction) -> str | None:
                made = await Configure().begin(tx, task, vm)
                return await Configure().look(tx, task, replace(step, made=made), vm)

            assert await world.store.write(begun_and_looked) is None
            await world.settle()
            node = await apps.node("n0")
            assert node.observed.hash == document_hash(node.desired.document)
            said = await Configure().look(world.store, task, replace(step, made=node.id), vm)
            assert said == "it runs the new document"

    run(main)


def test_an_action_that_the_appliance_refuses_fails_at_once_with_its_words_and_not_with_old_ones() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            node = await apps.node("n0")
            refusals = world.hosts[node.host].guests.refusals

            async def configured(name: str, version: str) -> ActionObserved:
                act = {"do": "configure", "document": {"applications": {"web": {"version": version}}}}
                await world.create("monitor.action", name, ACCOUNT, vm=node.assigned.vm, do=[act])
                is_over = functools.partial(_is_over, world, name)
                await world.until(is_over, STEP_S / 2)
                observed: ActionObserved = (await world.resource("monitor.action", name, ACCOUNT)).observed
                return observed

            refusals[node.assigned.vm] = "no room for version 2"
            refused = await configured("two", "2")
            assert (refused.state, refused.message) == (
                "failed", "configure: the appliance refuses it: no room for version 2",
            )  # fmt: skip
            del refusals[node.assigned.vm]
            assert (await configured("three", "3")).state == "done"

    run(main)


async def _is_over(world: Cloud, name: str) -> bool:
    action = await world.resource("monitor.action", name, ACCOUNT)
    return action.observed is not None and action.observed.state in OVER
