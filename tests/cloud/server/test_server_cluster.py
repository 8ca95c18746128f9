"""Several servers on one PostgreSQL are one cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.cloud.server.server_rig import running
from tests.postgres import postgres, postgres_url
from websockets.asyncio.client import connect

__all__ = ["postgres", "postgres_url"]

pytestmark = pytest.mark.anyio


async def test_servers_that_start_at_once_share_authority_administrator_and_agents(
    tmp_path: Path, postgres_url: str
) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    async with (
        running(first, database=postgres_url, name="one") as one,
        running(second, database=postgres_url, name="two") as two,
    ):
        assert one.started.ca == two.started.ca
        assert two.started.operator_key is None
        two.key = one.key
        assert (await two("GET", "/v1/whoami")).json["user"] == "admin"
        certificate = await one.joined(await one.host("h1"))
        url = f"wss://127.0.0.1:{two.started.port}/agent/v1/stream"
        async with connect(url, ssl=two.trust(certificate), proxy=None) as socket:
            await socket.send(b"x")
            assert await socket.recv() == b"x"


async def test_a_user_disabled_through_one_server_is_refused_by_the_other_within_five_seconds(
    tmp_path: Path, postgres_url: str
) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    async with running(first, database=postgres_url) as one, running(second, database=postgres_url) as two:
        user = {"name": "second", "desired": {"role": "operator"}}
        assert (await one("POST", "/v1/tenancy.user", user)).status == 201
        key = {"name": "second", "desired": {"user": "second"}}
        two.key = (await one("POST", "/v1/tenancy.key", key)).json["secret"]
        assert (await two("GET", "/v1/whoami")).status == 200
        await one("PATCH", "/v1/tenancy.user/second", {"desired": {"state": "disabled"}})
        async with asyncio.timeout(5):
            while (await two("GET", "/v1/whoami")).status != 401:
                pass


async def test_text_that_postgresql_cannot_hold_is_refused_and_breaks_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    async with running(tmp_path / "one", database=postgres_url) as rig:
        wishes = (
            {"name": "u", "desired": {"role": "operator\u0000"}},
            {"name": "u\u0000", "desired": {"role": "operator"}},
            {"name": "u", "desired": {"role": "operator", "email": "a\u0000b"}},
            {"name": "u", "labels": {"a\u0000": "b"}, "desired": {"role": "operator"}},
            {"name": "u", "account": "a\u0000", "desired": {"role": "operator"}},
        )
        for wish in wishes:
            answer = await rig("POST", "/v1/tenancy.user", wish)
            assert answer.status < 500, (wish, answer.body)
        for path in ("/v1/tenancy.user/a%00b", "/v1/tenancy.user?name=%00", "/v1/tenancy.user/%ff", "/v1/a%00b"):
            assert (await rig("GET", path)).status in (400, 404)
        headers = {"idempotency-key": "\u00ff\u0001"}
        assert (await rig("POST", "/v1/tenancy.user", wishes[0], headers)).status in (400, 404)
        assert (await rig("GET", "/healthz")).status == 200
