"""Requests to nodes: once, in order, never late, whatever dies in between."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest
from tests.cloud.fleet.requests_chaos import chaos
from tests.cloud.fleet.requests_world import ACCOUNT, MANAGER, applied, ask, furnish, settled, slow_nodes, state_of
from tests.cloud.world import Cloud, Pipe, cloud
from tests.virtual_time import clock, run

from pileus.fleet.request import controller, queue
from pileus.fleet.request.api import upload
from pileus.fleet.request.types import ANSWER, GIVEN_MAX, KEPT_S, PAYLOAD
from pileus.kernel.access import Principal, Rule
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Denied, Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call, ListQuery

SOON_S = 5.0


async def silence(world: Cloud, node: Resource) -> None:
    """Part the node's agent from all servers: what is asked waits there."""
    await world.cut_link(node.host)


def test_a_request_is_applied_and_its_answer_is_read() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            made = await ask(world, "node0", "hello", name="one")
            assert await settled(world, "one", SOON_S) == "applied"
            found = await world.get("fleet.request", "one", ACCOUNT)
            assert (found["observed"]["answer"], found["host"]) == ("hello", "")
            assert found["conditions"][0]["status"] == "true"
            assert applied(world, node) == [made["id"]]

    run(main)


def test_a_request_without_a_name_gets_one() -> None:
    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            made = await ask(world, "node0")
            assert made["name"] == f"r-{made['id'][-12:]}"
            assert await settled(world, made["name"]) == "applied"
            with pytest.raises(Invalid):
                await world.create("compute.vm", "", ACCOUNT)

    run(main)


def test_many_are_done_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            ids = [(await ask(world, "node0", str(number)))["id"] for number in range(40)]
            assert await settled(world, ids[-1]) == "applied"
            await world.settle()
            assert applied(world, node) == ids

    run(main)


def test_a_host_holds_only_the_first_of_a_queue() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await world.patch("fleet.node", "node0", ACCOUNT, power="stopped")
            await world.settle()
            for number in range(10):
                await ask(world, "node0", name=f"r{number}")
            await world.settle()
            found = await world.list("fleet.request")
            assert [one["name"] for one in found if one["host"]] == [f"r{number}" for number in range(GIVEN_MAX)]
            await world.patch("fleet.node", "node0", ACCOUNT, power="running")
            assert await settled(world, "r9") == "applied"
            assert len(applied(world, node)) == 10

    run(main)


def test_the_queue_of_a_node_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUEUE_MAX", 12)

    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await silence(world, node)
            for _ in range(12):
                await ask(world, "node0", deadline_s=7000.0)
            with pytest.raises(QuotaExceeded, match="12 requests that are not settled"):
                await ask(world, "node0")
            world.heal_link(node.host)
            await world.settle()
            assert len(applied(world, node)) == 12
            await ask(world, "node0")

    run(main)


def test_a_request_that_no_host_had_expires_at_its_deadline() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await silence(world, node)
            for number in range(GIVEN_MAX + 1):
                await ask(world, "node0", name=f"r{number}", deadline_s=3.0)
            began = clock()
            assert await settled(world, f"r{GIVEN_MAX}") == "expired"
            assert clock() - began < SOON_S
            assert await state_of(world, "r0") == "queued"  # only the node can tell
            world.heal_link(node.host)
            for number in range(GIVEN_MAX):
                assert await settled(world, f"r{number}") == "expired"
            assert applied(world, node) == []

    run(main)


def test_what_reaches_a_node_after_its_deadline_is_not_applied() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await world.stop_agent(node.host)
            await ask(world, "node0", name="late", deadline_s=3.0)
            await ask(world, "node0", name="after", deadline_s=300.0)
            await asyncio.sleep(10.0)
            await world.start_agent(node.host)
            assert await settled(world, "after") == "applied"
            assert await state_of(world, "late") == "expired"
            assert len(applied(world, node)) == 1

    run(main)


@pytest.mark.parametrize("given", [False, True])
def test_deleting_a_request_withdraws_it(given: bool) -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await world.stop_agent(node.host)
            names = [f"r{number}" for number in range(1 if given else GIVEN_MAX + 1)]
            for name in names:
                await ask(world, "node0", name=name)
            await asyncio.sleep(2.0)
            await world.delete("fleet.request", names[-1], ACCOUNT)
            await asyncio.sleep(2.0)
            assert await world.exists("fleet.request", names[-1], ACCOUNT) == given  # the node has to say it
            await world.start_agent(node.host)
            await world.settle()
            assert not await world.exists("fleet.request", names[-1], ACCOUNT)
            assert len(applied(world, node)) == len(names) - 1
            reasons = [event["reason"] for event in await events(world, names[-1])]
            assert "Withdrawn" in reasons
            assert "Applied" not in reasons

    run(main)


