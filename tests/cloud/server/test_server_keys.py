"""Who may call: keys good, wrong, expired, disabled; and the first administrator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cloud.server.server_world import Caller, Reply, World

from pileus.kernel.clock import iso
from pileus.server.auth import ensure_operator, replace_operator_key

pytestmark = pytest.mark.anyio


async def test_a_key_says_who_calls(world: World) -> None:
    key = await world.account("acme")
    said = (await world.caller(key)("GET", "/v1/whoami")).json
    assert (said["user"], said["account"], said["role"]) == ("boss", "acme", "owner")
    assert (await world.operator("GET", "/v1/whoami")).json["account"] == ""


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Basic cGlsX3g6eA==",
        "Bearer pil_" + "A" * 40,
        "Bearer pil_" + "A" * 41,
    ],
)
async def test_a_wrong_key_is_refused_with_a_problem(world: World, header: str) -> None:
    answer = await world.caller()("GET", "/v1/compute.vm", headers={"authorization": header} if header else {})
    assert answer.status == 401
    assert answer.code == "unauthenticated"
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_is_refused_after_its_expiry_and_the_message_says_so(world: World) -> None:
    await world.account("acme")
    ends = iso(world.clock.now + 60)
    secret = (await world.key("acme", "boss", expires_at=ends)).json["secret"]
    caller = world.caller(secret)
    assert (await caller("GET", "/v1/whoami")).status == 200
    world.clock.now += 61
    refused = await caller("GET", "/v1/whoami")
    assert refused.status == 401
    assert ends in refused.json["detail"]
    assert "pileus create key" in refused.json["detail"]


async def test_a_deleted_key_stops_within_a_second(world: World) -> None:
    await world.account("acme")
    made = await world.key("acme", "boss")
    caller = world.caller(made.json["secret"])
    assert (await caller("GET", "/v1/whoami")).status == 200
    deleted = await world.operator("DELETE", f"/v1/tenancy.key/{made.json['id']}")
    assert deleted.status == 202
    await _refused_soon(caller)


async def test_a_disabled_user_is_refused_within_a_second_and_let_in_again_when_enabled(world: World) -> None:
    key = await world.account("acme")
    caller = world.caller(key)
    assert (await caller("GET", "/v1/whoami")).status == 200
    await world.operator("PATCH", "/v1/tenancy.user/boss?account=acme", {"desired": {"state": "disabled"}})
    refused = await _refused_soon(caller)
    assert "disabled" in refused
    await world.operator("PATCH", "/v1/tenancy.user/boss?account=acme", {"desired": {"state": "active"}})
    await _soon(caller, lambda answer: answer.status == 200)


async def test_a_changed_role_counts_within_a_second(world: World) -> None:
    await world.account("acme")
    caller = world.caller(await world.user("acme", "reader", "reader"))
    wish = {"name": "pause", "desired": {}}
    assert (await caller("POST", "/v1/network.network", wish)).status == 403
    await world.operator("PATCH", "/v1/tenancy.user/reader?account=acme", {"desired": {"role": "member"}})
    await _soon(caller, lambda answer: answer.json["role"] == "member")


async def test_only_hashes_of_keys_are_in_the_database(world: World) -> None:
    await world.account("acme")
    secret = (await world.key("acme", "boss")).json["secret"]
    content = b"".join(path.read_bytes() for path in _database_files(world))
    assert secret.encode() not in content
    assert world.operator_key.encode() not in content


async def test_the_first_administrator_is_made_once_and_cannot_come_back_unasked(world: World) -> None:
    assert await ensure_operator(world.store) is None
    admin = (await world.operator("GET", "/v1/tenancy.user/admin")).json
    key = next(
        item
        for item in (await world.operator("GET", "/v1/tenancy.key")).json["items"]
        if item["desired"]["user"] == "admin"
    )
    spare = world.caller(await world.user("", "second", "operator"))
    assert (await spare("DELETE", f"/v1/tenancy.key/{key['id']}")).status == 202
    await _refused_soon(world.operator)
    assert await ensure_operator(world.store) is None
    again = world.caller(await replace_operator_key(world.store))
    assert (await again("GET", "/v1/tenancy.user/admin")).json["id"] == admin["id"]


async def test_addresses_and_identity_come_from_the_connection_and_not_from_headers(world: World) -> None:
    spoofed = {
        "x-forwarded-for": "203.0.113.9",
        "x-real-ip": "203.0.113.9",
        "x-user": "admin",
        "x-pileus-account": "umbrella",
        "x-client-cert": "anything",
        "x-request-id": "chosen-by-the-caller",
    }
    key = await world.account("acme")
    made = await world.caller(key)("POST", "/v1/network.network", {"name": "a", "desired": {}}, spoofed)
    assert made.headers["x-request-id"] != "chosen-by-the-caller"
    entries = (await world.operator("GET", "/v1/audit?account=acme")).json["items"]
    entry = next(entry for entry in entries if entry["kind"] == "network.network")
    assert (entry["address"], entry["actor"]) == ("192.0.2.7", "boss")
    assert (await world.caller()("GET", "/v1/compute.vm", headers=spoofed)).status == 401
    assert (await world.caller()("POST", "/agent/v1/renew", {"csr": ""}, spoofed)).status == 401


async def _refused_soon(caller: Caller) -> str:
    return str((await _soon(caller, lambda answer: answer.status == 401)).json["detail"])


async def _soon(caller: Caller, wanted: Callable[[Reply], bool]) -> Reply:
    async with asyncio.timeout(1):
        while True:
            answer = await caller("GET", "/v1/whoami")
            if wanted(answer):
                return answer
            await asyncio.sleep(0)


def _database_files(world: World) -> list[Path]:
    folder = world.parts.images.path("00000000-0000-7000-8000-000000000000", "disk").parents[2]
    return list(folder.glob("pileus.db*"))
