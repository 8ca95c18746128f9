"""Managers as callers: what is their own in accounts that consented, and nothing else; the same for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.fleet.fleet_world import ACME, CENTRAL, NODES, OWN, SECOND, UMBRELLA, Fleet, soon
from tests.cloud.fleet.fleet_world import fleet as made_fleet
from tests.cloud.server.server_world import Caller, Stream

from pileus.fleet.package.types import PackageAssigned, PackageDesired
from pileus.registry import KINDS

pytestmark = pytest.mark.anyio

READ = ("storage.image", "fleet.manager", "fleet.consent", "fleet.package", "fleet.node", "fleet.request",
        "fleet.rollout")  # fmt: skip
MINE = {name: [node for node, _, manager in NODES if manager == name] for name in (CENTRAL, SECOND, OWN)}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Managers, accounts and nodes."""
    async with made_fleet(tmp_path) as it:
        yield it


async def put_event(stream: Stream) -> tuple[str, dict[str, Any]]:
    """Return the next event of a stream that goes on."""
    event = await stream.event()
    assert event is not None
    return event


async def test_a_key_of_a_manager_says_so_and_names_the_accounts_that_consented(fleet: Fleet) -> None:
    said = (await fleet.callers[CENTRAL]("GET", "/v1/whoami")).json
    assert (said["user"], said["manager"], said["account"], said["role"]) == ("", CENTRAL, "", "manager")
    assert len(said["consents"]) == 2
    said = (await fleet.callers[OWN]("GET", "/v1/whoami")).json
    assert (said["manager"], said["account"], said["consents"]) == (OWN, ACME, [])
    assert (await fleet.callers[ACME]("GET", "/v1/whoami")).json["manager"] == ""


@pytest.mark.parametrize("manager", [CENTRAL, SECOND, OWN])
async def test_each_manager_sees_its_own_by_the_same_calls_and_nothing_else(fleet: Fleet, manager: str) -> None:
    caller = fleet.callers[manager]
    assert await fleet.names(caller, "fleet.node") == sorted(MINE[manager])
    assert await fleet.names(caller, "fleet.request") == sorted(MINE[manager])
    assert await fleet.names(caller, "fleet.package") == [f"{manager}-package"]
    assert await fleet.names(caller, "storage.image") == [f"{manager}-image"]
    assert await fleet.names(caller, "fleet.manager") == [manager]
    assert set(await fleet.names(caller, "fleet.consent")) <= {manager}
    for kind in KINDS:
        answer = await caller("GET", f"/v1/{kind.name}?limit=1000")
        assert answer.status == (200 if kind.name in READ else 403), (kind.name, answer.body)
    for node, _, holder in NODES:
        id = fleet.ids["fleet.node", node]
        for path in ("", "/events", "/counters"):
            answer = await caller("GET", f"/v1/fleet.node/{id}{path}")
            assert answer.status == (200 if holder == manager else 404), answer.body


async def test_an_account_is_a_scope_for_managers_that_it_consented_to(fleet: Fleet) -> None:
    assert await fleet.names(fleet.callers[CENTRAL], "fleet.node", f"?account={ACME}") == ["acme-1"]
    assert await fleet.names(fleet.callers[CENTRAL], "fleet.node", f"?account={UMBRELLA}") == ["umbrella-1"]
    assert await fleet.names(fleet.callers[SECOND], "fleet.node", f"?account={UMBRELLA}") == ["umbrella-2"]
    assert await fleet.names(fleet.callers[OWN], "fleet.node", f"?account={ACME}") == ["acme-2"]
    by_name = await fleet.callers[CENTRAL]("GET", f"/v1/fleet.node/acme-1?account={ACME}")
    assert by_name.json["id"] == fleet.ids["fleet.node", "acme-1"]
    for manager, account in ((SECOND, ACME), (OWN, UMBRELLA)):
        refused = await fleet.callers[manager]("GET", f"/v1/fleet.node?account={account}")
        missing = await fleet.callers[manager]("GET", "/v1/fleet.node?account=nobody")
        assert (refused.status, refused.json["detail"].replace(account, "nobody")) == (404, missing.json["detail"])


