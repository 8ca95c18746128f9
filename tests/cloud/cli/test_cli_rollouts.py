"""Rollouts by the CLI: progress per wave, how it ends, a table of the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from pileus.cli.failure import OK, REFUSED, TIMED_OUT
from pileus.fleet.node.types import NodeAssigned, NodeDesired, NodeObserved
from pileus.fleet.package.types import PackageAssigned, PackageDesired
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
else:
    Cloud = Run = Any

ROLL = ("--document", '{"rules": {"web": {"port": 80}}}', "--settle-s", "0", "--waves", "25,100", "--wait")


class Nodes:
    """Four nodes that run what is wished as soon as it is; those in ``bad`` refuse it."""

    def __init__(self, store: Store, account: str) -> None:
        self.store, self.account = store, account
        self.bad: set[str] = set()

    async def make(self) -> None:
        account = await self.store.find("tenancy.account", "", self.account)
        manager = await self.store.find("fleet.manager", account.id if account else "", "fw")
        assert account is not None
        assert manager is not None
        own: dict[str, Any] = {"account": account.name, "account_id": account.id, "owner": account.id}
        package = Resource(
            id="", kind="fleet.package", name="fw-1", desired=PackageDesired(manager="fw", version="1"),
            assigned=PackageAssigned(manager=manager.id), **own,
        )  # fmt: skip

        async def write(tx: Transaction) -> None:
            made = await tx.create(package)
            assigned = NodeAssigned(zone="", vdc="", manager=manager.id, package=made.id, host="somewhere")
            for name in ("n0", "n1", "n2", "n3"):
                desired = NodeDesired(manager="fw")
                await tx.create(
                    Resource(id="", kind="fleet.node", name=name, desired=desired, assigned=assigned, **own),
                    {"package": made.id},
                )

        await self.store.write(write)

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            for node in await self.store.list(Filter(kind="fleet.node")):
                observed = NodeObserved(state="ready", hash=node.assigned.hash)
                if node.name in self.bad:
                    observed = replace(observed, hash="", problem=Problem(reason="NodeRefused", message="no room"))
                if (observed, node.generation) != (node.observed, node.observed_generation):
                    await self.store.write(lambda tx, node=node, observed=observed: _tell(tx, node, observed))  # type: ignore[misc]


async def _tell(tx: Transaction, node: Resource, observed: NodeObserved) -> None:
    current = await tx.get(node.id)
    if current.revision == node.revision:
        await tx.update(current, observed=observed, observed_generation=node.generation)
        if node.assigned.before is not None:
            await tx.enqueue(node.assigned.before.rollout)


@pytest.fixture
def nodes(cloud: Cloud, pileus: Run, account: str) -> Iterator[Nodes]:
    assert pileus("create", "manager", "fw", "--account", account).code == OK
    made = Nodes(cloud.started.parts.store, account)
    asyncio.run_coroutine_threadsafe(made.make(), cloud.loop).result(10)
    following = asyncio.run_coroutine_threadsafe(made.follow(), cloud.loop)
    yield made
    following.cancel()


def test_a_rollout_is_waited_for_described_and_turned(pileus: Run, account: str, nodes: Nodes) -> None:
    own = ("--account", account)
    ran = pileus("create", "rollout", "r1", *own, "--manager", "fw", *ROLL)
    assert (ran.code, ran.out) == (OK, f"rollout r1 of account {account} is ready\n"), ran.err
    sheet = pileus("describe", "rollout", "r1", *own).out
    assert "results[" not in sheet
    assert [line.split()[:4] for line in sheet.splitlines() if account in line and "  n" in line][:2] == [
        ["n0", account, "1", "done"],
        ["n1", account, "2", "done"],
    ]
    listed = pileus("get", "rollout", *own).out.split()
    assert {"PHASE", "DONE", "FAILED", "TOTAL", "done"} <= set(listed)
    ran = pileus("patch", "rollout", "r1", *own, "--state", "rolled-back", "--wait")
    assert ran.code == OK, ran.err
    assert pileus("get", "rollout", "r1", *own, "-o", "json").json["observed"]["phase"] == "rolled-back"


def test_one_that_fails_ends_the_command_with_the_reason_and_goes_on_after_repair(
    pileus: Run, account: str, nodes: Nodes
) -> None:
    own = ("--account", account)
    nodes.bad.add("n2")
    ran = pileus("create", "rollout", "r1", *own, "--manager", "fw", "--on-failure", "pause", *ROLL)
    assert ran.code == REFUSED
    assert f"1 of 4 nodes failed: n2 of {account}: no room" in ran.err
    sheet = pileus("describe", "rollout", "r1", *own).out
    assert f"pileus patch rollout r1 --account {account} --attempt 1" in sheet
    nodes.bad.clear()
    ran = pileus("patch", "rollout", "r1", *own, "--attempt", "1", "--wait")
    assert ran.code == OK, ran.err


def test_one_that_is_paused_says_how_far_it_is(pileus: Run, account: str, nodes: Nodes) -> None:
    own = ("--account", account)
    made = pileus("create", "rollout", "r1", *own, "--manager", "fw", "--state", "paused", *ROLL, "--timeout", "2")
    assert made.code == TIMED_OUT
    assert "Paused: wave 1 of 2, 0 of 4 nodes are changed" in made.err
    assert pileus("patch", "rollout", "r1", *own, "--state", "running", "--wait").code == OK