def test_a_role_that_refuses_changes_nothing_and_says_why() -> None:
    async def main() -> None:
        async with cloud() as world:
            from pileus.node.role import RoleRefused

            (node,) = await furnish(world)

            def refuse(payload: bytes) -> bytes:
                raise RoleRefused("no such rule\x1b[2J")

            world.hosts[node.host].guests.roles[node.assigned.vm] = refuse
            await ask(world, "node0", name="one")
            assert await settled(world, "one") == "refused"
            ready = (await world.get("fleet.request", "one", ACCOUNT))["conditions"][0]
            assert (ready["status"], ready["reason"], ready["message"]) == ("false", "Refused", "no such rule [2J")
            assert applied(world, node) == []

    run(main)


def test_requests_of_a_node_that_is_deleted_end_truthfully() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await world.stop_agent(node.host)
            for number in range(GIVEN_MAX + 2):
                await ask(world, "node0", name=f"r{number}")
            await asyncio.sleep(2.0)
            await world.delete("fleet.node", "node0", ACCOUNT)
            assert await settled(world, f"r{GIVEN_MAX + 1}", 400.0) == "withdrawn"
            await world.start_agent(node.host)
            await world.until(lambda: gone(world, "fleet.node", "node0"), 400.0)
            for number in range(GIVEN_MAX):
                assert await settled(world, f"r{number}", 400.0) in ("withdrawn", "unknown")
            assert applied(world, node) == []

    run(main)


def test_requests_of_a_node_that_is_quarantined_end() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            await world.stop_agent(node.host)
            for number in range(GIVEN_MAX + 1):
                await ask(world, "node0", name=f"r{number}")
            await asyncio.sleep(2.0)
            await quarantine(world, node)
            for number in range(GIVEN_MAX):
                assert await settled(world, f"r{number}", 60.0) == "unknown"
            assert await settled(world, f"r{GIVEN_MAX}", 400.0) == "withdrawn"
            with pytest.raises(Conflict, match="quarantined"):
                await ask(world, "node0")

    run(main)


async def quarantine(world: Cloud, node: Resource) -> None:
    """Note that the node did harm."""
    there = await world.store.get(node.id)
    decided = msgspec.structs.replace(there.assigned, quarantined="it flooded")
    await world.store.write(lambda tx: tx.update(there, assigned=decided))


def test_an_uploaded_payload_reaches_the_node_and_takes_its_place_when_it_is_there() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            heard: list[bytes] = []
            world.hosts[node.host].guests.roles[node.assigned.vm] = lambda payload: heard.append(payload) or b""  # type: ignore[func-returns-value]
            large = bytes(range(256)) * 4096
            made = await world.create("fleet.request", "large", ACCOUNT, node="node0", upload="yes")
            assert made["conditions"][0]["reason"] == "AwaitingUpload"
            await ask(world, "node0", "small", name="small")
            assert await settled(world, "small") == "applied"  # nobody waits for an upload that may never come
            for _ in range(2):  # the same again is no mistake
                await world.store.write(lambda tx: upload(tx, made["id"], large))
            with pytest.raises(Conflict):
                await world.store.write(lambda tx: upload(tx, made["id"], b"other"))
            assert await settled(world, "large") == "applied"
            assert heard == [b"small", large]
            found = await world.get("fleet.request", "large", ACCOUNT)
            assert found["assigned"]["payload_sha256"] == hashlib.sha256(large).hexdigest()
            assert await world.store.content(made["id"], PAYLOAD) is None

    run(main)


def test_a_payload_that_never_comes_expires() -> None:
    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            deadline = iso(clock() + 5.0)
            await world.create("fleet.request", "large", ACCOUNT, node="node0", upload="yes", deadline=deadline)
            assert await settled(world, "large") == "expired"

    run(main)


@pytest.mark.parametrize(
    ("answer", "encoding"), [(b"\xff\x00" * 100_000, "base64"), ("ä\n".encode() * 60_000, "utf-8")]
)
def test_long_answers_are_kept_beside(answer: bytes, encoding: str) -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            world.hosts[node.host].guests.roles[node.assigned.vm] = lambda payload: answer
            made = await ask(world, "node0", name="one")
            assert await settled(world, "one") == "applied"
            observed = (await world.get("fleet.request", "one", ACCOUNT))["observed"]
            assert (observed["answer"], observed["answer_bytes"]) == ("", len(answer))
            assert observed["encoding"] == encoding
            assert await world.store.content(made["id"], ANSWER) == answer
            await world.delete("fleet.request", "one", ACCOUNT)
            await world.settle()
            assert await world.store.content(made["id"], ANSWER) is None

    run(main)


def test_long_answers_are_told_in_frames_that_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send = Pipe.send

    async def noted(pipe: Pipe, message: bytes) -> None:
        sizes.append(len(message))
        await send(pipe, message)

    monkeypatch.setattr(Pipe, "send", noted)

    async def main() -> None:
        async with cloud() as world:
            nodes = await furnish(world, 4)
            for node in nodes:
                world.hosts[node.host].guests.roles[node.assigned.vm] = lambda payload: b"\xff" * 262_144
            with slow_nodes(lambda: 1.0):
                for node in nodes:
                    for number in range(GIVEN_MAX):
                        await ask(world, node.name, name=f"{node.name}-{number}")
                await asyncio.sleep(0.5)
                await world.cut_link(nodes[0].host)
                await asyncio.sleep(30.0)
            world.heal_link(nodes[0].host)
            for node in nodes:
                assert await settled(world, f"{node.name}-{GIVEN_MAX - 1}") == "applied"
            assert max(sizes) < 2 << 20

    run(main)


