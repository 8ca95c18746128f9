"""Generated: every route and every field that can hold an id, with another tenant's id, answers like a missing one."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from tests.cloud.server.server_world import Caller, Reply, World
from tests.cloud.server.server_world import world as made_world

from pileus.kernel.kind import Kind
from pileus.kernel.shape import fields
from pileus.registry import KINDS
from pileus.server.openapi import FILTERS, openapi
from pileus.server.wiring import admissions
from pileus.storage.image.types import ImageObserved

pytestmark = pytest.mark.anyio

MINE, THEIRS = "acme", "umbrella"
UNIQUE = "only-theirs"
"""A name that only the other tenant's objects have."""
WISHES: dict[str, dict[str, Any]] = {
    "tenancy.user": {"role": "reader"},
    "tenancy.role": {"rules": []},
    "tenancy.key": {"user": UNIQUE},
    "tenancy.vdc": {"zone": "z"},
    "storage.image": {},
    "storage.volume": {"size_gib": 1, "vdc": "main"},
    "network.network": {"vdc": "main", "range": "10.9.0.0/24"},
    "compute.vm": {"image": "tiny", "vcpus": 1, "memory_mib": 128, "disk_gib": 1, "vdc": "main"},
    "gateway.address": {"vdc": "main"},
    "gateway.forward": {"vm": "server", "port": 22},
    "gateway.balancer": {"members": [{"vm": "server"}], "port": 80},
    "gateway.firewall": {"vdc": "main"},
    "gateway.vpn": {"mode": "remote-access", "range": "10.7.0.0/24", "vdc": "main"},
    "gateway.link": {"network": "near", "peer_network": "far"},
}
"""What the smallest wish of each kind that an account may have says."""
ZONE = {"router": "single", "public_range": "203.0.113.0/24"}
NEAR = {"vdc": "main", "range": "10.6.0.0/24", "last": "10.6.0.99"}
FAR = {"vdc": "far", "range": "10.6.0.0/24", "gateway": "10.6.0.254", "first": "10.6.0.100", "last": "10.6.0.199"}
NEEDED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tenancy.vdc", "far", {"zone": "far"}),
    ("network.network", "near", NEAR),
    ("network.network", "far", FAR),
    ("compute.vm", "server", WISHES["compute.vm"]),
)
"""Kind, name and wish of what both accounts have for the wishes to name."""


class Tenants:
    """Two tenants with one object of each kind that an account may have."""

    def __init__(self, world: World, mine: Caller) -> None:
        self.world = world
        self.mine = mine
        self.ids: dict[tuple[str, str], str] = {}
        self.compared = 0

    async def same(self, method: str, path: str, theirs: str, body: Any = None) -> Reply:
        """Assert that ``theirs``, in path or body, is answered as an id (or name) that nobody has."""
        missing = like(theirs)
        first = await self._send(method, path.replace("{}", theirs), replaced(body, theirs))
        second = await self._send(method, path.replace("{}", missing), replaced(body, missing))
        assert first.status == second.status, (method, path, first.body, second.body)
        assert normal(first, theirs) == normal(second, missing), (method, path, first.body, second.body)
        self.compared += 1
        return first

    async def _send(self, method: str, path: str, body: Any) -> Reply:
        if path.endswith(("/console", "/connect")):
            return await self.mine.websocket(path)
        return await self.mine(method, path, body)


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[Tenants]:
    """A cluster with the program's own admissions, and its two tenants."""
    async with made_world(tmp_path, admissions()) as world:
        for kind, name, wish in (("infra.zone", "z", ZONE), ("infra.pod", "p", {}), ("infra.host", "h", {})):
            made = await world.operator("POST", f"/v1/{kind}", {"name": name, "desired": wish})
            assert made.status == 201, made.body
        image = await world.operator("POST", "/v1/storage.image", {"name": "tiny", "desired": {}})
        tiny = await world.store.get(image.json["id"])
        await world.store.write(lambda tx: tx.update(tiny, observed=ImageObserved(state="available")))
        keys = {account: await world.account(account) for account in (MINE, THEIRS)}
        result = Tenants(world, world.caller(keys[MINE]))
        made = await world.operator("POST", "/v1/infra.zone", {"name": "far", "desired": ZONE})
        assert made.status == 201, made.body
        for account, name in ((MINE, "only-mine"), (THEIRS, UNIQUE)):
            caller = world.caller(keys[account])
            for kind, own, wish in (*NEEDED, *((kind, name, wish) for kind, wish in WISHES.items())):
                body = {"name": own, "desired": wish | ({"user": name} if "user" in wish else {})}
                sender = caller if kind != "tenancy.vdc" else world.operator
                made = await sender("POST", f"/v1/{kind}?account={account}", body)
                assert made.status == 201, (kind, made.body)
                result.ids[account, kind] = made.json["id"]
        for account, name in ((MINE, "only-mine"), (THEIRS, UNIQUE)):
            network = result.ids[account, "network.network"]
            owner = await world.store.get(network)
            port = KINDS["network.port"].desired(network=network)
            made_port = await world.put(
                "network.port", name, port, account_id=owner.account_id, account=account, owner=network
            )
            result.ids[account, "network.port"] = made_port.id
            result.ids[account, "tenancy.account"] = owner.account_id
        yield result


