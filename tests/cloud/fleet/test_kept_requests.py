"""Settled requests are forgotten in their time, whatever else there is."""

from __future__ import annotations

import asyncio

import pytest
from tests.cloud.fleet.requests_world import ACCOUNT, ask, furnish, settled
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.fleet.request import controller


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
