"""What every backchannel promises of polls: the role is looked at now, and a node that answers none harms nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Guest
from pileus.node.document import document_hash
from pileus.node.serve import Server

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import LIMIT_S, MACHINE, FakeRig, Rig, SerialRig, rig
    from tests.contract.guest.test_backchannel import DOCUMENT, ready, until
else:
    from node_rigs import LIMIT_S, MACHINE, FakeRig, Rig, SerialRig, rig
    from test_backchannel import DOCUMENT, ready, until

__all__ = ["rig"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def serial(request: pytest.FixtureRequest) -> AsyncIterator[SerialRig]:
    made = SerialRig(request.getfixturevalue("paths"))
    yield made
    await made.close()


async def silent(guest: Guest, timeout_s: float = 0.2) -> bool:
    """Return whether a poll finds the node silent."""
    try:
        await guest.poll(MACHINE, timeout_s)
    except DriverError as error:
        return error.reason == "NodeSilent"
    return False


async def test_a_poll_brings_what_the_role_says_now(rig: Rig) -> None:
    guest = await ready(rig)
    await guest.configure(MACHINE, DOCUMENT)
    for number in range(5):
        rig.say({"number": number})
        fact = await guest.poll(MACHINE, LIMIT_S)
        assert (fact.state, fact.status, fact.hash) == ("ready", {"number": number}, document_hash(DOCUMENT))
        assert (await guest.nodes())[MACHINE] == fact
        assert 0.0 <= guest.heard_s(MACHINE) < LIMIT_S
    await guest.detach(MACHINE)


async def test_polls_at_the_same_time_are_all_answered(rig: Rig) -> None:
    guest = await ready(rig)
    rig.say({"seen": "yes"})
    facts = await asyncio.gather(*(guest.poll(MACHINE, LIMIT_S) for _ in range(50)))
    assert {fact.status["seen"] for fact in facts} == {"yes"}
    await guest.detach(MACHINE)


async def test_what_does_not_run_or_is_not_attached_is_silent(rig: Rig) -> None:
    guest = rig.guest()
    await rig.seed(guest)
    assert guest.heard_s(MACHINE) == -1.0
    assert await silent(guest)
    await rig.attach(guest)
    assert guest.heard_s(MACHINE) == -1.0
    assert await silent(guest)
    await guest.detach(MACHINE)


async def test_a_node_whose_version_knows_no_polls_stays_as_known(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    old = Server.on_message

    def on_message(self: Server, body: bytes) -> None:
        head: dict[str, Any] = json.loads(body.partition(b"\n")[0])
        if head["verb"] == "poll":
            asked.append(head["id"])
        else:
            old(self, body)

    monkeypatch.setattr(Server, "on_message", on_message)
    guest = await ready(rig)
    if isinstance(rig, FakeRig):
        rig.world.unpolled.add(MACHINE)
    for _ in range(3):
        assert await silent(guest)
    assert (await guest.nodes())[MACHINE].state == "ready"
    await guest.configure(MACHINE, DOCUMENT)
    assert rig.runs() == DOCUMENT
    assert len(asked) <= 1
    await guest.detach(MACHINE)


async def test_a_role_that_is_busy_answers_the_poll_when_it_is_free(serial: SerialRig) -> None:
    guest = await ready(serial)
    free = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tick() -> None:
        asyncio.run_coroutine_threadsafe(free.wait(), loop).result(LIMIT_S)

    serial.role.tick = tick  # type: ignore[method-assign]
    serial.say({"seen": "late"})
    assert await silent(guest)
    answered = asyncio.create_task(guest.poll(MACHINE, LIMIT_S))
    free.set()
    assert (await answered).status == {"seen": "late"}
    await guest.detach(MACHINE)


async def test_a_poll_ends_with_its_session(serial: SerialRig) -> None:
    guest = await ready(serial)
    stuck = asyncio.Event()
    loop = asyncio.get_running_loop()
    serial.role.tick = (  # type: ignore[method-assign]
        lambda: asyncio.run_coroutine_threadsafe(stuck.wait(), loop).result(LIMIT_S) and None
    )
    polls = [asyncio.create_task(guest.poll(MACHINE, LIMIT_S)) for _ in range(3)]
    assert await silent(guest, 0.01)
    halting = asyncio.create_task(serial.stop())
    for ended in await asyncio.gather(*polls, return_exceptions=True):
        assert isinstance(ended, DriverError)
        assert ended.reason == "NodeSilent"
    stuck.set()
    await halting
    await guest.detach(MACHINE)


async def test_what_is_no_report_costs_the_node_its_session(serial: SerialRig) -> None:
    guest = await ready(serial)
    assert serial.appliance is not None
    server = serial.appliance.server
    assert server is not None

    async def lie(id: int, opens: int) -> None:
        server.conversation.send(b'{"id":%d,"answer":{"state":"applied"}}' % id)

    server._poll = lie  # type: ignore[method-assign]
    assert await silent(guest, LIMIT_S)
    assert (await guest.nodes())[MACHINE].state == "silent"
    server.greet()
    await until(guest, lambda fact: fact.state == "ready")
    await guest.detach(MACHINE)
