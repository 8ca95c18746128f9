"""The host's end against restarts in mid-frame, foreign keys, floods and whatever else a node may send."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.backchannel import CALL_PAUSE_S, FOREIGN_KEY
from pileus.drivers.host.guest.base import Guest, Stream
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.paths import HostPaths
from pileus.node.document import document_hash
from pileus.node.session import WINDOW_BYTES

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import LIMIT_S, MACHINE, SEED, Appliance, SerialRig, big_document, copy
    from tests.contract.guest.test_backchannel import DOCUMENT, ready, until, until_ready
else:
    from node_rigs import LIMIT_S, MACHINE, SEED, Appliance, SerialRig, big_document, copy
    from test_backchannel import DOCUMENT, ready, until, until_ready

pytestmark = pytest.mark.anyio

QUICK = Limits(noise_burst_bytes=1 << 20, pause_s_max=0.05, hang_up_s_min=0.3, traffic_burst_bytes=1 << 18)


@pytest.fixture
async def rig(paths: HostPaths) -> AsyncIterator[SerialRig]:
    made = SerialRig(paths, limits=QUICK)
    yield made
    await made.close()


async def configured(guest: Guest, wanted: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        await guest.configure(MACHINE, wanted)


async def until_opened(rig: SerialRig) -> None:
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    async with asyncio.timeout(LIMIT_S):
        while not rig.appliance.server.conversation.session.open:  # noqa: ASYNC110 — told to the node's program only
            await asyncio.sleep(0.01)


async def test_a_session_that_is_open_stays_open(rig: SerialRig) -> None:
    """Both ends ask for a session when the port opens; the second one's asking does not end the first one's."""
    guest = await ready(rig)
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    session = rig.appliance.server.conversation.session
    await asyncio.sleep(CALL_PAUSE_S)
    opens = session.opens
    await asyncio.sleep(2 * CALL_PAUSE_S)
    assert session.opens == opens
    await configured(guest, DOCUMENT)
    await guest.detach(MACHINE)


async def test_a_big_document_goes_in_pieces_and_a_change_of_it_as_a_difference(rig: SerialRig) -> None:
    guest = await ready(rig)
    document = big_document()
    await configured(guest, document)
    assert rig.runs() == copy(document)
    assert rig.port is not None
    sent = rig.port.to_guest
    assert sent > 100_000
    document["firewall"]["00001"]["action"] = "drop"
    await configured(guest, document)
    assert rig.port.to_guest - sent < 2000
    assert rig.runs() == copy(document)
    await guest.detach(MACHINE)


async def test_a_node_that_boots_again_in_mid_frame_is_ready_soon(rig: SerialRig) -> None:
    guest = await ready(rig)
    await configured(guest, DOCUMENT)
    for cut in (1, 3, 50, 3000):
        assert rig.appliance is not None
        assert rig.appliance.server is not None
        assert rig.port is not None
        frame = rig.appliance.server.conversation.session.wire.seal(secrets.token_bytes(4000))
        await rig.halt()
        rig.port.guest_end.send(frame[:cut])
        await rig.boot()
        await until_opened(rig)
        await configured(guest, {**DOCUMENT, "resolvers": {f"192.0.2.{cut % 250}": {}}})
    await guest.detach(MACHINE)


async def test_what_a_dead_agent_left_is_no_hindrance(rig: SerialRig) -> None:
    first = await ready(rig)
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    wire = rig.appliance.server.conversation.session.wire
    left = b"".join(wire.seal(secrets.token_bytes(4000)) for _ in range(50))
    await first.detach(MACHINE)
    assert rig.port is not None
    await rig.port.left_unread(left[1234:])
    second = rig.guest()
    await rig.attach(second)
    await until_ready(second)
    await configured(second, DOCUMENT)
    await second.detach(MACHINE)


async def test_a_node_with_another_machines_key_stays_out(rig: SerialRig) -> None:
    guest = rig.guest()
    await rig.seed(guest)
    await guest.write_seed("other", SEED)
    key = bytes.fromhex(rig.paths.channel_key("other").read_text())
    assert key.hex() != rig.paths.channel_key(MACHINE).read_text()
    rig.appliance = Appliance(key, rig.paths.machine(MACHINE) / "document.json")
    await rig.start()
    await rig.attach(guest)
    fact = await until(guest, lambda fact: fact.refused == FOREIGN_KEY)
    assert fact.state == "silent"
    with pytest.raises(DriverError) as caught:
        await configured(guest, DOCUMENT)
    assert caught.value.reason == "NodeSilent"
    await guest.detach(MACHINE)


async def test_two_machines_have_channels_of_their_own(rig: SerialRig) -> None:
    other = SerialRig(rig.paths, "0197a1b2-other")
    guest = await ready(rig)
    await other.seed(guest)
    await other.start()
    await guest.attach("0197a1b2-other", "serial")
    async with asyncio.timeout(LIMIT_S):
        while (await guest.nodes())["0197a1b2-other"].state != "ready":  # noqa: ASYNC110 — told for any machine
            await asyncio.sleep(0.02)
    await guest.configure("0197a1b2-other", {"a": {"b": 1}})
    await configured(guest, DOCUMENT)
    assert (rig.runs(), other.runs()) == (DOCUMENT, {"a": {"b": 1}})
    await guest.detach(MACHINE)
    await guest.detach("0197a1b2-other")
    await other.close()


async def test_a_role_that_breaks_does_not_break_the_channel(rig: SerialRig) -> None:
    guest = await ready(rig)
    rig.role.defect = "oops"
    with pytest.raises(DriverError, match="ZeroDivisionError: oops"):
        await configured(guest, DOCUMENT)
    fact = await until(guest, lambda fact: "failed" in fact.status)
    assert fact.status == {"failed": "ZeroDivisionError: oops"}
    rig.role.defect = ""
    await configured(guest, DOCUMENT)
    fact = await until(guest, lambda fact: fact.status == {})
    assert (fact.hash, fact.refused) == (document_hash(DOCUMENT), "")
    await guest.detach(MACHINE)


async def test_a_stream_nobody_reads_holds_up_its_sender_and_nothing_else(rig: SerialRig) -> None:
    guest = await ready(rig)
    address, port = await rig.listen()
    stream = await guest.connect(MACHINE, address, port)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await stream.write(bytes(65536))
            sent += 65536

    sending = asyncio.create_task(send())
    await configured(guest, DOCUMENT)
    before = -1
    async with asyncio.timeout(LIMIT_S):
        while sent != before:
            before = sent
            await asyncio.sleep(0.5)
    await configured(guest, {**DOCUMENT, "resolvers": {}})
    await configured(guest, {**DOCUMENT, "resolvers": {"192.0.2.1": {}}})
    assert not sending.done(), "it waits"
    assert sent < 200 * WINDOW_BYTES, "it ends in the buffers of two TCP connections and two windows"
    sending.cancel()
    await stream.close()
    await guest.detach(MACHINE)


async def test_a_big_stream_arrives_whole_while_documents_pass_it(rig: SerialRig) -> None:
    guest = await ready(rig)
    address, port = await rig.listen()
    stream = await guest.connect(MACHINE, address, port)
    wanted = secrets.token_bytes(3_000_000)
    writing = asyncio.create_task(_write_all(stream, wanted))
    got = bytearray()
    for number in range(3):
        await configured(guest, {"n": {"n": number}})
    while len(got) < len(wanted):
        got += await stream.read()
    await writing
    assert bytes(got) == wanted
    await stream.finish()
    assert await stream.read() == b""
    await stream.close()
    await guest.detach(MACHINE)


async def _write_all(stream: Stream, data: bytes) -> None:
    await stream.write(data)


async def test_a_stream_breaks_with_its_session(rig: SerialRig) -> None:
    guest = await ready(rig)
    address, port = await rig.listen()
    stream = await guest.connect(MACHINE, address, port)
    await rig.stop()
    with pytest.raises(DriverError) as caught:
        async with asyncio.timeout(LIMIT_S):
            await stream.read()
    assert caught.value.reason == "StreamLost"
    with pytest.raises(DriverError):
        await stream.write(b"x")
    await guest.detach(MACHINE)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe", b"[" * 100_000, b'{"report":' + b'{"status":' * 500 + b"1" + b"}" * 501, b"{}x", b'{"id":"x"}',
        b'{"report":{"hash":"../../etc"}}', b'{"report":{"boot_id":"\\u001b[2J"}}', b'{"report":{"status":"no"}}',
        b'{"report":{"status":{"n":' + b"9" * 5000 + b"}}}", b'{"report":{"status":{"s":"' + b"x" * 70_000 + b'"}}}',
        b'{"report":{"status":{"a":"\\ud800"}}}',
    ],
)  # fmt: skip
async def test_what_is_no_message_ends_the_session_and_no_more(rig: SerialRig, said: bytes) -> None:
    guest = await ready(rig)
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    rig.appliance.server.conversation.send(said)
    fact = await until(guest, lambda fact: fact.state == "silent")
    assert fact.status == {}
    rig.appliance.server.greet()
    await until_ready(guest)
    await configured(guest, DOCUMENT)
    await guest.detach(MACHINE)


async def test_a_nodes_words_are_shown_without_what_steers_a_terminal(rig: SerialRig) -> None:
    guest = await ready(rig)
    rig.refuse("bad\x1b[2J\nname")
    with pytest.raises(DriverError) as caught:
        await configured(guest, DOCUMENT)
    assert caught.value.message == "bad [2J name"
    await guest.detach(MACHINE)


def write_some(line: socket.socket, data: bytes) -> None:
    """Write until the port takes no more."""
    while data:
        try:
            data = data[line.send(data) :]
        except BlockingIOError:
            return


async def flood(rig: SerialRig, kind: str) -> None:
    """Send what no node should, as fast as it goes."""
    assert rig.appliance is not None
    assert rig.appliance.server is not None
    assert rig.port is not None
    conversation = rig.appliance.server.conversation
    while True:
        if kind == "garbage":
            write_some(rig.port.guest_end, secrets.token_bytes(1 << 16))
        for _ in range(50):
            if kind == "greetings":
                conversation.start()
            elif kind == "reports" and conversation.session.open and conversation.transport.room() > 0:
                conversation.send(json.dumps({"report": {"status": {"n": secrets.token_hex(8)}}}).encode())
        await asyncio.sleep(0.001)


async def measure(lags: list[float]) -> None:
    """Note how late the event loop is, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(0.005)
        lags.append(loop.time() - before)


