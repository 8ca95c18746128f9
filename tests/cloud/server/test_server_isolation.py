"""Generated: every route and every field that can hold an id, with another tenant's id, answers like a missing one."""

from __future__ import annotations

import asyncio
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
from pileus.kernel.store.lists import Filter
from pileus.registry import KINDS
from pileus.server.openapi import FILTERS, openapi
from pileus.server.wiring import admissions
from pileus.storage.image.types import ImageObserved

pytestmark = pytest.mark.anyio

MINE, THEIRS = "acme", "umbrella"
UNIQUE = "only-theirs"
"""A name that only the other tenant's objects have."""
CENTRAL = "central"
"""A manager of the cloud that both tenants consented to, and its package."""
PACKAGE: dict[str, Any] = {"version": "1", "image": "tiny", "vcpus": 1, "memory_mib": 64, "nics": 0}
WISHES: dict[str, dict[str, Any]] = {
    "tenancy.user": {"role": "reader"},
    "tenancy.role": {"rules": []},
    "tenancy.key": {"user": UNIQUE},
    "tenancy.vdc": {"zone": "z"},
    "storage.image": {},
    "storage.volume": {"size_gib": 1, "vdc": "main"},
    "network.network": {"vdc": "main", "range": "10.9.0.0/24"},
    "compute.vm": {"image": "tiny", "vcpus": 1, "memory_mib": 128, "disk_gib": 1, "vdc": "main"},
    "compute.set": {"image": "tiny", "vcpus": 1, "memory_mib": 128, "count": 0, "vdc": "main"},
    "compute.request": {"image": "tiny", "vcpus": 1, "memory_mib": 128, "vdc": "main"},
    "gateway.address": {"vdc": "main"},
    "gateway.forward": {"vm": "server", "port": 22},
    "gateway.balancer": {"members": [{"vm": "server"}], "port": 80},
    "gateway.firewall": {"vdc": "main"},
    "gateway.vpn": {"mode": "remote-access", "range": "10.7.0.0/24", "vdc": "main"},
    "gateway.link": {"network": "near", "peer_network": "far"},
    "fleet.manager": {},
    "fleet.consent": {"manager": CENTRAL},
    "fleet.package": {"manager": UNIQUE, **PACKAGE},
    "fleet.node": {"manager": UNIQUE, "package": UNIQUE, "vdc": "main"},
    "fleet.request": {"node": UNIQUE, "payload": "x"},
    "fleet.rollout": {"manager": UNIQUE, "document": {"rules": {"a": 1}}},
    "monitor.monitor": {"vms": ["server"]},
    "monitor.policy": {
        "monitor": UNIQUE,
        "when": [{"field": "execution.state", "value": "hung"}],
        "do": [{"do": "restart"}],
    },
    "monitor.action": {"vm": "server", "do": [{"do": "ask"}]},
    "monitor.history": {"monitor": UNIQUE, "host": "db.example.com", "database": "d", "user": "u"},
    "monitor.signature": {"monitor": UNIQUE},
    "monitor.scan": {"signature": UNIQUE, "vm": "server"},
    "monitor.entitlement": {"product": "x", "limit": 1},
    "monitor.seat": {"entitlement": UNIQUE, "vm": "server"},
    "mirror.filter": {"expression": "tcp"},
    "mirror.sniffer": {"vm": "server"},
    "mirror.session": {"vm": UNIQUE, "filter": UNIQUE, "sniffer": UNIQUE},
}
"""What the smallest wish of each kind that an account may have says; UNIQUE: the account's own of that kind."""
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
        central: dict[str, Any] = {"fleet.manager": {}, "fleet.package": {"manager": CENTRAL, **PACKAGE}}
        for kind, wish in central.items():
            made = await world.operator("POST", f"/v1/{kind}", {"name": CENTRAL, "desired": wish})
            assert made.status == 201, made.body
        keys = {account: await world.account(account) for account in (MINE, THEIRS)}
        result = Tenants(world, world.caller(keys[MINE]))
        made = await world.operator("POST", "/v1/infra.zone", {"name": "far", "desired": ZONE})
        assert made.status == 201, made.body
        for account, name in ((MINE, "only-mine"), (THEIRS, UNIQUE)):
            caller = world.caller(keys[account])
            for kind, own, wish in (*NEEDED, *((kind, name, wish) for kind, wish in WISHES.items())):
                desired = {word: name if value == UNIQUE else value for word, value in wish.items()}
                body = {"name": own, "desired": desired}
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
            copied = KINDS["storage.snapshot"].desired(volume=result.ids[account, "storage.volume"])
            snapshot = await world.put(
                "storage.snapshot", name, copied, account_id=owner.account_id, account=account, owner=owner.account_id
            )
            result.ids[account, "storage.snapshot"] = snapshot.id
            result.ids[account, "tenancy.account"] = owner.account_id
        yield result