async def test_lists_of_users_are_filtered_by_manager(fleet: Fleet) -> None:
    assert await fleet.names(fleet.operator, "fleet.node", f"?manager={CENTRAL}&all_accounts=1") == sorted(
        MINE[CENTRAL]
    )
    assert await fleet.names(fleet.callers[ACME], "fleet.node", f"?manager={CENTRAL}") == ["acme-1"]
    assert await fleet.names(fleet.callers[ACME], "fleet.node") == ["acme-1", "acme-2"]
    assert (await fleet.callers[CENTRAL]("GET", f"/v1/fleet.node?manager={SECOND}")).status == 404


async def test_a_manager_changes_its_own_only(fleet: Fleet) -> None:
    mine, theirs = fleet.ids["fleet.node", "umbrella-1"], fleet.ids["fleet.node", "umbrella-2"]
    caller, label = fleet.callers[CENTRAL], {"labels": {"a": "b"}}
    assert (await caller("PATCH", f"/v1/fleet.node/{mine}", label)).json["labels"] == {"a": "b"}
    dry = await caller("PATCH", f"/v1/fleet.node/{mine}", {"desired": {"power": "stopped"}})
    assert dry.status == 200, dry.body
    for method, body in (("PATCH", label), ("DELETE", None)):
        assert (await caller(method, f"/v1/fleet.node/{theirs}", body)).status == 404
    assert (await caller("DELETE", f"/v1/fleet.node/{mine}")).status == 202
    assert (await caller("PATCH", f"/v1/fleet.manager/{CENTRAL}", {"desired": {"description": "ours"}})).status == 200
    assert (await caller("PATCH", f"/v1/fleet.manager/{SECOND}", label)).status == 404
    assert (await caller("DELETE", f"/v1/fleet.manager/{CENTRAL}")).status == 403
    assert (await caller("DELETE", f"/v1/fleet.consent/{CENTRAL}?account={ACME}")).status == 403
    assert (await caller("POST", "/v1/tenancy.key", {"name": "k", "desired": {"manager": CENTRAL}})).status == 403


async def test_a_manager_creates_where_it_may(fleet: Fleet) -> None:
    wish = {"manager": CENTRAL, "package": f"{CENTRAL}-package"}
    caller = fleet.callers[CENTRAL]
    nowhere = await caller("POST", "/v1/fleet.node", {"name": "new", "desired": wish})
    assert (nowhere.status, nowhere.json["field"]) == (400, "account")
    for account in ("nobody", OWN):
        missing = await caller("POST", "/v1/fleet.node", {"name": "new", "account": account, "desired": wish})
        assert missing.status == 404
    dry = await caller("POST", f"/v1/fleet.node?account={ACME}&dry_run=1", {"name": "new", "desired": wish})
    assert (dry.status, dry.json["resource"]["account"]) == (200, ACME), dry.body
    node = fleet.ids["fleet.node", "acme-1"]
    by_id = await caller("POST", "/v1/fleet.request", {"name": "new", "desired": {"node": node, "payload": "x"}})
    assert (by_id.status, by_id.json["account"]) == (201, ACME), by_id.body
    other = fleet.ids["fleet.node", "umbrella-2"]
    not_mine = await caller("POST", "/v1/fleet.request", {"name": "new", "desired": {"node": other, "payload": "x"}})
    nobodys = await caller(
        "POST", "/v1/fleet.request", {"name": "new", "desired": {"node": other[:-6] + "fffffe", "payload": "x"}}
    )
    assert not_mine.json["detail"] == nobodys.json["detail"]
    assert (not_mine.status, nobodys.status) == (400, 400)
    elsewhere = await caller("POST", f"/v1/storage.image?account={ACME}", {"name": "new", "desired": {}})
    assert elsewhere.status == 400
    own = await fleet.callers[OWN]("POST", "/v1/storage.image", {"name": "new", "desired": {}})
    assert (own.status, own.json["account"]) == (201, ACME)


