"""Who may write where a manager is told, and how far that may lead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cloud.fleet.fleet_world import ACME, CENTRAL, OWN, Fleet
from tests.cloud.fleet.fleet_world import fleet as made_fleet

from pileus.kernel.store import statements as sql

pytestmark = pytest.mark.anyio

PRIVATE, PUBLIC = "https://10.0.0.7/notices", "https://fleet.example.com/notices"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Managers, accounts and nodes."""
    async with made_fleet(tmp_path) as it:
        yield it


async def waiting(fleet: Fleet, manager: str) -> int:
    """Return how many notices wait for a manager."""
    return int((await fleet.world.store.fetch(sql.NOTICES, manager=fleet.ids["fleet.manager", manager]))[0][0])


async def test_only_what_an_operator_wrote_last_may_lead_inside(fleet: Fleet) -> None:
    path = f"/v1/fleet.manager/{CENTRAL}"

    async def reach(caller: str, **desired: str) -> str:
        by = fleet.operator if caller == "operator" else fleet.callers[caller]
        answer = await by("PATCH", path, {"desired": desired})
        assert answer.status == 200, answer.body
        return str(answer.json["assigned"]["reach"])

    assert await reach("operator", callback_url=PRIVATE) == "any"
    assert await reach(CENTRAL, description="ours") == "any"
    assert await reach(CENTRAL, callback_url=PUBLIC) == "public"
    assert await reach("operator", description="theirs") == "public"
    assert await reach("operator", callback_url=PUBLIC, description="same") == "public"
    refused = await fleet.callers[CENTRAL]("PATCH", path, {"desired": {"callback_url": PRIVATE}})
    assert (refused.status, refused.json["field"]) == (400, "desired.callback_url")
    own = await fleet.callers[ACME]("PATCH", f"/v1/fleet.manager/{OWN}", {"desired": {"callback_url": PUBLIC}})
    assert own.json["assigned"]["reach"] == "public"


async def test_an_authority_is_a_certificate(fleet: Fleet) -> None:
    path = f"/v1/fleet.manager/{CENTRAL}"
    for junk in ("x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ü"):
        refused = await fleet.operator("PATCH", path, {"desired": {"callback_ca": junk}})
        assert (refused.status, refused.json["field"]) == (400, "desired.callback_ca"), junk
    pem = fleet.world.authority.pem
    assert (await fleet.operator("PATCH", path, {"desired": {"callback_ca": pem}})).status == 200


async def test_notices_wait_for_managers_with_a_callback_and_go_with_it(fleet: Fleet) -> None:
    label = {"desired": {"power": "stopped"}}
    for wish, expected in (({"callback_url": PUBLIC}, 2), ({"callback_url": ""}, 0)):
        answer = await fleet.operator("PATCH", f"/v1/fleet.manager/{CENTRAL}", {"desired": wish})
        assert answer.status == 200
        for node in ("acme-1", "umbrella-1", "umbrella-2"):
            id = fleet.ids["fleet.node", node]
            assert (await fleet.operator("PATCH", f"/v1/fleet.node/{id}", label)).status == 200
        label = {"desired": {"power": "running"}}
        assert await waiting(fleet, CENTRAL) == expected