class Managed(Tenants):
    """A manager that one tenant consented to, in a cluster where nearly everything is not its own."""

    def __init__(self, world: World, mine: Caller) -> None:
        super().__init__(world, mine)
        self.own: set[str] = set()
        self.hidden: list[tuple[str, str, str, bool]] = []
        """Kind, id and name of what is not its own, and whether it is the consenting account's or the cloud's own."""

    def words(self, kind: str) -> set[str]:
        """Return ids and names of this kind that are not its own; no name that is part of other words."""
        return {word for other, id, name, _ in self.hidden if other == kind for word in (id, name) if len(word) > 2}


@pytest.fixture
async def managed(tenants: Tenants) -> Managed:
    """A second and a third manager of the cloud; my account consents to both, theirs to the third."""
    world = tenants.world
    callers: dict[str, Caller] = {}
    for manager in ("first", "second"):
        await _made(world.operator, "fleet.manager", manager)
        key = await _made(world.operator, "tenancy.key", f"{manager}-key", manager=manager)
        callers[manager] = world.caller(key["secret"])
    result = Managed(world, callers["first"])
    for account, manager in ((MINE, "first"), (MINE, "second"), (THEIRS, "second")):
        await _made(world.operator, "fleet.consent", f"to-{manager}", account, manager=manager)
    for manager, caller in callers.items():
        async with asyncio.timeout(5):
            while not (await caller("GET", "/v1/whoami")).json["consents"]:  # noqa: ASYNC110 - its keys follow soon
                await asyncio.sleep(0)
        image = await _made(caller, "storage.image", f"{manager}-image")
        row = await world.store.get(image["id"])
        await world.store.write(
            lambda tx, row=row: tx.update(row, observed=ImageObserved(state="available"))  # type: ignore[misc]
        )
        wish = PACKAGE | {"manager": manager, "image": f"{manager}-image"}
        await _made(caller, "fleet.package", f"{manager}-package", **wish)
        for account in (MINE, THEIRS) if manager == "second" else (MINE,):
            node = f"{manager}-node"
            await _made(caller, "fleet.node", node, account, manager=manager, package=f"{manager}-package", vdc="main")
            await _made(caller, "fleet.request", f"{manager}-request", account, node=node, payload="x")
        await _made(caller, "fleet.rollout", f"{manager}-rollout", manager=manager, document={"rules": {"a": 1}})
    first = (await world.operator("GET", "/v1/fleet.manager/first")).json["id"]
    for kind in KINDS:
        for row in await world.store.list(Filter(kind=kind.name)):
            if row.manager == first:
                result.own.add(row.id)
            else:
                result.hidden.append((kind.name, row.id, row.name, row.account in ("", MINE)))
    return result


async def _made(caller: Caller, kind: str, name: str, account: str = "", **desired: Any) -> Any:
    made = await caller("POST", f"/v1/{kind}", {"name": name, "account": account, "desired": desired})
    assert made.status == 201, (kind, name, made.body)
    return made.json


async def test_every_route_answers_a_manager_as_if_there_were_only_its_own(managed: Managed) -> None:
    for method, path, kind in item_routes():
        for word in managed.words(kind):
            for scope in ("", f"?account={MINE}"):
                answer = await managed.same(method, path + scope, word, body_for(kind, method))
                assert answer.status in (400, 401, 403, 404), (method, path, word, answer.body)
    print(f"routes compared: {managed.compared}")
    assert managed.compared > 1000


