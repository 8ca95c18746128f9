"""What managers are told, on a simulated cloud: everything, in order, whatever happens to callback and server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from tests.cloud.fleet.requests_world import ACCOUNT, MANAGER, ask, furnish, settled
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.fleet.manager.controller import AT_ONCE, TURNS_OF_ACCOUNT_MAX
from pileus.fleet.manager.types import ManagerObserved
from pileus.fleet.request.types import RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.errors import Transient
from pileus.kernel.kind import Resource
from pileus.kernel.outbound import TIMEOUT_S, Poster, Reach
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction

URL = "https://fleet.example.com/notices"


class Callback:
    """A receiver that notes what it took, and refuses when told to."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.tried: list[str] = []
        self.opened: list[tuple[Reach, str]] = []
        self.is_down = False
        self.hanging = self.hanging_most = 0
        """Messages to other addresses, which never answer: now, and at the same time."""
        self.refused: set[str] = set()
        """Nodes of which it takes nothing."""

    @contextlib.asynccontextmanager
    async def open(self, reach: Reach, ca: str) -> AsyncIterator[Poster]:
        self.opened.append((reach, ca))
        yield self

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        if url != URL:
            self.hanging += 1
            self.hanging_most = max(self.hanging, self.hanging_most)
            await asyncio.sleep(TIMEOUT_S)
            self.hanging -= 1
            raise Transient("no answer")
        told = msgspec.json.decode(body)
        self.tried.append(told["node"])
        if self.is_down:
            raise Transient("no connection")
        if told["node"] in self.refused:
            return 500
        self.taken.append((headers["webhook-id"], told))
        return 204

    def requests(self, node: str = "") -> list[str]:
        """Return the names of requests that it was told of."""
        return [
            told["request_name"]
            for _, told in self.taken
            if told["type"] == "request.settled" and node in ("", told["node"])
        ]


@contextlib.asynccontextmanager
async def told_cloud(nodes: int = 1) -> AsyncIterator[tuple[Cloud, Callback, list[str]]]:
    """Give a cloud whose manager has a callback, and the ids of nodes that are ready."""
    callback = Callback()
    async with cloud(seed=1) as world:
        world.outbound = callback
        await world.stop_server()
        await world.start_server()
        made = [node.id for node in await furnish(world, nodes)]
        await world.patch("fleet.manager", MANAGER, callback_url=URL)
        await world.settle()
        yield world, callback, made


async def waiting(world: Cloud) -> int:
    """Return how many notices wait."""
    manager = await world.resource("fleet.manager", MANAGER)
    return int((await world.store.fetch(sql.NOTICES, manager=manager.id))[0][0])


async def report(world: Cloud) -> ManagerObserved:
    """Return what people are shown of the callback."""
    observed: ManagerObserved = (await world.resource("fleet.manager", MANAGER)).observed
    return observed


def test_each_end_of_a_request_is_told_once_and_in_order_with_its_answer() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, (node,)):
            for number in range(6):
                await ask(world, "node0", f"do {number}", name=f"r{number}")
            for number in range(6):
                assert await settled(world, f"r{number}") == "applied"
            await world.settle()
            assert callback.requests(node) == [f"r{number}" for number in range(6)]
            id, told = next(each for each in callback.taken if each[1]["type"] == "request.settled")
            assert id.startswith("msg_")
            made = await world.get("fleet.request", "r0", ACCOUNT)
            assert (told["account"], told["request"], told["data"]["state"]) == (ACCOUNT, made["id"], "applied")
            assert told["data"]["answer"] == made["observed"]["answer"]
            assert "payload" not in told["data"]
            assert await waiting(world) == 0
            assert len({id for id, _ in callback.taken}) == len(callback.taken)
            assert (await report(world)).webhook_key.startswith("whpk_")

    run(main)


def test_a_managers_without_callback_have_nothing_written() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, _):
            await world.patch("fleet.manager", MANAGER, callback_url="")
            callback.taken.clear()
            await ask(world, "node0", "x", name="r")
            await settled(world, "r")
            await world.settle()
            assert (callback.taken, await waiting(world)) == ([], 0)

    run(main)


def test_a_callback_that_was_down_for_ten_minutes_gets_all_in_order() -> None:
    async def main() -> None:
        async with told_cloud(2) as (world, callback, nodes):
            callback.is_down = True
            callback.tried.clear()
            for number in range(20):
                await ask(world, f"node{number % 2}", f"{number}", name=f"r{number}")
            for number in range(20):
                await settled(world, f"r{number}")
            await world.until(lambda: is_shown(world), 600.0)
            for _ in range(600):
                await world.settle(1.0)
            assert await waiting(world) >= 20
            shown = await report(world)
            assert (shown.message, shown.waiting >= 20) == ("no connection", True)
            condition = (await world.get("fleet.manager", MANAGER))["conditions"][0]
            assert (condition["status"], condition["reason"]) == ("false", "CallbackFails")
            assert len(callback.tried) < 40, "it is tried at most about once a minute"
            callback.is_down = False
            await world.until(lambda: is_empty(world), 90.0)
            assert callback.requests(nodes[0]) == [f"r{number}" for number in range(0, 20, 2)]
            assert callback.requests(nodes[1]) == [f"r{number}" for number in range(1, 20, 2)]
            await world.settle()
            assert (await report(world)).failing_since == ""
            assert (await world.get("fleet.manager", MANAGER))["conditions"][0]["status"] == "true"

    run(main)