def test_settled_requests_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "KEPT_MAX", 6)

    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            for number in range(9):
                await ask(world, "node0", name=f"r{number}")
            await world.settle()
            assert [one["name"] for one in await world.list("fleet.request")] == [
                f"r{number}" for number in range(3, 9)
            ]
            old = await world.resource("fleet.request", "r3", ACCOUNT)
            before = msgspec.structs.replace(old.assigned, settled_at=clock() - KEPT_S)
            await world.store.write(lambda tx: tx.update(old, assigned=before))
            await world.settle()
            assert not await world.exists("fleet.request", "r3", ACCOUNT)
            monkeypatch.setattr(controller, "KEPT_S", 60.0)
            await asyncio.sleep(61.0)
            await controller.wake_kept(world.store)
            await world.settle()
            assert await world.list("fleet.request") == []

    run(main)


@pytest.mark.parametrize(
    "deadline", ["yesterday", "2001-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "2030-03-18T00:00:00"]
)
def test_a_deadline_that_cannot_be_is_refused(deadline: str) -> None:
    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            with pytest.raises(Invalid) as refused:
                await world.create("fleet.request", "r", ACCOUNT, node="node0", deadline=deadline)
            assert refused.value.field == "desired.deadline"

    run(main)


def test_a_payload_is_as_long_as_it_travels() -> None:
    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            await ask(world, "node0", "x" * 65_000)
            with pytest.raises(Invalid) as refused:
                await ask(world, "node0", "\x01" * 65_000)
            assert refused.value.field == "desired.payload"

    run(main)


def test_a_manager_asks_only_nodes_of_accounts_that_allow_it() -> None:
    async def main() -> None:
        async with cloud() as world:
            (node,) = await furnish(world)
            manager = await world.resource("fleet.manager", MANAGER)
            rule = Rule(kinds=("fleet.*",), verbs=("get", "create", "update", "delete"))
            principal = Principal(
                user_id=manager.id, user=MANAGER, account_id="", account="", role="manager", rules=(rule,),
                manager_id=manager.id, consents=frozenset({node.account_id}),
            )  # fmt: skip
            call = Call(principal=principal, account=ACCOUNT)
            body = msgspec.json.encode({"name": "one", "desired": {"node": "node0", "payload": "x"}})
            surface = world.servers[0].surface
            await surface.create(call, "fleet.request", body)
            assert await settled(world, "one") == "applied"
            page = msgspec.json.decode((await surface.list(call, "fleet.request", ListQuery())).body)
            assert [item["name"] for item in page["items"]] == ["one"]
            await world.patch("fleet.consent", MANAGER, ACCOUNT, allows=["create", "configure"])
            with pytest.raises(Denied):
                await surface.create(call, "fleet.request", body.replace(b"one", b"two"))
            stranger = msgspec.structs.replace(principal, manager_id="01234567-89ab-7def-8123-456789abcdef")
            with pytest.raises(Invalid, match="there is no node"):
                await surface.create(Call(principal=stranger, account=ACCOUNT), "fleet.request", body)

    run(main)


def test_watchers_never_hear_that_a_settled_request_is_gone() -> None:
    async def main() -> None:
        async with cloud() as world:
            await furnish(world)
            heard: list[tuple[str, str]] = []

            async def watch() -> None:
                stream = world.servers[0].surface.watch(world.call(ACCOUNT), "fleet.request", ListQuery(), None)
                async for event, _, text in stream:
                    heard.append((event, msgspec.json.decode(text).get("name", "")))

            task = asyncio.create_task(watch())
            await ask(world, "node0", name="one")
            assert await settled(world, "one") == "applied"
            await asyncio.sleep(SOON_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert ("put", "one") in heard
            assert ("gone", "one") not in heard

    run(main)


@pytest.mark.long
def test_five_hundred_requests_through_accidents() -> None:
    ends = chaos(500, seed=7)["ended"]
    assert ends["applied"] > 100


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_requests_through_accidents(seed: int) -> None:
    assert chaos(3000, seed)["ended"]["applied"] > 1000


async def events(world: Cloud, name: str) -> list[dict[str, Any]]:
    """Return what happened to something of that name."""
    answer = await world.servers[0].surface.events(world.call(ACCOUNT), None, 0, 1000)
    return [event for event in msgspec.json.decode(answer.body)["items"] if event["name"] == name]


async def gone(world: Cloud, kind: str, name: str) -> bool:
    """Tell whether it is gone."""
    return not await world.exists(kind, name, ACCOUNT)
