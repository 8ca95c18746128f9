"""Payloads and answers of requests to nodes: bytes in, bytes out, for those who may and no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.server.server_rig import running
from tests.cloud.server.server_world import Caller, World, world

from pileus.agent.connection import Connector
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.fleet.request.types import ANSWER, PAYLOAD, RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.errors import Transient
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.server import payloads
from pileus.server.wiring import admissions

pytestmark = pytest.mark.anyio

LARGE = os.urandom(3 << 20)
DIGEST = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[World]:
    """A server with the admissions of the real one."""
    async with world(tmp_path, admissions()) as made:
        yield made


async def _owner(place: World, account: str) -> Caller:
    made = await place.operator("POST", "/v1/tenancy.account", {"name": account})
    assert made.status == 201, made.body
    wish = {"name": "owner", "desired": {"rules": [{"kinds": ["*"], "verbs": ["get", "create", "update", "delete"]}]}}
    await place.operator("POST", "/v1/tenancy.role", wish)
    return place.caller(await place.user(account, "boss", "owner"))


async def _node(place: World, account: str) -> Resource:
    found = await place.store.find("tenancy.account", "", account)
    assert found is not None
    desired = NodeDesired(manager="m")
    assigned = NodeAssigned(zone="", vdc="", manager="")
    columns: dict[str, Any] = {"account_id": found.id, "account": account, "owner": found.id}
    return await place.put("fleet.node", "node", desired, assigned=assigned, **columns)


async def _request(place: World, call: Caller, **desired: Any) -> str:
    made = await call("POST", "/v1/fleet.request", {"desired": {"node": "node", **desired}})
    assert made.status == 201, made.body
    return str(made.json["id"])


async def test_an_upload_is_kept_whole_and_given_back(place: World) -> None:
    call = await _owner(place, "acme")
    await _node(place, "acme")
    id = await _request(place, call, upload="yes")
    path = f"/v1/fleet.request/{id}/payload"
    assert (await call("GET", path)).code == "no-payload"
    for _ in range(2):
        answer = await call("PUT", path, [LARGE[:1000], LARGE[1000:]], {"x-content-sha256": DIGEST})
        assert answer.status == 200, answer.body
        assert answer.json["assigned"]["payload_sha256"] == DIGEST
        assert answer.headers["x-content-sha256"] == DIGEST
    assert (await call("GET", path)).body == LARGE
    assert (await call("PUT", path, b"other")).code == "already-uploaded"
    entries = (await place.operator("GET", "/v1/audit?account=acme")).json["items"]
    assert any(entry["verb"] == "upload" and entry["id"] == id for entry in entries)


async def test_a_wrong_digest_and_a_too_long_payload_keep_nothing(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "PAYLOAD_BYTES_MAX", 1000)
    call = await _owner(place, "acme")
    await _node(place, "acme")
    path = f"/v1/fleet.request/{await _request(place, call, upload='yes')}/payload"
    assert (await call("PUT", path, b"x", {"x-content-sha256": "0" * 64})).code == "digest-mismatch"
    assert (await call("PUT", path, b"x" * 1001)).status == 413
    assert (await call("PUT", path, [b"x" * 600] * 2)).status == 413
    assert (await call("GET", path)).code == "no-payload"


async def test_an_inline_payload_is_given_as_bytes_and_takes_no_upload(place: World) -> None:
    call = await _owner(place, "acme")
    await _node(place, "acme")
    path = f"/v1/fleet.request/{await _request(place, call, payload='ä')}/payload"
    assert (await call("GET", path)).body == "ä".encode()
    assert (await call("PUT", path, b"x")).code == "already-uploaded"


async def test_an_answer_is_given_byte_for_byte(place: World) -> None:
    call = await _owner(place, "acme")
    await _node(place, "acme")
    id = await _request(place, call)
    path = f"/v1/fleet.request/{id}/answer"
    assert (await call("GET", path)).code == "not-settled"
    await _settle(place, id, RequestObserved(state="applied", answer="/wA=", encoding="base64", answer_bytes=2))
    assert (await call("GET", path)).body == b"\xff\x00"
    await _settle(place, id, RequestObserved(state="applied", answer_bytes=len(LARGE)), LARGE)
    assert (await call("GET", path)).body == LARGE


async def _settle(place: World, id: str, observed: RequestObserved, body: bytes = b"") -> None:
    async def write(tx: Transaction) -> None:
        found = await tx.get(id)
        assigned: RequestAssigned = found.assigned
        if body:
            await tx.put_content(found, ANSWER, body)
        settled = RequestAssigned(manager="", node=assigned.node, deadline=assigned.deadline, settled_at=1.0)
        await tx.update(found, observed=observed, assigned=settled)

    await place.store.write(write)


async def test_another_accounts_payload_and_answer_are_like_none(place: World) -> None:
    call, stranger = await _owner(place, "acme"), await _owner(place, "other")
    await _node(place, "acme")
    id = await _request(place, call, payload="secret")
    for method, part in (("GET", "payload"), ("PUT", "payload"), ("GET", "answer")):
        answer = await stranger(method, f"/v1/fleet.request/{id}/{part}", b"x" if method == "PUT" else None)
        assert (answer.status, answer.code) == (404, "not-found")
    assert (await place.caller()("GET", f"/v1/fleet.request/{id}/payload")).status == 401


async def test_a_host_fetches_only_what_its_slice_has(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        one, two = await rig.host("h1"), await rig.host("h2")
        desired, assigned = (
            RequestDesired(node="n", upload="yes"),
            RequestAssigned(manager="", node="", deadline=1.0, host=one),
        )
        store = rig.started.parts.store

        async def write(tx: Transaction) -> Resource:
            made = await tx.create(Resource(id="", kind="fleet.request", name="r", desired=desired, assigned=assigned))
            await tx.put_content(made, PAYLOAD, LARGE)
            return made

        made = await store.write(write)
        url = f"https://127.0.0.1:{rig.started.port}"
        first, second = [Connector(url, rig.trust(await rig.joined(host))) for host in (one, two)]
        assert b"".join([part async for part in first.content(made.id, PAYLOAD)]) == LARGE
        for connector, id, part in ((second, made.id, PAYLOAD), (first, made.id, ANSWER), (first, one, PAYLOAD)):
            with pytest.raises(Transient, match="404"):
                await anext(connector.content(id, part))
        assert (await rig("GET", f"/agent/v1/content/{made.id}/{PAYLOAD}")).status == 401
