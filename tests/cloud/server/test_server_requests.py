"""What the edge makes of requests: problems, limits, idempotency, dry runs, headers, logs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from openapi_spec_validator import validate
from tests.cloud.server.server_world import World

from pileus.kernel.store import statements as sql
from pileus.registry import KINDS
from pileus.server import bodies, logs
from pileus.server.edge import REFUSED_PER_S

pytestmark = pytest.mark.anyio

NET: dict[str, Any] = {"name": "front", "desired": {}}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the server logs."""
    stream = io.StringIO()
    logs.set_up(stream)
    yield stream
    structlog.reset_defaults()


async def test_a_resource_lives_through_all_verbs(world: World) -> None:
    call = world.caller(await world.account("acme"))
    made = await call("POST", "/v1/network.network", NET | {"labels": {"tier": "web"}})
    assert made.status == 201
    id, revision = made.json["id"], made.json["revision"]
    assert (await call("GET", "/v1/network.network/front")).json["id"] == id
    assert [item["id"] for item in (await call("GET", "/v1/network.network?label=tier=web")).json["items"]] == [id]
    patched = await call("PATCH", f"/v1/network.network/{id}", {"labels": {"tier": None, "x": "y"}})
    assert patched.json["labels"] == {"x": "y"}
    stale = await call("PUT", f"/v1/network.network/{id}", {"desired": {}, "revision": revision})
    assert (stale.status, stale.code) == (409, "stale-revision")
    assert (await call("DELETE", "/v1/network.network/front")).status == 202
    events = (await call("GET", "/v1/event")).json["items"]
    assert {event["account_id"] for event in events} == {made.json["account_id"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "not-found"),
        ("GET", "/v1/no.kind", None, 404, "unknown-kind"),
        ("GET", "/v1/network.network/none", None, 404, "not-found"),
        ("PUT", "/v1/network.network", None, 405, "method-not-allowed"),
        ("POST", "/healthz", None, 405, "method-not-allowed"),
        ("POST", "/v1/network.network", b"{", 400, "not-json"),
        ("POST", "/v1/network.network", b"\xff\xfe{}", 400, "not-json"),
        ("POST", "/v1/network.network", b"[" * 100_000, 400, "invalid"),
        ("POST", "/v1/network.network", b'{"name":"n","desired":' + b"[" * 90_000, 400, "not-json"),
        ("POST", "/v1/network.network", b'{"name":"\\ud800","desired":{}}', 400, "not-json"),
        ("POST", "/v1/network.network", {"name": "UPPER", "desired": {}}, 400, "invalid"),
        ("POST", "/v1/network.network", {"name": "n\x00", "desired": {}}, 400, "invalid"),
        ("POST", "/v1/network.network", NET | {"colour": "red"}, 400, "invalid"),
        ("POST", "/v1/network.network", NET | {"desired": {"colour": "red"}}, 400, "unknown-field"),
        ("POST", "/v1/network.network?dryrun=1", NET, 400, "unknown-parameter"),
        ("POST", "/v1/network.network?dry_run=maybe", NET, 400, "invalid"),
        ("GET", "/v1/network.network?limit=0", None, 400, "invalid"),
        ("GET", "/v1/network.network?limit=1001", None, 400, "invalid"),
        ("GET", "/v1/network.network?limit=5&limit=6", None, 400, "invalid"),
        ("GET", "/v1/network.network?ready=maybe", None, 400, "invalid"),
        ("GET", "/v1/network.network?label=tier", None, 400, "invalid"),
        ("GET", "/v1/network.network?name=a%00b", None, 400, "invalid"),
        ("GET", "/v1/network.network/a%00b", None, 400, "invalid"),
        ("GET", "/v1/network.network?watch=1&since=-1", None, 400, "invalid"),
        ("GET", "/v1/network.network/none/usage", None, 404, "not-found"),
        ("GET", "/v1/compute.vm/none/log", None, 404, "not-found"),
        ("PUT", "/v1/storage.image/none/disk", b"x", 404, "not-found"),
        ("PUT", "/v1/storage.image/none/../../etc", b"x", 404, "not-found"),
    ],
)
async def test_every_refusal_is_a_problem(
    world: World, method: str, path: str, body: Any, status: int, code: str
) -> None:
    call = world.caller(await world.account("acme"))
    answer = await call(method, path, body)
    assert (answer.status, answer.code) == (status, code), answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["type"] == f"urn:pileus:error:{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_a_defect_of_ours_tells_the_caller_only_the_request_id(world: World, lines: io.StringIO) -> None:
    await world.store.engine.close()
    answer = await world.operator("GET", "/v1/whoami")
    assert answer.status == 500
    assert answer.code == "bug"
    assert "sqlite" not in answer.body.decode().lower()
    assert answer.json["request_id"] in lines.getvalue()
    await world.store.engine.open()


async def test_a_repeated_idempotency_key_gets_the_first_answer_and_another_body_is_refused(world: World) -> None:
    call = world.caller(await world.account("acme"))
    headers = {"idempotency-key": "try-1"}
    first = await call("POST", "/v1/network.network", NET, headers)
    second = await call("POST", "/v1/network.network", NET, headers)
    assert first.status == second.status == 201
    assert first.body == second.body
    other = await call("POST", "/v1/network.network", NET | {"name": "back"}, headers)
    assert (other.status, other.code) == (409, "idempotency-key-used")
    assert len((await call("GET", "/v1/network.network")).json["items"]) == 1


