"""What every backchannel promises, simulated or real, over a port or over a switch that loses frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Document, Guest, NodeFact
from pileus.node.document import document_hash

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import (
        LIMIT_S,
        MACHINE,
        FakeRig,
        Rig,
        SerialRig,
        big_document,
        copy,
        rig,
    )
else:
    from node_rigs import LIMIT_S, MACHINE, FakeRig, Rig, SerialRig, big_document, copy, rig

__all__ = ["rig"]

pytestmark = pytest.mark.anyio

DOCUMENT: Document = {"node": {"self": {"hostname": "router"}}, "hosts": {"52:54:00:00:00:01": {"address": "10.1.1.2"}}}


async def until(guest: Guest, wanted: Callable[[NodeFact], bool]) -> NodeFact:
    """Return the machine's fact as soon as it is as ``wanted``."""
    async with asyncio.timeout(LIMIT_S):
        while not wanted(fact := (await guest.nodes())[MACHINE]):  # noqa: ASYNC110 — a fake says nothing of its machine
            await asyncio.sleep(0.02)
        return fact


async def until_ready(guest: Guest) -> NodeFact:
    return await until(guest, lambda fact: fact.state == "ready")


async def ready(rig: Rig) -> Guest:
    """Return an agent's guest driver whose appliance runs and has proved itself."""
    guest = rig.guest()
    await rig.seed(guest)
    await rig.start()
    await rig.attach(guest)
    await until_ready(guest)
    return guest


async def test_a_node_proves_itself_and_takes_a_document(rig: Rig) -> None:
    guest = await ready(rig)
    assert (await guest.nodes())[MACHINE].hash == ""
    await guest.configure(MACHINE, DOCUMENT)
    assert rig.runs() == DOCUMENT
    fact = await until(guest, lambda fact: fact.hash == document_hash(DOCUMENT))
    assert fact.refused == ""
    assert fact.version
    assert fact.boot_id
    await guest.detach(MACHINE)


async def test_a_machine_that_is_attached_before_it_runs_is_silent_until_then(rig: Rig) -> None:
    guest = rig.guest()
    await rig.seed(guest)
    await rig.attach(guest)
    assert (await guest.nodes())[MACHINE].state == "silent"
    with pytest.raises(DriverError) as caught:
        await guest.configure(MACHINE, DOCUMENT)
    assert caught.value.reason == "NodeSilent"
    await rig.start()
    await until_ready(guest)
    await guest.detach(MACHINE)


async def test_what_is_not_attached_is_silent(rig: Rig) -> None:
    guest = await ready(rig)
    await guest.detach(MACHINE)
    assert await guest.nodes() == {}
    for call in (guest.configure(MACHINE, DOCUMENT), guest.connect(MACHINE, "127.0.0.1", 80)):
        with pytest.raises(DriverError) as caught:
            await call
        assert caught.value.reason == "NodeSilent"


async def test_a_document_is_changed_piece_by_piece(rig: Rig) -> None:
    guest = await ready(rig)
    document = big_document(30, 30)
    await guest.configure(MACHINE, document)
    del document["hosts"]["52:54:00:00:00:03"]
    document["firewall"]["99999"] = {"action": "drop"}
    document["node"] = {"self": {"hostname": "other"}}
    await guest.configure(MACHINE, document)
    assert rig.runs() == copy(document)
    await guest.configure(MACHINE, {})
    assert rig.runs() == {}
    await guest.detach(MACHINE)


async def test_a_refusal_is_told_in_the_nodes_words(rig: Rig) -> None:
    guest = await ready(rig)
    rig.refuse("port 80 is taken")
    with pytest.raises(DriverError) as caught:
        await guest.configure(MACHINE, DOCUMENT)
    assert (caught.value.reason, caught.value.message) == ("NodeRefused", "port 80 is taken")
    fact = await until(guest, lambda fact: fact.refused == "port 80 is taken")
    assert fact.hash == ""
    await guest.detach(MACHINE)


async def test_what_a_role_says_of_itself_is_seen(rig: Rig) -> None:
    guest = await ready(rig)
    rig.say({"redundancy": "active"})
    fact = await until(guest, lambda fact: fact.status != {})
    assert fact.status == {"redundancy": "active"}
    await guest.detach(MACHINE)


async def test_a_stopped_machine_falls_silent_and_runs_its_document_again_after_a_start(rig: Rig) -> None:
    guest = await ready(rig)
    await guest.configure(MACHINE, DOCUMENT)
    await rig.stop()
    if isinstance(rig, FakeRig | SerialRig):
        await until(guest, lambda fact: fact.state == "silent")
    await rig.start()
    fact = await until(guest, lambda fact: fact.state == "ready" and fact.hash != "")
    assert fact.hash == document_hash(DOCUMENT)
    await guest.detach(MACHINE)


async def test_the_next_agent_finds_the_node_with_its_document(rig: Rig) -> None:
    first = await ready(rig)
    await first.configure(MACHINE, DOCUMENT)
    await first.detach(MACHINE)
    second = rig.guest()
    await rig.attach(second)
    assert (await until_ready(second)).hash == document_hash(DOCUMENT)
    changed = {**DOCUMENT, "resolvers": {"192.0.2.53": {}}}
    await second.configure(MACHINE, changed)
    assert rig.runs() == changed
    await second.detach(MACHINE)


async def test_changes_are_told(rig: Rig) -> None:
    guest = rig.guest()
    heard: list[str] = []
    guest.on_change(heard.append)
    await rig.seed(guest)
    await rig.start()
    await rig.attach(guest)
    await until_ready(guest)
    await guest.configure(MACHINE, DOCUMENT)
    assert heard
    assert set(heard) == {MACHINE}
    await guest.detach(MACHINE)


async def test_a_connection_goes_through_the_node(rig: Rig) -> None:
    guest = await ready(rig)
    address, port = await rig.listen()
    stream = await guest.connect(MACHINE, address, port)
    await stream.write(b"hello")
    assert await stream.read() == b"hello"
    await stream.finish()
    assert await stream.read() == b""
    await stream.close()
    await guest.detach(MACHINE)


async def test_a_connection_that_nobody_takes_is_refused(rig: Rig) -> None:
    guest = await ready(rig)
    with pytest.raises(DriverError) as caught:
        await guest.connect(MACHINE, "127.0.0.1", 1)
    assert caught.value.reason == "ConnectRefused"
    await guest.detach(MACHINE)