async def test_a_manager_makes_no_node_of_a_vm_that_is_the_accounts(fleet: Fleet) -> None:
    agent = {"commands": [{"name": "shell", "path": "/bin/sh"}]}
    package: dict[str, Any] = {"manager": CENTRAL, "version": "q", "channel": "qga", "guest_agent": agent, "nics": 0}
    await fleet.make(fleet.callers[CENTRAL], "fleet.package", "guests", **package)
    await fleet.image(fleet.callers[ACME], "disk")
    vm: dict[str, Any] = {"image": "disk", "vcpus": 1, "memory_mib": 64, "nics": []}
    id = await fleet.make(fleet.callers[ACME], "compute.vm", "ledger", **vm)
    wish = {"manager": CENTRAL, "package": "guests", "vm": id}
    taken = await fleet.callers[CENTRAL]("POST", "/v1/fleet.node", {"name": "taken", "account": ACME, "desired": wish})
    assert (taken.status, taken.json["code"]) == (403, "not-yours"), taken.body
    given = await fleet.callers[ACME]("POST", "/v1/fleet.node", {"name": "given", "desired": wish})
    assert given.status == 201, given.body


async def test_what_a_manager_does_is_in_the_tenants_audit_under_its_name(fleet: Fleet) -> None:
    entries = (await fleet.callers[ACME]("GET", "/v1/audit?limit=1000")).json["items"]
    done = {(entry["actor"], entry["verb"], entry["kind"], entry["name"]) for entry in entries}
    assert (f"manager {CENTRAL}", "create", "fleet.node", "acme-1") in done
    assert ("boss", "create", "fleet.consent", CENTRAL) in done
    assert not any("umbrella" in name for _, _, _, name in done)
    assert (await fleet.callers[CENTRAL]("GET", "/v1/audit")).status == 403


async def test_an_idempotency_key_is_each_managers_own(fleet: Fleet) -> None:
    headers = {"idempotency-key": "the-same"}
    ids = []
    for manager in (CENTRAL, SECOND, CENTRAL):
        answer = await fleet.callers[manager]("POST", "/v1/storage.image", {"name": f"{manager}-more"}, headers)
        assert answer.status == 201, answer.body
        ids.append(answer.json["id"])
    assert ids[0] == ids[2] != ids[1]


async def test_an_answer_that_was_given_before_is_out_of_sight_with_the_consent(fleet: Fleet) -> None:
    caller, headers = fleet.callers[CENTRAL], {"idempotency-key": "again"}
    wish = {"name": "again", "desired": {"node": "acme-1", "payload": "x"}}
    first, second = [await caller("POST", f"/v1/fleet.request?account={ACME}", wish, headers) for _ in range(2)]
    assert first.json["id"] == second.json["id"]
    await fleet.withdraw(ACME, CENTRAL)
    third = await caller("POST", f"/v1/fleet.request?account={ACME}", wish, headers)
    assert (third.status, first.json["id"] in third.body.decode()) == (404, False)


async def test_a_name_of_the_account_does_not_hide_the_managers_own(fleet: Fleet) -> None:
    house: dict[str, Any] = {
        "manager": OWN,
        "version": "2",
        "vcpus": 1,
        "memory_mib": 64,
        "nics": 0,
        "image": f"{OWN}-image",
    }
    await fleet.make(fleet.callers[OWN], "fleet.package", f"{CENTRAL}-package", **house)
    found = await fleet.callers[CENTRAL]("GET", f"/v1/fleet.package/{CENTRAL}-package?account={ACME}")
    assert (found.status, found.json["account"]) == (200, "")
    wish = {"name": "same", "account": ACME, "desired": {"manager": CENTRAL, "package": f"{CENTRAL}-package"}}
    assert (await fleet.callers[CENTRAL]("POST", "/v1/fleet.node", wish)).status == 201


