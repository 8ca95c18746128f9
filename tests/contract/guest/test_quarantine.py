"""Nodes that do harm again and again are heard no more, and neighbours notice nothing of them, nor of large payloads."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import PAYLOAD_BYTES_MAX, GuestRequest
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.paths import HostPaths
from pileus.node.session import LAST, PART

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import LIMIT_S, MACHINE, SerialRig
    from tests.contract.guest.test_backchannel import DOCUMENT, ready, until, until_ready
    from tests.contract.guest.test_bad_nodes import measure, write_some
else:
    from node_rigs import LIMIT_S, MACHINE, SerialRig
    from test_backchannel import DOCUMENT, ready, until, until_ready
    from test_bad_nodes import measure, write_some

pytestmark = pytest.mark.anyio

QUICK = Limits(
    noise_burst_bytes=1 << 20, pause_s_max=0.05, hang_up_s_min=0.02, hang_up_s_max=0.05, traffic_burst_bytes=1 << 18
)
NEIGHBOUR = "0197a1b2-neighbour"
TRIP_S_MAX = 0.5
"""The flood is made in the same process; a trip takes a millisecond without it."""


@pytest.fixture
async def rig(paths: HostPaths) -> AsyncIterator[SerialRig]:
    made = SerialRig(paths, limits=QUICK)
    yield made
    await made.close()


async def garbage(rig: SerialRig) -> None:
    """What is no frame, as much as goes."""
    assert rig.port is not None
    write_some(rig.port.guest_end, secrets.token_bytes(1 << 16))


async def said(rig: SerialRig, payload: bytes) -> None:
    """Say ``payload`` in a genuine frame, as soon as there is a session, and go on as a node does."""
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    conversation = rig.appliance.server.conversation
    if conversation.session.open and conversation.transport.room() > 0:
        conversation.transport.write(conversation.session.wire.seal(payload))
        await asyncio.sleep(0.05)
        # The host has dropped the session and would wait a while.
        rig.appliance.server.greet()
    await asyncio.sleep(0.05)


async def false_answers(rig: SerialRig) -> None:
    await said(rig, bytes((LAST,)) + b'{"id":4711,"answer":{"state":"applied"}}\nit is done')


async def hostile_messages(rig: SerialRig) -> None:
    await said(rig, bytes((LAST,)) + b'{"report":{"hash":"../../etc"}}')


async def unknown_frames(rig: SerialRig) -> None:
    await said(rig, b"\x63")


async def endless_messages(rig: SerialRig) -> None:
    """A message of a GiB; it goes as far as it is let."""
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    conversation = rig.appliance.server.conversation
    part = bytes((PART,)) + bytes(4000)
    for _ in range(100):
        if conversation.session.open and conversation.transport.room() > 0:
            conversation.transport.write(conversation.session.wire.seal(part))
        await asyncio.sleep(0)
    # The host drops the session somewhere, and would wait a while.
    rig.appliance.server.greet()
    await asyncio.sleep(0.05)


async def doing(harm: Callable[[SerialRig], Awaitable[None]], rig: SerialRig) -> None:
    while True:
        await harm(rig)
        await asyncio.sleep(0.001)


async def trips(guest: GuestChannel, machine: str, found: list[float]) -> None:
    """Ask the neighbour again and again, and note how long it takes to hear its answer."""
    sequence = 0
    while True:
        sequence += 1
        before = time.monotonic()
        asked = GuestRequest(id=f"r-{sequence}", sequence=sequence, deadline=time.time() + 60)
        assert (await guest.request(machine, asked)).state == "applied"
        found.append(time.monotonic() - before)
        await asyncio.sleep(0.005)


HARM: dict[str, tuple[Callable[[SerialRig], Awaitable[None]], str]] = {
    "garbage": (garbage, "it sends more than it may"),
    "false answers": (false_answers, "it answered what it was not asked"),
    "hostile messages": (hostile_messages, "it sent a report without a usable hash"),
    "unknown frames": (unknown_frames, "it sent a frame of an unknown kind"),
    "endless messages": (endless_messages, "it sent a message that is too long"),
}


IN_CI = ("garbage", "hostile messages")
"""Below and above the framing; the others take as long."""


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in IN_CI else pytest.mark.long) for kind in HARM])
async def test_a_node_that_does_harm_again_and_again_is_heard_no_more(rig: SerialRig, kind: str) -> None:
    harm, words = HARM[kind]
    neighbour = SerialRig(rig.paths, NEIGHBOUR)
    guest = await ready(rig)
    assert isinstance(guest, GuestChannel)
    await neighbour.seed(guest)
    await neighbour.start()
    await guest.attach(NEIGHBOUR, "serial")
    async with asyncio.timeout(LIMIT_S):
        while (await guest.nodes())[NEIGHBOUR].state != "ready":  # noqa: ASYNC110 — told for any machine
            await asyncio.sleep(0.02)
    lags: list[float] = []
    found: list[float] = []
    tasks = [
        asyncio.create_task(doing(harm, rig)),
        asyncio.create_task(measure(lags)),
        asyncio.create_task(trips(guest, NEIGHBOUR, found)),
    ]
    fact = await until(guest, lambda fact: fact.state == "quarantined")
    assert words in fact.refused
    assert rig.port is not None
    connections = rig.port.connections
    await asyncio.sleep(1.5)
    assert rig.port.connections == connections, "it is not dialled again"
    guest.hint(MACHINE)
    await guest.attach(MACHINE, "serial")
    assert (await guest.nodes())[MACHINE] == fact
    for call in (guest.configure(MACHINE, DOCUMENT), guest.connect(MACHINE, "127.0.0.1", 80)):
        with pytest.raises(DriverError, match="quarantined") as caught:
            await call
        assert caught.value.reason == "NodeSilent"
    assert not tasks[2].done(), "the neighbour is asked and answers"
    for task in tasks:
        task.cancel()
    found.sort()
    print(json.dumps({"kind": kind, "trips": len(found), "p50_ms": 1000 * found[len(found) // 2], "max": found[-1]}))
    assert len(found) > 20
    assert found[len(found) * 9 // 10] < TRIP_S_MAX

    await rig.halt()
    await rig.boot()
    await guest.detach(MACHINE)
    await guest.attach(MACHINE, "serial")
    await until_ready(guest)
    await guest.configure(MACHINE, DOCUMENT)
    await guest.detach(MACHINE)
    await guest.detach(NEIGHBOUR)
    await neighbour.close()


async def test_a_few_offences_are_borne(rig: SerialRig) -> None:
    guest = await ready(rig)
    for _ in range(QUICK.offences_max):
        await hostile_messages(rig)
        await until_ready(guest)
    await guest.configure(MACHINE, DOCUMENT)
    assert (await guest.nodes())[MACHINE].state == "ready"
    await guest.detach(MACHINE)


async def test_a_large_payload_for_one_node_does_not_hold_up_another(rig: SerialRig) -> None:
    neighbour = SerialRig(rig.paths, NEIGHBOUR)
    guest = await ready(rig)
    await neighbour.seed(guest)
    await neighbour.start()
    await guest.attach(NEIGHBOUR, "serial")
    async with asyncio.timeout(LIMIT_S):
        while (await guest.nodes())[NEIGHBOUR].state != "ready":  # noqa: ASYNC110 — told for any machine
            await asyncio.sleep(0.02)
    large = GuestRequest(id="r-1", sequence=1, deadline=time.time() + 60, payload=bytes(PAYLOAD_BYTES_MAX))
    asking = asyncio.create_task(guest.request(MACHINE, large))
    found: list[float] = []
    while not asking.done():
        before = time.monotonic()
        await guest.configure(NEIGHBOUR, {"turn": {"number": len(found)}})
        found.append(time.monotonic() - before)
    assert (await asking).state == "applied"
    found.sort()
    print(json.dumps({"configured": len(found), "p50_ms": 1000 * found[len(found) // 2], "max": found[-1]}))
    assert len(found) > 5
    assert found[len(found) * 9 // 10] < TRIP_S_MAX
    await guest.detach(MACHINE)
    await guest.detach(NEIGHBOUR)
    await neighbour.close()
