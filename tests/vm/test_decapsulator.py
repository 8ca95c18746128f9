"""A decapsulator in a real machine: XDP on its virtio NICs, whose taps the test holds, and captures by the backchannel."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.guest.base import Document, Stream
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.qemu.base import NicAttachment
from pileus.drivers.host.qemu.real import QemuHypervisor
from pileus.node.mirror import CAPTURE_PORT, wire
from pileus.node.mirror.pcapng import Packet, Reader, Statistics

if TYPE_CHECKING:
    from tests.vm.appliance_rack import Rack, a_rack, ready
else:
    from appliance_rack import Rack, a_rack, ready

pytestmark = pytest.mark.anyio

LIMIT_S = 60
MACHINE = "0197-decapsulator"
TUNNEL, SNIFFERS = "02:50:00:00:0d:01", "02:50:00:00:0d:02"
SOURCE = "10.98.0.1"
SNIFFED, KEPT = 0x123 << 16 | 1, 0x456 << 16 | 2
DOCUMENT: Document = {
    "links": {"tunnel": {"mac": TUNNEL}, "sniffers": {"mac": SNIFFERS}},
    "sessions": {
        "sniffed": {"key": f"{SNIFFED:015x}", "source": SOURCE, "to": "sniffers", "name": "web", "ends_at": 0},
        "kept": {
            "key": f"{KEPT:015x}", "source": SOURCE, "to": "store", "store_mib": 8, "name": "web", "ends_at": 0,
        },
    },
}  # fmt: skip


class Bench(Rack):
    """A rack without a switch: the machine's NICs are taps in a namespace of the test."""

    namespace = f"pvd{os.getpid()}"

    async def agent(self) -> None:
        """Be a new agent."""
        self.hypervisor = QemuHypervisor(self.paths, lambda tap: namespace.open_tap(self.namespace, tap), "tcg")
        self.guest = GuestChannel(self.paths, self.switch.exchange)
        self.hypervisor.on_change(self.guest.hint)
        await self.hypervisor.open()

    async def boot(self) -> None:
        """Start the machine, and give it the document."""
        began = time.monotonic()
        nics = (NicAttachment(id="t", mac=TUNNEL, tap="t"), NicAttachment(id="s", mac=SNIFFERS, tap="s"))
        await self.start(MACHINE, "serial", nics, role="decapsulator")
        await self.guest.attach(MACHINE, "serial")
        await self.until(MACHINE, ready)
        await self.guest.configure(MACHINE, DOCUMENT)
        fact = await self.until(MACHINE, lambda fact: bool(fact.status.get("path")))
        print(f"boot to data path {time.monotonic() - began:.1f} s: {fact.status}")
        assert (fact.refused, fact.status["failed"], fact.status["waiting"]) == ("", {}, [])

    async def sessions(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the sessions' counts as soon as they are as ``wanted``."""
        fact = await self.until(MACHINE, lambda fact: wanted(fact.status["sessions"]))
        found: dict[str, Any] = fact.status["sessions"]
        return found

    async def received(self, count: int) -> None:
        """Wait until so many were received."""
        await self.sessions(lambda sessions: bool(sessions["kept"][1] >= count))

    async def capture(self, **more: object) -> Stream:
        """Return a reader's connection that has asked."""
        stream = await self.guest.connect(MACHINE, "127.0.0.1", CAPTURE_PORT)
        await stream.write(json.dumps({"session": "kept", "want": "packets", **more}).encode() + b"\n")
        return stream


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    await namespace.ensure(Bench.namespace)
    try:
        async with a_rack(kind=Bench) as rack:
            assert isinstance(rack, Bench)
            for tap in ("t", "s"):
                await namespace.make_tap(Bench.namespace, tap)
                words = ["-n", Bench.namespace, "link", "set", "dev", tap, "mtu", "2000", "txqueuelen", "4096"]
                made = await asyncio.create_subprocess_exec("ip", *words)
                assert await made.wait() == 0
            await rack.boot()
            yield rack
    finally:
        await namespace.remove(Bench.namespace)


async def wires() -> tuple[socket.socket, socket.socket]:
    """Return sockets on the host's ends of both NICs."""

    def make(tap: str) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        made.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        made.bind((tap, 3))
        made.settimeout(LIMIT_S)
        return made

    tunnel = await namespace.inside(Bench.namespace, lambda: make("t"))
    return tunnel, await namespace.inside(Bench.namespace, lambda: make("s"))


def mirrored(key: int, sequence: int, frame: bytes) -> bytes:
    stamp = time.monotonic_ns() // 100 & 0xFFFFFFFF
    header = wire.Header(source=SOURCE, key=key, leg=1, session=key & 0x3FF, sequence=sequence, timestamp=stamp)
    return wire.encapsulate(header, frame, to_mac=bytes.fromhex(TUNNEL.replace(":", "")))


def frame(text: bytes, size: int = 100) -> bytes:
    return bytes(12) + b"\x08\x00" + text.ljust(size - 14, b".")


async def whole(stream: Stream) -> tuple[list[Packet], Statistics]:
    reader, blocks = Reader(), []
    while data := await stream.read():
        blocks += reader.feed(data)
    reader.finish()
    last = blocks[-1]
    assert isinstance(last, Statistics)
    return [each for each in blocks if isinstance(each, Packet)], last


async def test_mirrored_packets_go_through_the_machine_by_xdp_and_captures_come_out(bench: Bench) -> None:
    status = (await bench.guest.nodes())[MACHINE].status
    assert status["path"] == "xdp"
    tunnel, sniffers = await wires()
    follower = await bench.capture(follow=True)
    following = asyncio.create_task(whole(follower))
    count = 300
    sent = [frame(b"sniffed %d" % number, 60 + number * 4) for number in range(count)]
    for number in range(count):
        tunnel.send(mirrored(SNIFFED, number, sent[number]))
        tunnel.send(mirrored(KEPT, number, sent[number]))
        if number % 50 == 0:
            tunnel.send(mirrored(SNIFFED + (1 << 20), number, frame(b"nobody's")))
            await bench.received(number)
    got = [wire.read_label(await asyncio.to_thread(sniffers.recv, 9000)) for _ in range(count)]
    assert got == [(SNIFFED, each) for each in sent]
    sessions = await bench.sessions(lambda sessions: sessions["kept"][6] == count)
    assert [sessions[id][1:] for id in ("sniffed", "kept")] == [
        [count, sum(map(len, sent)), 0, count - 1, 0, count, 0]
    ] * 2
    assert (await bench.guest.nodes())[MACHINE].status["refused"]["unknown-session"] == count // 50
    packets, said = await whole(await bench.capture())
    assert [packet.data for packet in packets] == sent
    assert (said.received, said.lost, said.missed, said.delivered) == (count, 0, 0, count)
    assert abs(packets[0].at_ns / 1e9 - time.time()) < LIMIT_S

    await bench.guest.configure(MACHINE, {**DOCUMENT, "sessions": {}})
    packets, said = await following
    assert ([packet.data for packet in packets], said.delivered) == (sent, count)
    tunnel.close()
    sniffers.close()


@pytest.mark.long
async def test_how_many_packets_go_through_without_acceleration(bench: Bench) -> None:
    tunnel, sniffers = await wires()
    told = [await offered(bench, tunnel, "sniffed", SNIFFED, 1_000_000)]
    told += [await offered(bench, tunnel, "kept", KEPT, rate) for rate in (500, 1000, 2000, 4000)]
    print("\n".join(told))
    tunnel.close()
    sniffers.close()
    console = (await bench.guest.log(MACHINE, 20_000)).decode(errors="replace")
    assert not re.search("Out of memory|Call Trace", console)


async def offered(bench: Bench, tunnel: socket.socket, id: str, key: int, rate: int) -> str:
    """Offer packets for three seconds, under a new key; return what became of them, once all of it is counted."""
    key += rate << 16
    session = {**DOCUMENT["sessions"][id], "key": f"{key:015x}"}
    await bench.guest.configure(MACHINE, {**DOCUMENT, "sessions": {**DOCUMENT["sessions"], id: session}})
    total, began = 0, time.monotonic()
    while (took := time.monotonic() - began) < 3:
        for _ in range(max(0, min(200, int(took * rate) - total))):
            tunnel.send(mirrored(key, total, frame(b"x", 64)))
            total += 1
        await asyncio.sleep(0.001)
    while True:
        tunnel.send(mirrored(key, total, frame(b"last", 64)))
        await asyncio.sleep(1.5)
        _, received, _, _, highest, _, forwarded, dropped = (await bench.guest.nodes())[MACHINE].status["sessions"][id]
        if highest == total:
            lost = highest + 1 - received
            return (
                f"{id}: {total / took:.0f}/s offered, {received / took:.0f}/s through, {lost=} {forwarded=} {dropped=}"
            )


@pytest.mark.long
async def test_a_store_that_is_full_leaves_the_machine_room(bench: Bench) -> None:
    tunnel, sniffers = await wires()
    asked = {**DOCUMENT["sessions"]["kept"], "store_mib": 512}
    await bench.guest.configure(MACHINE, {**DOCUMENT, "sessions": {"kept": asked}})
    text, total = frame(b"x", 9 * 160), 40_000
    for number in range(total):
        if number % 200 == 0:
            await bench.received(number - 400)
        tunnel.send(mirrored(KEPT, number, text))
    await bench.received(total)
    began = time.monotonic()
    packets, said = await whole(await bench.capture())
    took = time.monotonic() - began
    size = len(packets) * len(text)
    print(f"{len(packets)} packets, {size / 1e6:.0f} MB read in {took:.1f} s; {said.comment}")
    assert (said.received, said.lost, said.delivered) == (total, 0, len(packets))
    assert said.missed == total - len(packets)
    assert 40e6 < size < 60e6
    console = (await bench.guest.log(MACHINE, 20_000)).decode(errors="replace")
    assert not re.search("Out of memory|Call Trace", console)
    tunnel.close()
    sniffers.close()