async def test_a_dry_run_leaves_nothing(world: World) -> None:
    call = world.caller(await world.account("acme"))
    answer = await call("POST", "/v1/network.network?dry_run=1", NET)
    assert answer.status == 200
    assert answer.json["resource"]["name"] == "front"
    assert answer.json["decisions"] == []
    assert (await call("GET", "/v1/network.network")).json["items"] == []


async def test_a_body_over_the_limit_is_refused_announced_or_not(world: World) -> None:
    call = world.caller(await world.account("acme"))
    announced = await call("POST", "/v1/network.network", b"{}", {"content-length": str(bodies.JSON_BYTES_MAX + 1)})
    streamed = await call("POST", "/v1/network.network", [b"x" * 300_000] * 4)
    lied = await call("POST", "/v1/network.network", b"{}", {"content-length": "many"})
    assert (announced.status, streamed.status) == (413, 413)
    assert announced.code == streamed.code == "too-large"
    assert lied.status == 400


@pytest.mark.parametrize(
    ("text", "status"),
    [(rb"a\u0000", 400), (rb"a\\\u0000", 400), (rb"a\\u0000", 201), (rb"a\\\\u0000", 201)],
)
async def test_an_escaped_nul_is_refused_and_a_text_about_one_is_not(world: World, text: bytes, status: int) -> None:
    wish = b'{"name":"acme","desired":{"description":"%b"}}' % text
    assert (await world.operator("POST", "/v1/tenancy.account", wish)).status == status


async def test_pages_of_other_sites_are_refused(world: World) -> None:
    other = await world.operator("GET", "/v1/whoami", headers={"origin": "https://evil.example"})
    own = await world.operator("GET", "/v1/whoami", headers={"origin": "https://127.0.0.1:7443"})
    assert (other.status, other.code) == (403, "other-origin")
    assert own.status == 200


async def test_every_answer_has_the_security_headers(world: World) -> None:
    for path in ("/v1", "/nothing", "/v1/compute.vm"):
        headers = (await world.caller()("GET", path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_the_version_needs_no_key_and_lists_every_kind(world: World) -> None:
    said = (await world.caller()("GET", "/v1")).json
    assert {kind["name"] for kind in said["kinds"]} == {kind.name for kind in KINDS}
    assert "watch" in said["features"]
    assert (await world.caller()("GET", "/healthz")).json == {"status": "ok"}


async def test_the_openapi_document_is_valid_and_has_every_kind(world: World) -> None:
    document = (await world.caller()("GET", "/schema")).json
    validate(document)
    for kind in KINDS:
        assert f"/v1/{kind.name}" in document["paths"]
    ids = [
        operation["operationId"]
        for path in document["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(ids) == len(set(ids))


async def test_every_documented_path_is_served(world: World) -> None:
    document = (await world.caller()("GET", "/schema")).json
    for path, item in document["paths"].items():
        if path.endswith(("/stream", "/console", "/connect", "/packets")):
            continue
        for method in set(item) - {"parameters"}:
            concrete = path.replace("{ident}", "none").replace("{part}", "disk").replace("{image}", "none")
            answer = await world.operator(method.upper(), concrete, b"{}")
            assert answer.status != 405, (method, path)
            assert b"nothing at this path" not in answer.body, (method, path)


async def test_what_callers_send_cannot_forge_a_log_record(world: World, lines: io.StringIO) -> None:
    nasty = 'a\r\n{"event":"forged"}\x1b[2J\u202e' + "z" * 100_000
    await world.operator("GET", "/v1/network.network/" + nasty)
    await world.operator(
        "POST", "/v1/network.network?account=x", {"name": nasty, "desired": {}}, {"user-agent": "b\x1b"}
    )
    text = lines.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert {record["event"] for record in records} == {"request"}
    assert max(len(line) for line in text.splitlines()) < 5_000


async def test_no_secret_reaches_the_log(world: World, lines: io.StringIO) -> None:
    await world.account("acme")
    secret = (await world.key("acme", "boss")).json["secret"]
    call = world.caller(secret)
    await call("GET", f"/v1/compute.vm?account={secret}")
    await call("GET", f"/v1/compute.vm?{secret}=1")
    await call("GET", "/v1/whoami", headers={"x-key": secret})
    assert secret not in lines.getvalue()


async def test_a_flood_without_identity_fills_no_log_and_no_audit(world: World, lines: io.StringIO) -> None:
    caller = world.caller()
    for number in range(500):
        assert (await caller("GET", f"/v1/compute.vm/{number}")).status == 401
    assert len(lines.getvalue().splitlines()) <= 2 * (REFUSED_PER_S + 1) + 1
    assert await world.store.fetch(sql.AUDIT_ACCOUNT, account_id="none", n=10) == []


async def test_usage_and_counters_of_a_host(world: World) -> None:
    host = await world.put("infra.host", "h1", _host_desired())
    await world.store.write(lambda tx: tx.set_capacity(f"{host.id}/vcpus", 16))
    limits = (await world.operator("GET", "/v1/infra.host/h1/usage")).json["limits"]
    assert {"name": "vcpus", "used": 0, "capacity": 16} in limits
    assert (await world.operator("GET", "/v1/infra.host/h1/counters")).json == {"at": None, "counters": {}}


def _host_desired() -> Any:
    return KINDS["infra.host"].desired()
