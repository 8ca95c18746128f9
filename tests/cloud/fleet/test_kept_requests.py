"""Requests do not outlast what they stand on: settled ones their time, a manager's the account's consent."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.cloud.fleet.requests_world import ACCOUNT, MANAGER, ask, furnish, settled, state_of
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.fleet.request import controller
from pileus.kernel.access import Principal
from pileus.tenancy.role.types import MANAGER as RIGHTS


def test_requests_that_wait_for_their_payload_keep_no_settled_one_from_being_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller, "KEPT_S", 60.0)
    monkeypatch.setattr(controller, "PAGE", 2)

    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            for name in ("waits1", "waits2", "waits3"):
                await world.create("fleet.request", name, ACCOUNT, node="node0", upload="yes")
            await ask(world, "node0", name="done")
            await settled(world, "done")
            await asyncio.sleep(61.0)
            await ask(world, "node0", name="fresh")
            await controller.wake_kept(world.store)
            await world.settle()
            left = {one["name"] for one in await world.list("fleet.request")}
            assert left == {"waits1", "waits2", "waits3", "fresh"}

    run(main)


async def ask_as_manager(world: Cloud, name: str, **fields: str) -> None:
    account = await world.resource("tenancy.account", ACCOUNT)
    manager = await world.resource("fleet.manager", MANAGER)
    caller = Principal(
        user_id=manager.id, user=MANAGER, account_id="", account="", role="manager", rules=RIGHTS.rules,
        manager_id=manager.id, consents=frozenset({account.id}),
    )  # fmt: skip
    body = msgspec.json.encode({"name": name, "desired": {"node": "node0", **fields}})
    await world.servers[0].surface.create(world.call(ACCOUNT, caller), "fleet.request", body)


@pytest.mark.parametrize("withdrawal", ["deleted", "narrowed"])
def test_what_a_manager_asked_for_is_not_begun_after_the_consent_went(withdrawal: str) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            (node,) = await furnish(world)
            await world.patch("fleet.node", "node0", ACCOUNT, power="stopped")
            await world.settle()
            for number in range(6):
                await ask_as_manager(world, f"theirs{number}")
            await ask_as_manager(world, "long", upload="yes")
            await ask(world, "node0", "x", name="ours")
            await world.settle()
            if withdrawal == "deleted":
                await world.delete("fleet.consent", MANAGER, ACCOUNT)
            else:
                await world.patch("fleet.consent", MANAGER, ACCOUNT, allows=["create", "configure"])
            await world.settle()
            assert await world.exists("fleet.consent", MANAGER, ACCOUNT) == (withdrawal == "narrowed")
            assert await state_of(world, "theirs5") == "withdrawn", "no host ever had it"
            assert await state_of(world, "long") == "withdrawn"
            await world.patch("fleet.node", "node0", ACCOUNT, power="running")
            assert await settled(world, "ours") == "applied"
            assert {await settled(world, f"theirs{number}") for number in range(6)} == {"withdrawn"}
            applied = world.hosts[node.host].guests.nodes[node.assigned.vm].applied
            assert len(applied) == 1

    run(main)