async def test_a_withdrawn_consent_takes_everything_out_of_sight_at_once_and_nodes_run_on(fleet: Fleet) -> None:
    caller, node = fleet.callers[CENTRAL], fleet.ids["fleet.node", "acme-1"]
    async with caller.stream("/v1/fleet.node?watch=1") as stream:
        while (event := await put_event(stream))[0] != "synced":
            pass
        since = int(event[1].get("revision", 0)) or (await fleet.world.store.get(node)).revision
        await fleet.withdraw(ACME, CENTRAL)
        assert await stream.event() is None, "the watch ends: its caller may see less"
    assert await fleet.names(caller, "fleet.node") == ["umbrella-1"]
    assert (await caller("GET", f"/v1/fleet.node/{node}")).status == 404
    assert (await caller("PATCH", f"/v1/fleet.node/{node}", {"labels": {}})).status == 404
    assert (await caller("DELETE", f"/v1/fleet.node/{node}")).status == 404
    assert (await caller("GET", f"/v1/fleet.node?account={ACME}")).status == 404
    assert node not in (await caller("GET", "/v1/event?limit=1000")).body.decode()
    async with caller.stream(f"/v1/fleet.node?watch=1&since={since}") as stream:
        seen = [await put_event(stream) for _ in range(3)]
    assert [name for name, _ in seen] == ["reset", "put", "synced"]
    assert seen[1][1]["name"] == "umbrella-1"
    kept = (await fleet.callers[ACME]("GET", f"/v1/fleet.node/{node}")).json
    assert (kept["deleting_at"], kept["assigned"]["manager"]) == (None, fleet.ids["fleet.manager", CENTRAL])
    await soon(fleet.callers[ACME], f"/v1/fleet.consent/{CENTRAL}", lambda answer: answer.status == 404)
    await fleet.make(fleet.callers[ACME], "fleet.consent", CENTRAL, manager=CENTRAL)
    await soon(caller, f"/v1/fleet.node/{node}", lambda answer: answer.status == 200)


async def test_pages_are_full_although_what_is_between_is_out_of_sight(fleet: Fleet) -> None:
    caller = fleet.callers[CENTRAL]
    for number in range(6):
        account = (ACME, UMBRELLA)[number % 2]
        wish = {"manager": CENTRAL, "package": f"{CENTRAL}-package"}
        await fleet.make(caller, "fleet.node", f"more-{number}", account, **wish)
    await fleet.withdraw(ACME, CENTRAL)
    pages, after = [], ""
    while True:
        page = (await caller("GET", f"/v1/fleet.node?limit=2&after={after}")).json
        pages.append([item["name"] for item in page["items"]])
        after = page["next"]
        if after is None:
            break
    assert [name for page in pages for name in page] == ["umbrella-1", "more-1", "more-3", "more-5"]
    assert [len(page) for page in pages[:2]] == [2, 2]
    newest = (await caller("GET", "/v1/event?limit=5")).json["items"]
    everything = (await caller("GET", "/v1/event?limit=1000")).json["items"]
    assert len(newest) == 5
    assert everything[-5:] == newest
    first, after = everything[0]["seq"], everything[0]["seq"]
    paged = [first]
    while items := (await caller("GET", f"/v1/event?limit=3&since={after}")).json["items"]:
        assert len(items) == 3 or items[-1] == everything[-1]
        paged += [item["seq"] for item in items]
        after = items[-1]["seq"]
    assert paged == [item["seq"] for item in everything]
    ids = {fleet.ids["fleet.node", name] for name in ("acme-1", "more-0", "umbrella-2")}
    assert not ids & {item["id"] for item in everything}


async def test_a_watch_tells_a_manager_nothing_of_what_others_make_change_and_delete(fleet: Fleet) -> None:
    caller, other = fleet.callers[CENTRAL], fleet.callers[SECOND]
    async with caller.stream("/v1/fleet.request?watch=1") as stream:
        while (await put_event(stream))[0] != "synced":
            pass
        await fleet.make(other, "fleet.request", "theirs", UMBRELLA, node="umbrella-2", payload="x")
        await other("PATCH", f"/v1/fleet.request/theirs?account={UMBRELLA}", {"labels": {"a": "b"}})
        await other("DELETE", f"/v1/fleet.request/theirs?account={UMBRELLA}")
        await fleet.make(caller, "fleet.request", "mine", UMBRELLA, node="umbrella-1", payload="x")
        name, item = await put_event(stream)
        assert (name, item["name"]) == ("put", "mine")