async def is_shown(world: Cloud) -> bool:
    """Tell whether people see that the callback fails."""
    return bool((await report(world)).failing_since)


async def is_empty(world: Cloud) -> bool:
    """Tell whether nothing waits."""
    return await waiting(world) == 0


def test_a_node_whose_notices_are_refused_holds_up_no_other() -> None:
    async def main() -> None:
        async with told_cloud(2) as (world, callback, nodes):
            callback.refused = {nodes[0]}
            for number in range(4):
                await ask(world, f"node{number % 2}", "x", name=f"r{number}")
            for number in range(4):
                await settled(world, f"r{number}")
            await world.settle()
            assert callback.requests() == ["r1", "r3"]
            callback.refused = set()
            await world.until(lambda: is_empty(world), 90.0)
            assert callback.requests(nodes[0]) == ["r0", "r2"]

    run(main)


def test_of_a_nodes_states_only_the_newest_waits() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, (node,)):
            callback.is_down = True
            for power in ("stopped", "running", "stopped"):
                await world.patch("fleet.node", "node0", ACCOUNT, power=power)
                await world.settle(30.0)
            assert await waiting(world) == 1
            callback.is_down = False
            callback.taken.clear()
            await world.until(lambda: is_empty(world), 90.0)
            (_, told), *_ = callback.taken
            assert (told["type"], told["node"], told["data"]["power"]) == ("node.changed", node, "stopped")
            await world.delete("fleet.node", "node0", ACCOUNT)
            await world.settle()
            assert callback.taken[-1][1]["type"] == "node.deleted"

    run(main)


def test_nothing_is_told_once_the_consent_is_withdrawn() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, _):
            callback.is_down = True
            await ask(world, "node0", "x", name="before")
            await settled(world, "before")
            await world.delete("fleet.consent", MANAGER, ACCOUNT)
            await world.settle()
            assert await waiting(world) == 0
            callback.is_down = False
            callback.taken.clear()
            await ask(world, "node0", "x", name="after")
            await settled(world, "after")
            await world.until(lambda: is_empty(world), 90.0)
            assert callback.taken == []

    run(main)


def test_a_server_that_ends_at_any_time_loses_nothing() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, (node,)):
            for number in range(12):
                await ask(world, "node0", "x", name=f"r{number}")
                await world.stop_server()
                await world.start_server()
            for number in range(12):
                await settled(world, f"r{number}", 600.0)
            await world.until(lambda: is_empty(world), 90.0)
            seen: dict[str, str] = {}
            for id, told in callback.taken:
                if told["type"] == "request.settled":
                    seen.setdefault(id, told["request_name"])
            assert list(seen.values()) == [f"r{number}" for number in range(12)]
            assert {told["node"] for _, told in callback.taken} == {node}

    run(main)


def test_a_disabled_manager_is_told_when_it_is_active_again() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, _):
            await world.patch("fleet.manager", MANAGER, state="disabled")
            await world.settle()
            callback.taken.clear()
            await world.patch("fleet.node", "node0", ACCOUNT, document={"a": {"b": {}}})
            await world.settle()
            assert callback.taken == []
            await world.patch("fleet.manager", MANAGER, state="active")
            await world.until(lambda: is_empty(world), 90.0)
            assert callback.taken[-1][1]["data"]["hash"] == callback.taken[-1][1]["data"]["wished_hash"]

    run(main)


def test_callbacks_of_an_account_that_hang_hold_up_no_others() -> None:
    async def main() -> None:
        async with told_cloud() as (world, callback, _):
            await world.create("tenancy.account", "slow")
            for number in range(100):
                await world.create("fleet.manager", f"slow{number}", "slow", callback_url="https://slow.example.com/")
            await world.settle()
            managers = [await world.resource("fleet.manager", f"slow{number}", "slow") for number in range(100)]
            for manager in managers:
                await world.store.write(lambda tx, it=manager: ended(tx, it))  # type: ignore[misc]
            callback.taken.clear()
            begun = clock()
            await ask(world, "node0", "x", name="r")
            await settled(world, "r")
            await world.until(lambda: is_told(callback), 5.0)
            assert clock() - begun < 5.0
            assert callback.hanging > 0
            for _ in range(30):
                await asyncio.sleep(1.0)
            assert callback.hanging_most <= TURNS_OF_ACCOUNT_MAX * AT_ONCE

    run(main)


async def is_told(callback: Callback) -> bool:
    """Tell whether the end of a request came."""
    return bool(callback.requests())


async def ended(tx: Transaction, manager: Resource) -> None:
    """Write a request of the manager's own account that ended."""
    await tx.create(
        Resource(
            id="",
            kind="fleet.request",
            name=f"of-{manager.name}",
            account_id=manager.account_id,
            account=manager.account,
            desired=RequestDesired(node="n"),
            assigned=RequestAssigned(manager=manager.id, node=manager.id, deadline=0.0, settled_at=tx.now),
            observed=RequestObserved(state="applied"),
        )
    )