@pytest.mark.parametrize("kind", ["garbage", "reports", "greetings"])
async def test_a_node_that_floods_is_hung_up_on_and_the_agent_stays_awake(rig: SerialRig, kind: str) -> None:
    guest = await ready(rig)
    assert rig.port is not None
    lags: list[float] = []
    tasks = [asyncio.create_task(flood(rig, kind)), asyncio.create_task(measure(lags))]
    await until(guest, lambda fact: fact.state == "silent")
    async with asyncio.timeout(LIMIT_S):
        while rig.port.connections < 2:  # noqa: ASYNC110 — the port tells nobody
            await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    lags.sort()
    assert lags[len(lags) * 9 // 10] < 0.2, "the flood is made in the same process"
    await rig.halt()
    await rig.boot()
    await until_opened(rig)
    await configured(guest, DOCUMENT)
    await guest.detach(MACHINE)


async def test_keys_are_for_root_only_and_end_with_the_machine(rig: SerialRig) -> None:
    guest = rig.guest()
    await rig.seed(guest)
    file = rig.paths.channel_key(MACHINE)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert os.stat(rig.paths.seed(MACHINE)).st_mode & 0o777 == 0o600
    key = file.read_text()
    await rig.seed(guest)
    assert file.read_text() == key, "the node that runs has this one"
    await guest.remove(MACHINE)
    assert not file.exists()
    with pytest.raises(DriverError) as caught:
        await rig.attach(guest)
    assert caught.value.reason == "NoKey"
