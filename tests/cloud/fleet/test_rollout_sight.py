"""Rollouts of managers, tenants and operators: whose nodes are meant, and who knows of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.fleet.fleet_world import ACME, CENTRAL, OWN, SECOND, UMBRELLA, Fleet, soon
from tests.cloud.fleet.fleet_world import fleet as made_fleet
from tests.cloud.server.server_world import Caller, Reply

pytestmark = pytest.mark.anyio

PAUSED: dict[str, Any] = {"document": {"rules": {"web": 80}}, "state": "paused"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Managers, accounts and nodes."""
    async with made_fleet(tmp_path) as it:
        yield it


async def roll(caller: Caller, name: str, manager: str, **wish: Any) -> Reply:
    return await caller("POST", "/v1/fleet.rollout", {"name": name, "desired": {"manager": manager, **PAUSED, **wish}})


def meant(answer: Reply) -> list[str]:
    assert answer.status == 201, answer.body
    return [one["name"] for one in answer.json["observed"]["results"]]


async def test_a_manager_means_its_own_nodes_of_accounts_that_consent_and_no_tenant_knows(fleet: Fleet) -> None:
    made = await roll(fleet.callers[CENTRAL], "r1", CENTRAL)
    assert meant(made) == ["acme-1", "umbrella-1"]
    assert meant(await roll(fleet.callers[SECOND], "r2", SECOND)) == ["umbrella-2"]
    assert meant(await roll(fleet.callers[OWN], "r3", OWN)) == ["acme-2"]
    path = f"/v1/fleet.rollout/{made.json['id']}"
    for caller in (fleet.callers[ACME], fleet.callers[UMBRELLA], fleet.callers[SECOND], fleet.callers[OWN]):
        assert (await caller("GET", path)).status == 404
        assert (await caller("PATCH", path, {"desired": {"state": "running"}})).status == 404
        assert (await caller("DELETE", path)).status == 404
    assert await fleet.names(fleet.callers[CENTRAL], "fleet.rollout") == ["r1"]
    assert await fleet.names(fleet.callers[UMBRELLA], "fleet.rollout") == []
    assert await fleet.names(fleet.callers[ACME], "fleet.rollout") == ["r3"], "of the account's own manager"
    assert (await fleet.callers[CENTRAL]("DELETE", path)).status == 202


async def test_nobody_means_nodes_of_others(fleet: Fleet) -> None:
    assert (await roll(fleet.callers[SECOND], "r1", CENTRAL)).status == 400
    others = fleet.ids["fleet.node", "umbrella-1"]
    assert (await roll(fleet.callers[SECOND], "r1", SECOND, nodes=[others])).status == 400
    assert (await roll(fleet.callers[ACME], "r1", CENTRAL, nodes=[others])).status == 400
    package = fleet.ids["fleet.package", f"{SECOND}-package"]
    refused = await roll(fleet.operator, "r1", CENTRAL, package=package)
    assert refused.status == 400
    assert "is not of manager" in refused.body.decode()


async def test_a_tenant_means_its_own_nodes_and_only_it_changes_that_rollout(fleet: Fleet) -> None:
    made = await roll(fleet.callers[ACME], "mine", CENTRAL)
    assert meant(made) == ["acme-1"]
    path = f"/v1/fleet.rollout/{made.json['id']}"
    manager = fleet.callers[CENTRAL]
    assert (await manager("GET", path)).status == 200
    assert (await manager("PATCH", path, {"desired": {"state": "running"}})).status == 403
    assert (await manager("DELETE", path)).status == 403
    refused = await roll(manager, "theirs", CENTRAL)
    assert refused.status == 409
    assert "rollout mine is at work on node acme-1 of account acme" in refused.body.decode()
    assert meant(await roll(manager, "theirs", CENTRAL, accounts=[UMBRELLA])) == ["umbrella-1"]
    refused = await roll(fleet.callers[UMBRELLA], "own", CENTRAL)
    assert "another rollout is at work on node umbrella-1" in refused.body.decode()
    assert (await fleet.callers[ACME]("PATCH", path, {"desired": {"state": "running"}})).status == 200


async def test_an_account_that_withdrew_is_not_meant(fleet: Fleet) -> None:
    await fleet.withdraw(ACME, CENTRAL)
    await soon(fleet.operator, f"/v1/fleet.consent?account={ACME}", lambda said: not said.json["items"])
    assert meant(await roll(fleet.operator, "r1", CENTRAL)) == ["umbrella-1"]
    assert meant(await roll(fleet.callers[ACME], "mine", CENTRAL)) == ["acme-1"]
