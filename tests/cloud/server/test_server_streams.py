"""Watches: what changes arrives, and a stream ends with its caller's rights or with the server."""

from __future__ import annotations

import asyncio

import pytest
from tests.cloud.server.server_world import Caller, Stream, World

from pileus.server import streams

pytestmark = pytest.mark.anyio

NETS = "/v1/network.network?watch=1"


async def test_a_watch_gives_what_is_there_then_what_changes_then_what_goes(world: World) -> None:
    call = world.caller(await world.account("acme"))
    await _network(call, "first")
    async with call.stream(NETS) as stream:
        assert await _names(stream, 1) == [("put", "first")]
        event = await stream.event()
        assert event is not None
        assert event[0] == "synced"
        await _network(call, "second")
        assert await _names(stream, 1) == [("put", "second")]
        await call("DELETE", "/v1/network.network/first")
        seen = await stream.event()
        while seen is not None and seen[0] == "put":
            seen = await stream.event()
        assert seen is not None
        assert (seen[0], seen[1]["name"]) == ("gone", "first")


async def test_a_watch_since_a_revision_gives_only_what_came_later(world: World) -> None:
    call = world.caller(await world.account("acme"))
    await _network(call, "first")
    async with call.stream(NETS) as stream:
        await _names(stream, 1)
        synced = await stream.event()
    assert synced is not None
    revision = (await call("GET", "/v1/network.network/first")).json["revision"]
    await _network(call, "second")
    async with call.stream(f"{NETS}&since={revision}") as stream:
        assert await _names(stream, 1) == [("put", "second")]


async def test_a_tenant_sees_nothing_of_another_in_a_watch(world: World) -> None:
    acme = world.caller(await world.account("acme"))
    umbrella = world.caller(await world.account("umbrella"))
    async with acme.stream(NETS) as stream, acme.stream("/v1/event?watch=1") as events:
        first = await stream.event()
        assert first is not None
        assert first[0] == "synced"
        await _network(umbrella, "theirs")
        await umbrella("DELETE", "/v1/network.network/theirs")
        await _network(acme, "mine")
        assert await _names(stream, 1) == [("put", "mine")]
        account = (await acme("GET", "/v1/whoami")).json["account_id"]
        names = set()
        while "mine" not in names:
            event = await events.event()
            assert event is not None
            assert event[1]["account_id"] == account
            names.add(event[1]["name"])


@pytest.mark.parametrize("path", ["/v1/no.kind?watch=1", "/v1/infra.host?watch=1", NETS + "&account=none"])
async def test_what_is_wrong_with_a_watch_is_an_answer_and_not_a_stream(world: World, path: str) -> None:
    call = world.caller(await world.account("acme"))
    answer = await call("GET", path)
    assert answer.status in (403, 404)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_watch_ends_when_its_user_is_disabled(world: World) -> None:
    call = world.caller(await world.account("acme"))
    async with call.stream(NETS) as stream:
        await stream.event()
        await world.operator("PATCH", "/v1/tenancy.user/boss?account=acme", {"desired": {"state": "disabled"}})
        async with asyncio.timeout(5):
            assert await stream.event() is None


async def test_a_watch_ends_when_the_server_stops(world: World) -> None:
    call = world.caller(await world.account("acme"))
    async with call.stream(NETS) as stream:
        await stream.event()
        world.parts.streams.close()
        async with asyncio.timeout(2):
            assert await stream.event() is None


async def test_one_user_cannot_hold_any_number_of_watches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "OPEN_MAX", 1)
    call = world.caller(await world.account("acme"))
    other = world.caller(await world.account("umbrella"))
    async with call.stream(NETS) as stream:
        await stream.event()
        refused = await call("GET", NETS)
        assert (refused.status, refused.code) == (429, "too-many")
        async with other.stream(NETS) as unaffected:
            assert await unaffected.event() is not None
    async with call.stream(NETS) as stream:
        assert await stream.event() is not None


async def _network(call: Caller, name: str) -> None:
    assert (await call("POST", "/v1/network.network", {"name": name, "desired": {}})).status == 201


async def _names(stream: Stream, count: int) -> list[tuple[str, str]]:
    """Return (event, name) of the next events, each resource once."""
    seen: list[tuple[str, str]] = []
    while len(seen) < count:
        event = await stream.event()
        assert event is not None
        pair = (event[0], str(event[1].get("name")))
        if pair not in seen:
            seen.append(pair)
    return seen