async def test_every_route_answers_another_tenants_id_as_a_missing_one(tenants: Tenants) -> None:
    for method, path, kind in item_routes():
        theirs = tenants.ids.get((THEIRS, kind))
        for word in (theirs, UNIQUE) if theirs else ():
            await tenants.same(method, path, word, body_for(kind, method))
    print(f"routes compared: {tenants.compared}")
    assert tenants.compared > 100


async def test_every_filter_answers_another_tenants_id_as_a_missing_one(tenants: Tenants) -> None:
    theirs = {id for (account, _), id in tenants.ids.items() if account == THEIRS}
    for kind in KINDS:
        for name, _ in FILTERS:
            if name in ("label", "limit", "watch", "since", "ready", "all_accounts"):
                continue
            for word in (*theirs, UNIQUE, THEIRS):
                answer = await tenants.same("GET", f"/v1/{kind.name}?{name}={{}}", word)
                if answer.status == 200:
                    assert not theirs & {item["id"] for item in answer.json["items"]}
    for path in ("/v1/event?account={}", "/v1/audit?account={}"):
        for word in (tenants.ids[THEIRS, "tenancy.account"], THEIRS):
            await tenants.same("GET", path, word)
    print(f"filters compared: {tenants.compared}")
    assert tenants.compared > 500


async def test_every_reference_in_a_wish_answers_another_tenants_id_as_a_missing_one(tenants: Tenants) -> None:
    for kind in KINDS:
        for path, target in references(kind.desired):
            id = tenants.ids.get((THEIRS, target))
            for word in (id, UNIQUE) if id else ():
                wish = WISHES.get(kind.name, {}) | nested(path, "{}")
                body = {"name": "fresh", "desired": wish}
                answers = [await tenants.same("POST", f"/v1/{kind.name}", word, body)]
                own = tenants.ids.get((MINE, kind.name))
                if own:
                    answers.append(await tenants.same("PUT", f"/v1/{kind.name}/{own}", word, {"desired": wish}))
                    patch = {"desired": nested(path, "{}")}
                    answers.append(await tenants.same("PATCH", f"/v1/{kind.name}/{own}", word, patch))
                for answer in answers:
                    assert answer.status >= 400, (kind.name, path, answer.body)
    print(f"references compared: {tenants.compared}")
    assert tenants.compared >= 20


async def test_the_account_in_a_body_answers_another_tenants_as_a_missing_one(tenants: Tenants) -> None:
    for kind in KINDS:
        body = {"name": "fresh", "account": "{}", "desired": WISHES.get(kind.name, {})}
        for word in (tenants.ids[THEIRS, "tenancy.account"], THEIRS):
            assert (await tenants.same("POST", f"/v1/{kind.name}", word, body)).status >= 400


async def test_no_list_shows_anything_of_another_tenant(tenants: Tenants) -> None:
    theirs = {id for (account, _), id in tenants.ids.items() if account == THEIRS}
    for kind in KINDS:
        for more in ("", "?all_accounts=1", "?limit=1000"):
            answer = await tenants.mine("GET", f"/v1/{kind.name}{more}")
            assert not any(id in answer.body.decode() for id in theirs), (kind.name, more)
    for path in ("/v1/event?limit=1000", "/v1/audit?limit=1000", "/v1/event?all_accounts=1&limit=1000"):
        text = (await tenants.mine("GET", path)).body.decode()
        assert not any(id in text for id in theirs), path


async def test_what_is_ones_own_is_found_so_the_comparison_means_something(tenants: Tenants) -> None:
    for kind in WISHES:
        answer = await tenants.mine("GET", f"/v1/{kind}/{tenants.ids[MINE, kind]}")
        assert answer.status == 200, answer.body