async def test_every_filter_answers_a_manager_as_if_there_were_only_its_own(managed: Managed) -> None:
    hidden = {id for _, id, _, _ in managed.hidden}
    readable = {kind.name for kind in KINDS if (await managed.mine("GET", f"/v1/{kind.name}")).status == 200}
    assert readable == {"storage.image"} | {kind.name for kind in KINDS if kind.name.startswith("fleet.")}
    account = await managed.world.operator("GET", f"/v1/tenancy.account/{THEIRS}")
    words = {word for kind in ("infra.host", "infra.zone", "tenancy.vdc", "fleet.manager", "fleet.node")
             for word in managed.words(kind)} | {account.json["id"], THEIRS, "nobody"}  # fmt: skip
    for kind in sorted(readable):
        for name, _ in FILTERS:
            if name in ("label", "limit", "watch", "since", "ready", "all_accounts", "owned", "after"):
                continue
            for word in words:
                answer = await managed.same("GET", f"/v1/{kind}?{name}={{}}", word)
                if answer.status == 200:
                    assert not hidden & {item["id"] for item in answer.json["items"]}
    print(f"filters compared: {managed.compared}")
    assert managed.compared > 500


async def test_every_list_shows_a_manager_its_own_and_nothing_else(managed: Managed) -> None:
    hidden, seen = [id for _, id, _, _ in managed.hidden], ""
    for kind in KINDS:
        for query in ("", "?all_accounts=1", "?limit=1000", f"?account={MINE}", "?owned=1"):
            seen += (await managed.mine("GET", f"/v1/{kind.name}{query}")).body.decode()
    for path in ("/v1/event?limit=1000", f"/v1/event?limit=1000&account={MINE}", "/v1/event?all_accounts=1"):
        seen += (await managed.mine("GET", path)).body.decode()
    told = {field for field in ("vm", "owner", "vdc", "zone", "account_id")}
    for item in re.findall(r'"([a-z_]+)":"([0-9a-f-]{36})"', seen):
        assert item[0] in told or item[1] not in hidden, item
    assert all(id in seen for id in managed.own)


async def test_no_reference_of_a_manager_reaches_what_is_another_managers_or_accounts(managed: Managed) -> None:
    wishes = {"storage.image": {}, "fleet.package": {"manager": "first", **PACKAGE, "image": "first-image"},
              "fleet.node": {"manager": "first", "package": "first-package"},
              "fleet.request": {"node": "first-node", "payload": "x"}, "fleet.rollout": {"manager": "first"}}  # fmt: skip
    for kind, wish in wishes.items():
        scope = f"?account={MINE}" if KINDS[kind].scope == "account" else ""
        for path, target in references(KINDS[kind].desired):
            for other, id, name, near in managed.hidden:
                is_managed = (await managed.world.store.get(id)).manager != ""
                if other != target or (near and not is_managed):
                    continue  # what the account and everybody may name, a manager may name there, too
                for word in (id, name) if name == UNIQUE else (id,):
                    body = {"name": "fresh", "desired": wish | nested(path, "{}")}
                    answer = await managed.same("POST", f"/v1/{kind}{scope}", word, body)
                    assert answer.status >= 400, (kind, path, word, answer.body)
    print(f"references compared: {managed.compared}")
    assert managed.compared >= 20


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
                own = {at: "only-mine" if value == UNIQUE else value for at, value in WISHES.get(kind.name, {}).items()}
                wish = own | nested(path, "{}")
                body = {"name": "fresh", "desired": wish}
                answers = [await tenants.same("POST", f"/v1/{kind.name}", word, body)]
                mine = tenants.ids.get((MINE, kind.name))
                if mine:
                    answers.append(await tenants.same("PUT", f"/v1/{kind.name}/{mine}", word, {"desired": wish}))
                    patch = {"desired": nested(path, "{}")}
                    answers.append(await tenants.same("PATCH", f"/v1/{kind.name}/{mine}", word, patch))
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
    assert writable == {*WISHES, "storage.snapshot"}, "a snapshot is of a volume that a host has"


async def test_a_repeated_creation_of_a_key_does_not_tell_the_secret_again(tenants: Tenants) -> None:
    user = await tenants.world.operator("GET", f"/v1/tenancy.user?account={MINE}")
    body = {"name": "robot", "account": MINE, "desired": {"user": user.json["items"][0]["name"]}}
    headers = {"idempotency-key": "a-key"}
    first = await tenants.world.operator("POST", "/v1/tenancy.key", body, headers)
    again = await tenants.world.operator("POST", "/v1/tenancy.key", body, headers)
    assert first.json["secret"].startswith("pil_")
    assert again.json["id"] == first.json["id"]
    assert "secret" not in again.json
