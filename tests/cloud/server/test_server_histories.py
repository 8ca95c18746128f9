"""Entries of histories that are pulled: who reads them, who makes the cloud forget them, and what is not done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.server.server_world import Caller, World, world

from pileus.kernel.transaction import Transaction
from pileus.server.wiring import admissions

pytestmark = pytest.mark.anyio

MAY = {
    "keeper": [{"kinds": ["*"], "verbs": ["get", "update"]}],
    "looker": [{"kinds": ["*"], "verbs": ["get"]}],
    "blind": [{"kinds": ["monitor.history"], "verbs": ["get", "update"]}],
    "nobody": [],
}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[World]:
    """A server with the admissions of the real one, and two accounts with a history of eight entries each."""
    async with world(tmp_path, admissions()) as made:
        for role, rules in MAY.items():
            answer = await made.operator("POST", "/v1/tenancy.role", {"name": role, "desired": {"rules": rules}})
            assert answer.status == 201, answer.body
        for account in ("acme", "other"):
            await made.operator("POST", "/v1/tenancy.account", {"name": account})
            await _history(made, account)
        yield made


async def _history(place: World, account: str) -> None:
    for kind, desired in (("monitor", {}), ("history", {"monitor": "h", "form": "sqlite"})):
        body = {"name": "h", "account": account, "desired": desired}
        made = await place.operator("POST", f"/v1/monitor.{kind}", body)
        assert made.status == 201, made.body
    stream = made.json["id"]

    async def note(tx: Transaction) -> None:
        for number in range(8):
            await tx.note(stream, "state", json.dumps({"vm": "vm-1", "number": number}))

    await place.store.write(note)


async def _caller(place: World, account: str, role: str) -> Caller:
    return place.caller(await place.user(account, f"{account}-{role}", role))


def _numbers(page: Any) -> list[int]:
    return [item["body"]["number"] for item in page["items"]]


async def test_who_may_read_and_who_may_take(place: World) -> None:
    path = "/v1/monitor.history/h/entries"
    allowed = {"keeper": (200, 200), "looker": (200, 403), "blind": (403, 200), "nobody": (403, 403)}
    callers = {role: await _caller(place, "acme", role) for role in allowed}
    for role, (read, take) in allowed.items():
        call = callers[role]
        assert (await call("GET", path)).status == read, role
        assert (await call("DELETE", f"{path}?until=1")).status == take, role
    stranger = await _caller(place, "other", "keeper")
    page = (await stranger("GET", path)).json
    mine = (await callers["looker"]("GET", path)).json
    assert page["stream"] != mine["stream"], "by name, each has its own"
    elsewhere = f"/v1/monitor.history/{mine['stream']}/entries"
    for answer in (await stranger("GET", elsewhere), await stranger("DELETE", f"{elsewhere}?until=9")):
        assert (answer.status, answer.code) == (404, "not-found")
    assert (await place.caller("")("GET", path)).status == 401
    assert _numbers(mine) == list(range(8))


async def test_what_is_taken_is_forgotten_once_and_stands_in_the_audit_log(place: World) -> None:
    call = await _caller(place, "acme", "keeper")
    path = "/v1/monitor.history/h/entries"
    first = (await call("GET", f"{path}?limit=3")).json
    assert (_numbers(first), first["taken"], first["dropped"]) == ([0, 1, 2], 0, 0)
    last = first["items"][-1]["seq"]
    for _ in range(2):
        answer = await call("DELETE", f"{path}?until={last}")
        assert (answer.json["observed"]["waiting"], answer.json["assigned"]["taken"]) == (5, last)
    rest = (await call("GET", path)).json
    assert (_numbers(rest), rest["taken"]) == ([3, 4, 5, 6, 7], last)
    assert _numbers((await call("GET", f"{path}?after={rest['items'][2]['seq']}")).json) == [6, 7]
    assert (await call("DELETE", f"{path}?until={2**40}")).json["assigned"]["taken"] == rest["items"][-1]["seq"]
    entries = (await place.operator("GET", "/v1/audit?account=acme")).json["items"]
    assert [entry["actor"] for entry in entries if entry["verb"] == "take"] == ["acme-keeper"] * 3


async def test_long_entries_come_a_few_at_once_and_nonsense_is_refused(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pileus.monitor.history.controller.BATCH_CHARS", 60)
    call = await _caller(place, "acme", "keeper")
    path = "/v1/monitor.history/h/entries"
    assert _numbers((await call("GET", path)).json) == [0, 1]
    for wrong in ("?after=-1", "?limit=501", "?until=1", "?after=x"):
        assert (await call("GET", f"{path}{wrong}")).status == 400
    for wrong in ("", "?until=0", "?until=x", f"?until={2**63}"):
        assert (await call("DELETE", f"{path}{wrong}")).status == 400
    assert (await call("POST", path)).status == 405