async def test_a_disabled_managers_keys_stop_and_its_nodes_stay(fleet: Fleet) -> None:
    await fleet.operator("PATCH", f"/v1/fleet.manager/{CENTRAL}", {"desired": {"state": "disabled"}})
    refused = await soon(fleet.callers[CENTRAL], "/v1/whoami", lambda answer: answer.status == 401)
    assert "disabled" in refused.json["detail"]
    assert (await fleet.callers[ACME]("GET", "/v1/fleet.node/acme-1")).status == 200
    await fleet.operator("PATCH", f"/v1/fleet.manager/{CENTRAL}", {"desired": {"state": "active"}})
    await soon(fleet.callers[CENTRAL], "/v1/whoami", lambda answer: answer.status == 200)


@pytest.mark.parametrize(
    ("desired", "status", "words"),
    [
        ({}, 400, "neither"),
        ({"user": "boss", "manager": OWN}, 400, "both"),
        ({"manager": CENTRAL}, 400, "not of this account"),
        ({"manager": "nobody"}, 400, "no manager"),
        ({"manager": OWN}, 201, ""),
    ],
)
async def test_an_owner_makes_keys_of_its_accounts_managers(
    fleet: Fleet, desired: dict[str, str], status: int, words: str
) -> None:
    answer = await fleet.callers[ACME]("POST", "/v1/tenancy.key", {"name": "k", "desired": desired})
    assert answer.status == status, answer.body
    assert words in answer.body.decode()


async def test_nobody_else_makes_keys_of_managers(fleet: Fleet) -> None:
    member = fleet.world.caller(await fleet.world.user(ACME, "joe", "member"))
    wish = {"name": "k", "desired": {"manager": OWN}}
    assert (await member("POST", "/v1/tenancy.key", wish)).status == 403
    rules = [{"kinds": ["tenancy.key", "fleet.manager"], "verbs": ["get", "create"]}]
    await fleet.make(fleet.callers[ACME], "tenancy.role", "keymaker", rules=rules)
    maker = fleet.world.caller(await fleet.world.user(ACME, "kay", "keymaker"))
    assert (await maker("POST", "/v1/tenancy.key", wish)).status == 403
    assert (await fleet.callers[UMBRELLA]("POST", "/v1/tenancy.key", wish)).json["code"] == "no-such-object"
    assert (await fleet.operator("POST", f"/v1/tenancy.key?account={ACME}", wish)).status == 201


async def test_an_image_of_a_manager_is_hidden_from_everybody_but_it_and_operators(fleet: Fleet) -> None:
    name, id = f"{CENTRAL}-image", fleet.ids["storage.image", f"{CENTRAL}-image"]
    for who in (ACME, UMBRELLA, SECOND, OWN):
        caller = fleet.callers[who]
        assert name not in await fleet.names(caller, "storage.image"), who
        for word in (name, id):
            assert (await caller("GET", f"/v1/storage.image/{word}")).status == 404
            assert (await caller("PUT", f"/v1/storage.image/{word}/disk", b"x")).status == 404
    assert name in await fleet.names(fleet.operator, "storage.image")
    vm = {"image": name, "vcpus": 1, "memory_mib": 128, "disk_gib": 1, "nics": []}
    refused = await fleet.callers[ACME]("POST", "/v1/compute.vm", {"name": "vm", "desired": vm})
    assert (refused.status, refused.json["code"]) == (400, "no-such-object")
    package = {"manager": SECOND, "version": "9", "image": id, "vcpus": 1, "memory_mib": 64, "nics": 0}
    refused = await fleet.callers[SECOND]("POST", "/v1/fleet.package", {"name": "stolen", "desired": package})
    assert (refused.status, refused.json["code"]) == (400, "no-such-object")
    async with fleet.callers[ACME].stream("/v1/storage.image?watch=1") as stream:
        while (await put_event(stream))[0] != "synced":
            pass
        await fleet.callers[CENTRAL]("PATCH", f"/v1/storage.image/{id}", {"labels": {"a": "b"}})
        await fleet.make(fleet.callers[ACME], "storage.image", "visible")
        assert (await put_event(stream))[1]["name"] == "visible"


