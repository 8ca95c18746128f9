"""Rollouts over the nodes of a simulated cloud: the gate, going back, repair, packages, consent, servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.fleet.rollout.types import HELD
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.node.document import document_hash

ACCOUNT, MANAGER, NODES = "acme", "firewalls", 20
OLD: dict[str, Any] = {"rules": {"ssh": {"port": 22}}}
CHANGE: dict[str, Any] = {"rules": {"web": {"port": 80}}}
NEW: dict[str, Any] = {"rules": {**OLD["rules"], **CHANGE["rules"]}}


async def furnish(world: Cloud, nodes: int = NODES, *, nics: int = 0) -> list[Resource]:
    """Make an account that consented to a manager, and nodes that are ready."""
    await world.create("tenancy.account", ACCOUNT)
    await world.create("fleet.manager", MANAGER)
    await world.create("fleet.consent", MANAGER, ACCOUNT, manager=MANAGER, nodes_max=1000)
    await add_package(world, "fw-1", "appliance", nics=nics)
    names = [f"n{number:02}" for number in range(nodes)]
    for name in names:
        await add_node(world, name, nics=[{"network": "default"}] * nics)

    async def are_ready() -> bool:
        return all([await world.is_ready("fleet.node", name, ACCOUNT) for name in names])

    await world.until(are_ready, 600.0)
    return [await world.resource("fleet.node", name, ACCOUNT) for name in names]


async def add_package(world: Cloud, name: str, image: str, **fields: Any) -> None:
    wish = {"role": "firewall", "vcpus": 1, "memory_mib": 64, "nics": 0, **fields}
    await world.create("fleet.package", name, manager=MANAGER, version=name, image=image, **wish)


async def add_node(world: Cloud, name: str, account: str = ACCOUNT, **fields: Any) -> None:
    await world.create("fleet.node", name, account, manager=MANAGER, document=OLD, **fields)


async def roll(world: Cloud, name: str = "r1", **wish: Any) -> None:
    await world.create("fleet.rollout", name, **{"manager": MANAGER, "document": CHANGE, "settle_s": 2, **wish})


async def until_phase(world: Cloud, phase: str, name: str = "r1", limit_s: float = 600.0) -> Resource:
    async def is_there() -> bool:
        rollout = await world.resource("fleet.rollout", name)
        return bool(rollout.observed.phase == phase)

    try:
        await world.until(is_there, limit_s)
    except AssertionError:
        raise AssertionError(str((await world.resource("fleet.rollout", name)).observed)) from None
    return await world.resource("fleet.rollout", name)


def guests_of(world: Cloud, node: Resource) -> Any:
    return world.hosts[node.host].guests


def runs(world: Cloud, node: Resource) -> Any:
    """Return the document that the node itself has."""
    return guests_of(world, node).documents[node.assigned.vm]


def refuse(world: Cloud, node: Resource, why: str = "no room for the rules") -> None:
    guests_of(world, node).refusals[node.assigned.vm] = why


def repair(world: Cloud, node: Resource) -> None:
    del guests_of(world, node).refusals[node.assigned.vm]


def by_name(rollout: Resource) -> dict[str, Any]:
    return {one.name: one for one in rollout.observed.results}


async def check_waves(world: Cloud) -> None:
    """Assert that no node of a later wave was changed."""
    nodes = await world.store.list(Filter(kind="fleet.node"))  # first: waves only grow
    for rollout in await world.store.list(Filter(kind="fleet.rollout")):
        allowed = {id for wave in rollout.assigned.waves[: rollout.assigned.wave + 1] for id in wave}
        for node in nodes:
            before = node.assigned.before
            if before is not None and before.rollout == rollout.id and before.turned == "forward":
                assert node.id in allowed
                assert before.document == OLD


@contextlib.asynccontextmanager
async def accidents(world: Cloud, seed: int) -> AsyncIterator[None]:
    """Kill the server, or an agent, again and again for the block, and look that no wave comes too early."""
    task = asyncio.create_task(_accidents(world, random.Random(seed)))
    yield
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), ended
    if not world.servers:
        await world.start_server("last")
    for host in set(world.hosts) - set(world.agents):
        await world.start_agent(host)


async def _accidents(world: Cloud, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.uniform(0.2, 4.0))
        if chance.random() < 0.5:
            await world.stop_server()
            await asyncio.sleep(chance.uniform(0.1, 3.0))
            await world.start_server(f"server{chance.random()}")
        else:
            host = chance.choice(list(world.hosts))
            await world.stop_agent(host)
            await asyncio.sleep(chance.uniform(0.1, 3.0))
            await world.start_agent(host)
        await check_waves(world)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_of_twenty_nodes_one_fails_all_go_back_and_after_repair_all_change_whoever_dies_meanwhile(seed: int) -> None:
    async def main() -> None:
        async with cloud(3, seed=seed) as world:
            nodes = await furnish(world)
            bad = nodes[random.Random(seed).randrange(1, NODES)]
            refuse(world, bad)
            await roll(world, timeout_s=120)
            async with accidents(world, seed):
                rollout = await until_phase(world, "rolled-back")
            result = by_name(rollout)[bad.name]
            assert result.failure == "no room for the rules"
            assert result.state == "rolled-back"
            assert f"1 of {NODES} nodes failed: {bad.name} of {ACCOUNT}: no room" in rollout.observed.message
            assert rollout.ready is not None
            assert rollout.ready.reason == "RolledBack"
            assert [one.name for one in rollout.observed.results if one.failure] == [bad.name]
            await _all_run(world, nodes, OLD)

            repair(world, bad)
            await world.patch("fleet.rollout", "r1", attempt=1)
            async with accidents(world, seed + 100):
                rollout = await until_phase(world, "done")
            assert {one.state for one in rollout.observed.results} == {"done"}
            await _all_run(world, nodes, NEW)
            assert rollout.ready is not None
            assert rollout.ready.status == "true"

    run(main)


async def _all_run(world: Cloud, nodes: list[Resource], document: dict[str, Any]) -> None:
    """Wait until the cloud is calm, and assert that no node is left in between."""

    async def do_all() -> bool:
        return all(runs(world, node) == document for node in nodes)

    await world.until(do_all, 300.0)
    await world.settle()
    for node in await world.store.list(Filter(kind="fleet.node")):
        assert node.desired.document == document
        assert node.observed.hash == document_hash(document)


def test_a_rollout_that_pauses_at_its_gate_goes_on_with_what_failed_when_it_is_told_to() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            nodes = await furnish(world, 8)
            refuse(world, nodes[1])
            await roll(world, on_failure="pause", waves=[25, 100])
            rollout = await until_phase(world, "stopped")
            assert "raise attempt to go on" in rollout.observed.message
            await world.settle()
            assert [runs(world, node) == NEW for node in nodes] == [True] + [False] * 7
            repair(world, nodes[1])
            await world.patch("fleet.rollout", "r1", attempt=1)
            rollout = await until_phase(world, "done")
            assert rollout.observed.done == 8
            await _all_run(world, nodes, NEW)

    run(main)


def test_a_wish_pauses_goes_on_and_rolls_back_also_when_it_was_done() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            nodes = await furnish(world, 8)
            await roll(world, waves=[25, 50, 100], settle_s=20)
            await asyncio.sleep(5.0)
            await world.patch("fleet.rollout", "r1", state="paused")
            await until_phase(world, "paused")
            await asyncio.sleep(60.0)
            assert sum(runs(world, node) == NEW for node in nodes) == 2
            await world.patch("fleet.rollout", "r1", state="running")
            await until_phase(world, "done")
            assert await _holders(world) == set()
            await world.patch("fleet.rollout", "r1", state="rolled-back")
            rollout = await until_phase(world, "rolled-back")
            assert rollout.ready is not None
            assert rollout.ready.status == "true"
            await _all_run(world, nodes, OLD)
            await world.patch("fleet.rollout", "r1", state="running")
            await until_phase(world, "done")
            await _all_run(world, nodes, NEW)

    run(main)


async def _holders(world: Cloud) -> set[str]:
    async def read(tx: Any) -> set[str]:
        nodes = await tx.matching(Filter(kind="fleet.node"))
        return {holder for node in nodes if (holder := await tx.holder(HELD, node.id))}

    return await world.store.write(read)


def test_a_package_rollout_gives_each_node_a_new_disk_and_leaves_it_its_nic_and_address() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            nodes = await furnish(world, 6, nics=1)
            vms = {node.id: await world.store.get(node.assigned.vm) for node in nodes}
            await world.add_image("appliance-2")
            await add_package(world, "fw-2", "appliance-2", nics=1, memory_mib=96)
            await roll(world, package="fw-2", waves=[30, 100])
            rollout = await until_phase(world, "done")
            assert rollout.observed.done == 6
            image = await world.resource("storage.image", "appliance-2")
            for node in nodes:
                old, new = vms[node.id], await world.store.get(node.assigned.vm)
                assert new.observed.power == "running"
                assert new.assigned.image == image.id
                assert new.assigned.memory_mib == 96
                assert new.assigned.ports == old.assigned.ports
                assert new.observed.addresses == old.observed.addresses
                assert new.assigned.volumes != old.assigned.volumes
                assert runs(world, node) == NEW
            with pytest.raises(Conflict, match="package fw-1 is used by"):
                await world.delete("fleet.package", "fw-1")
            await world.patch("fleet.rollout", "r1", state="rolled-back")
            await until_phase(world, "rolled-back")
            for node in nodes:
                old, new = vms[node.id], await world.store.get(node.assigned.vm)
                assert new.assigned.image == old.assigned.image
                assert new.observed.addresses == old.observed.addresses
            assert (await world.resource("fleet.node", "n00", ACCOUNT)).desired.package == "fw-1"

    run(main)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_new_disks_come_and_go_whoever_dies_meanwhile(seed: int) -> None:
    async def main() -> None:
        async with cloud(3, seed=seed) as world:
            nodes = await furnish(world, 8, nics=1)
            await world.add_image("appliance-2")
            await add_package(world, "fw-2", "appliance-2", nics=1)
            for name, package in (("r1", "fw-2"), ("r2", "fw-1")):
                async with accidents(world, seed):
                    await roll(world, name, package=package, document={}, waves=[30, 100])
                    rollout = await until_phase(world, "done", name)
                assert rollout.observed.done == 8
                await _all_run(world, nodes, OLD)
                image = (await world.resource("fleet.package", package)).assigned.image
                for node in nodes:
                    vm = await world.store.get(node.assigned.vm)
                    assert (vm.assigned.image, vm.observed.power) == (image, "running")
                    assert len(vm.assigned.volumes) == 1
            volumes = await world.store.list(Filter(kind="storage.volume"))
            assert len(volumes) == 8

    run(main)


def test_a_node_without_quota_for_the_package_fails_alone_and_says_so() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            nodes = await furnish(world, 3)
            vdc = (await world.store.list(Filter(kind="tenancy.vdc")))[0]
            await world.patch("tenancy.vdc", vdc.name, ACCOUNT, quota={"memory_mib": 64 + 64 + 96})
            await add_package(world, "fw-2", "appliance", memory_mib=96)
            await roll(world, package="fw-2", document={}, waves=[100], failures_max=2)
            rollout = await until_phase(world, "done")
            results = by_name(rollout)
            assert [results[node.name].state for node in nodes] == ["done", "failed", "failed"]
            assert "memory_mib" in results["n01"].failure
            n01 = await world.resource("fleet.node", "n01", ACCOUNT)
            assert n01.desired == nodes[1].desired
            used = {"memory_mib": 64 + 64 + 96, "vms": 3}
            for word, amount in used.items():
                assert await _used(world, vdc.id, word) == amount

    run(main)


async def _used(world: Cloud, vdc: str, word: str) -> int:
    async def read(tx: Any) -> int:
        return int((await tx.budget(f"{vdc}/{word}"))[1])

    return await world.store.write(read)


def test_nodes_of_accounts_that_withdraw_are_skipped_and_those_changed_by_hand_are_left_alone() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            nodes = await furnish(world, 4)
            for account, allows in (("other", ["create", "request"]), ("third", [])):
                await world.create("tenancy.account", account)
                await world.create("fleet.consent", MANAGER, account, manager=MANAGER, allows=allows)
                await add_node(world, "x", account)
                await world.until(functools.partial(world.is_ready, "fleet.node", "x", account))
            await world.delete("fleet.consent", MANAGER, "third")
            await world.settle()
            await roll(world, waves=[100])
            rollout = await until_phase(world, "done")
            assert [one.account for one in rollout.observed.results] == [ACCOUNT] * 4 + ["other"]
            assert rollout.observed.results[-1].state == "skipped"
            assert "does not let manager firewalls configure it" in rollout.observed.results[-1].message
            for account in ("other", "third"):
                assert (await world.resource("fleet.node", "x", account)).desired.document == OLD
            by_hand = {"rules": {"mail": {"port": 25}}}
            await world.patch("fleet.node", "n02", ACCOUNT, document=by_hand)
            await world.delete("fleet.node", "n03", ACCOUNT)
            await world.patch("fleet.rollout", "r1", state="rolled-back")
            rollout = await until_phase(world, "rolled-back")
            states = {name: one.state for name, one in by_name(rollout).items()}
            assert states == {
                "n00": "rolled-back",
                "n01": "rolled-back",
                "n02": "skipped",
                "n03": "gone",
                "x": "skipped",
            }
            assert "changed by hand" in by_name(rollout)["n02"].message
            assert runs(world, nodes[2]) == {"rules": {**NEW["rules"], **by_hand["rules"]}}
            assert runs(world, nodes[0]) == OLD

    run(main)


def test_what_is_no_rollout_is_refused_and_two_are_never_at_work_on_a_node() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world, 2)
            with pytest.raises(Invalid, match="rising percentages"):
                await roll(world, waves=[50, 50, 100])
            with pytest.raises(Invalid, match="rising percentages"):
                await roll(world, waves=[50])
            with pytest.raises(Invalid, match="changes something"):
                await roll(world, document={})
            with pytest.raises(Invalid, match="no node of manager firewalls is meant"):
                await roll(world, labels={"site": "north"})
            await roll(world, state="paused", attempt=1)
            with pytest.raises(Conflict, match=r"rollout r1 is at work on node n00 of account acme"):
                await roll(world, "r2")
            with pytest.raises(Invalid, match="attempt may only be raised"):
                await world.patch("fleet.rollout", "r1", attempt=0)
            await world.patch("fleet.rollout", "r1", state="running")
            await until_phase(world, "done")
            await roll(world, "r2", document={"rules": {"web": None}})
            with pytest.raises(Conflict, match=r"rollout r2 is at work on node n00"):
                await world.patch("fleet.rollout", "r1", state="rolled-back")
            await until_phase(world, "done", "r2")
            await world.patch("fleet.rollout", "r1", state="rolled-back")
            rollout = await until_phase(world, "rolled-back", "r1")
            assert {one.state for one in rollout.observed.results} == {"skipped"}
            assert "another rollout" in rollout.observed.results[0].message
            assert (await world.resource("fleet.node", "n00", ACCOUNT)).desired.document == OLD
            await world.patch("fleet.manager", MANAGER, state="disabled")
            with pytest.raises(Denied, match="is disabled"):
                await roll(world, "r3")

    run(main)


def test_one_that_is_deleted_stops_where_it_is_and_says_what_it_left() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            nodes = await furnish(world, 4)
            await roll(world, waves=[50, 100], settle_s=300, nodes=[node.id for node in nodes])
            await asyncio.sleep(20.0)
            await world.delete("fleet.node", "n03", ACCOUNT)
            await world.until(lambda: _gone(world, "fleet.node", "n03", ACCOUNT))
            await world.patch("fleet.rollout", "r1", state="paused")
            await world.delete("fleet.rollout", "r1")
            await world.until(lambda: _gone(world, "fleet.rollout", "r1"))
            await world.settle()
            assert [runs(world, node) == NEW for node in nodes[:3]] == [True, True, False]
            assert all(node.assigned.before is None for node in await world.store.list(Filter(kind="fleet.node")))
            answer = await world.servers[0].surface.events(world.call(), None, 0, 100)
            told = [one["message"] for one in msgspec.json.decode(answer.body)["items"] if one["reason"] == "Left"]
            assert told == ["2 of 4 nodes stay changed, 0 failed"]
            await roll(world, "r2", document={"rules": {"web": None}}, waves=[100])
            await until_phase(world, "done", "r2")

    run(main)


async def _gone(world: Cloud, kind: str, name: str, account: str = "") -> bool:
    return not await world.exists(kind, name, account)