async def test_a_refused_write_leaves_no_trace_in_another_tenants_audit(tenants: Tenants) -> None:
    account = tenants.ids[THEIRS, "tenancy.account"]
    before = (await tenants.world.operator("GET", f"/v1/audit?account={THEIRS}&limit=1000")).json["items"]
    forged = {"name": "x", "account_id": account, "id": tenants.ids[THEIRS, "compute.vm"], "account": THEIRS}
    assert (await tenants.mine("POST", "/v1/network.network", forged)).status >= 400
    assert (await tenants.mine("PATCH", "/v1/network.network/none", forged)).status >= 400
    after = (await tenants.world.operator("GET", f"/v1/audit?account={THEIRS}&limit=1000")).json["items"]
    assert [entry["seq"] for entry in after] == [entry["seq"] for entry in before]


async def test_an_idempotency_key_is_each_callers_own(tenants: Tenants) -> None:
    body = {"name": "fresh", "desired": {"vdc": "main", "range": "10.8.0.0/24"}}
    headers = {"idempotency-key": "the-same"}
    first = await tenants.mine("POST", "/v1/network.network", body, headers)
    other = tenants.world.caller(await tenants.world.user(THEIRS, "second", "owner"))
    second = await other("POST", "/v1/network.network", body, headers)
    assert first.json["id"] != second.json["id"]
    assert second.json["account"] == THEIRS


def item_routes() -> Iterator[tuple[str, str, str]]:
    """Yield (method, path with {} for the ident, kind) of every documented route that names a resource."""
    for path, item in openapi(KINDS)["paths"].items():
        if "{ident}" in path:
            for method in set(item) - {"parameters"}:
                for part in ("disk", "kernel", "initrd") if "{part}" in path else ("",):
                    concrete = path.replace("{ident}", "{}").replace("{part}", part)
                    yield method.upper(), concrete, path.split("/")[2]


def body_for(kind: str, method: str) -> Any:
    """Return a body that is right for the kind, so that only the id can be what is wrong."""
    wish = WISHES.get(kind, {})
    return {"PUT": {"desired": wish}, "PATCH": {"labels": {"a": "b"}}}.get(method)


def references(struct: type[Struct], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path, kind) of every reference in a section; ``*`` stands for an element of a list."""
    for field in fields(struct).values():
        here = (*path, field.name, *(["*"] if field.many else []))
        if field.ref:
            yield here, field.ref
        elif field.struct is not None:
            yield from references(field.struct, here)


def nested(path: tuple[str, ...], value: Any) -> Any:
    """Return the JSON in which ``path`` leads to ``value``."""
    for step in reversed(path):
        value = [value] if step == "*" else {step: value}
    return value


def replaced(body: Any, word: str) -> Any:
    """Return the body with every {} replaced."""
    return (
        None if body is None else msgspec.json.decode(msgspec.json.encode(body).replace(b'"{}"', f'"{word}"'.encode()))
    )


def like(word: str) -> str:
    """Return a word of the same form and order that names nothing."""
    try:
        return str(uuid.UUID(word))[:-6] + "fffffe"
    except ValueError:
        return word[:-1] + "q"


def normal(answer: Reply, word: str) -> str:
    """Return the answer's body without what must differ: the word asked for, request id, revision."""
    text = answer.body.decode().replace(word, "WORD")
    return re.sub(r'"(request_id|revision)":("[^"]*"|\d+)', "", text)


def test_the_kinds_that_accounts_have_are_all_here() -> None:
    accounts: list[Kind] = [kind for kind in KINDS if kind.scope != "cluster" and kind.created_by == "user"]
    writable = {kind.name for kind in accounts if kind.writable_by == "tenant" or kind.scope == "account"}
    assert writable == set(WISHES)


async def test_a_repeated_creation_of_a_key_does_not_tell_the_secret_again(tenants: Tenants) -> None:
    user = await tenants.world.operator("GET", f"/v1/tenancy.user?account={MINE}")
    body = {"name": "robot", "account": MINE, "desired": {"user": user.json["items"][0]["name"]}}
    headers = {"idempotency-key": "a-key"}
    first = await tenants.world.operator("POST", "/v1/tenancy.key", body, headers)
    again = await tenants.world.operator("POST", "/v1/tenancy.key", body, headers)
    assert first.json["secret"].startswith("pil_")
    assert again.json["id"] == first.json["id"]
    assert "secret" not in again.json