async def test_an_image_of_a_manager_is_made_where_the_manager_is(fleet: Fleet) -> None:
    made = await fleet.operator("POST", "/v1/storage.image", {"name": "one", "desired": {"manager": CENTRAL}})
    assert "one" in await fleet.names(fleet.callers[CENTRAL], "storage.image")
    assert "one" not in await fleet.names(fleet.callers[ACME], "storage.image")
    assert made.json["desired"]["manager"] == CENTRAL
    there = await fleet.callers[ACME]("POST", "/v1/storage.image", {"name": "two", "desired": {"manager": CENTRAL}})
    assert (there.status, there.json["field"]) == (400, "desired.manager")
    for other in (SECOND, "nobody"):
        wish = {"name": "three", "desired": {"manager": other}}
        assert (await fleet.callers[CENTRAL]("POST", "/v1/storage.image", wish)).json["code"] == "no-such-object"


async def test_what_is_used_out_of_sight_is_kept_and_not_named(fleet: Fleet) -> None:
    await fleet.withdraw(ACME, CENTRAL)
    await fleet.callers[UMBRELLA]("DELETE", "/v1/fleet.node/umbrella-1")
    await soon(fleet.operator, f"/v1/fleet.node/{fleet.ids['fleet.node', 'umbrella-1']}", lambda it: it.status == 404)
    answer = await fleet.callers[CENTRAL]("DELETE", f"/v1/fleet.package/{CENTRAL}-package")
    assert (answer.status, answer.json["code"]) == (409, "in-use"), answer.body
    assert "acme" not in answer.json["detail"]


async def test_one_consent_per_account_and_manager_and_only_to_managers_that_the_account_sees(fleet: Fleet) -> None:
    again = await fleet.callers[ACME]("POST", "/v1/fleet.consent", {"name": "b", "desired": {"manager": CENTRAL}})
    assert (again.status, again.json["code"], again.json["field"]) == (409, "already-exists", "desired.manager")
    for word in (OWN, fleet.ids["fleet.manager", OWN], "nobody"):
        none = await fleet.callers[UMBRELLA]("POST", "/v1/fleet.consent", {"name": "c", "desired": {"manager": word}})
        assert (none.status, none.json["code"]) == (400, "no-such-object")
    member = fleet.world.caller(await fleet.world.user(ACME, "joe", "member"))
    wish = {"name": "d", "desired": {"manager": SECOND}}
    assert (await member("POST", "/v1/fleet.consent", wish)).status == 403
    assert (await fleet.callers[CENTRAL]("POST", f"/v1/fleet.consent?account={ACME}", wish)).status == 403


async def test_nobody_consented_to_the_platforms_own_manager_and_it_stays(fleet: Fleet) -> None:
    routers = (await fleet.callers[ACME]("GET", "/v1/fleet.manager/routers")).json
    assert (routers["account"], routers["desired"]["state"]) == ("", "active")
    assert (await fleet.operator("DELETE", "/v1/fleet.manager/routers")).json["code"] == "built-in"
    disabled = await fleet.operator("PATCH", "/v1/fleet.manager/routers", {"desired": {"state": "disabled"}})
    assert disabled.json["code"] == "built-in"
    key = await fleet.key("routers")
    assert await fleet.names(key, "fleet.manager") == ["routers"]
    assert await fleet.names(key, "fleet.node") == []


async def test_a_tenant_makes_a_manager_in_its_own_account_only(fleet: Fleet) -> None:
    wish = {"name": "mine", "desired": {"callback_url": "https://10.0.0.1/"}}
    refused = await fleet.callers[ACME]("POST", "/v1/fleet.manager", wish)
    assert (refused.status, refused.json["field"]) == (400, "desired.callback_url")
    made = await fleet.operator("POST", "/v1/fleet.manager", wish)
    assert made.status == 201
    changed = await fleet.operator("PATCH", "/v1/fleet.manager/mine", {"desired": {"description": "x"}})
    assert changed.status == 200
    for method, body in (("PATCH", {"labels": {}}), ("DELETE", None)):
        assert (await fleet.callers[ACME](method, f"/v1/fleet.manager/{CENTRAL}", body)).status == 403
        assert (await fleet.callers[UMBRELLA](method, f"/v1/fleet.manager/{OWN}", body)).status == 404
    assert OWN not in await fleet.names(fleet.callers[UMBRELLA], "fleet.manager")


async def test_parts_of_a_section_that_are_private_are_in_no_answer(fleet: Fleet) -> None:
    secret = "this-is-in-no-answer"
    manager = fleet.ids["fleet.manager", CENTRAL]
    desired = PackageDesired(manager=CENTRAL, version="2", descriptor=secret)
    package = await fleet.world.put("fleet.package", "second", desired, assigned=PackageAssigned(manager=manager))
    assert package.desired.descriptor == secret
    for caller in (fleet.callers[CENTRAL], fleet.callers[ACME], fleet.operator):
        assert await shown_nothing(caller, package.id, secret)
    path, label = f"/v1/fleet.package/{package.id}", {"labels": {"a": "b"}}
    for query in ("", "?dry_run=1"):
        assert secret not in (await fleet.callers[CENTRAL]("PATCH", path + query, label)).body.decode()
    assert (await fleet.world.store.get(package.id)).desired.descriptor == secret


async def test_a_document_is_read_by_its_manager_and_operators_only(fleet: Fleet) -> None:
    id, document = fleet.ids["fleet.node", "acme-1"], {"rules": {"ssh": {"password": "this-is-in-no-answer"}}}
    caller, path = fleet.callers[CENTRAL], f"/v1/fleet.node/{id}"
    written = await caller("PATCH", path, {"desired": {"document": document}})
    assert written.status == 200
    assert "document" not in written.json["desired"]
    for reader in (caller, fleet.operator):
        assert (await reader("GET", f"{path}/document")).json == document
        assert b"this-is-in-no-answer" not in (await reader("GET", path)).body
    assert (await fleet.callers[ACME]("GET", f"{path}/document")).status == 403
    for other in (UMBRELLA, SECOND, OWN):
        assert (await fleet.callers[other]("GET", f"{path}/document")).status == 404
    await fleet.withdraw(ACME, CENTRAL)
    assert (await caller("GET", f"{path}/document")).status == 404


async def shown_nothing(caller: Caller, id: str, secret: str) -> bool:
    """Tell whether get, list and watch have the package without its secret."""
    told = [(await caller("GET", f"/v1/fleet.package/{id}")).body, (await caller("GET", "/v1/fleet.package")).body]
    async with caller.stream("/v1/fleet.package?watch=1") as stream:
        while (event := await put_event(stream))[0] != "synced":
            told.append(str(event[1]).replace("'", '"').encode())
    assert all(b'"version":"2"' in text.replace(b" ", b"") for text in (told[0], told[1], b"".join(told[2:])))
    return not any(secret.encode() in text for text in told)


async def test_an_account_is_not_shown_where_a_manager_of_the_cloud_is_told_things(fleet: Fleet) -> None:
    secret = "https://hooks.example.org/t0ken"
    changed = await fleet.operator("PATCH", f"/v1/fleet.manager/{CENTRAL}", {"desired": {"callback_url": secret}})
    assert changed.status == 200
    assert b"t0ken" in (await fleet.callers[CENTRAL]("GET", f"/v1/fleet.manager/{CENTRAL}")).body
    for path in (f"/v1/fleet.manager/{CENTRAL}", "/v1/fleet.manager"):
        said = await fleet.callers[ACME]("GET", path)
        assert said.status == 200
        assert CENTRAL.encode() in said.body
        assert b"t0ken" not in said.body
