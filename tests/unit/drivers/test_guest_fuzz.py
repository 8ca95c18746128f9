"""A hundred thousand hostile inputs against the host's end: it closes the session, or goes on, and never fails.

The node has the right key: what it seals is genuine, and still may be anything. ``PILEUS_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import struct
from collections.abc import Callable

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.backchannel import Backchannel
from pileus.drivers.host.guest.carriers import Callee, Carrier
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.untrusted import MESSAGE_BYTES_MAX, Hostile, read_message, readable
from pileus.node.datagrams import UNSENT_BYTES_MAX, WINDOW_MAX, Datagrams
from pileus.node.session import WINDOW_BYTES, Session
from pileus.node.wire import BODY_BYTES_MAX, FRAME_OVERHEAD_BYTES, MARK

CASES = 100_000
MEMORY_MIB_MAX = 64
KEY = bytes(range(32))

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Drain:
    """A carrier that takes everything and counts; the host's answers go to the node by hand."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False

    def room(self) -> int:
        return 1 << 20

    def write(self, data: bytes) -> None:
        self.sent += data

    def pause(self, seconds: float) -> None:
        """Nothing to pause."""

    def close(self) -> None:
        self.closed = True


class Attack:
    """A host's end, a node's session that opens whenever it is closed, and what a hostile node does with it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.drain = Drain()
        limits = Limits(noise_burst_bytes=1 << 40, traffic_burst_bytes=1 << 40, offences_max=1 << 40)
        self.channel = Backchannel("0197-vm", KEY, self._dial, lambda: None, limits)
        self.node = Session("node", KEY)
        self.task = asyncio.ensure_future(self.channel.run())
        self.refused = self.opened = 0

    async def _dial(self, callee: Callee) -> Carrier:
        return self.drain

    def open(self) -> None:
        """Bring a session about."""
        self.channel._call()
        for _ in range(3):
            self.node.receive(bytes(self.drain.sent))
            self.drain.sent.clear()
            self.channel.received(self.node.outgoing(1 << 20))
        assert self.channel._conversation.session.open
        self.opened += 1

    def case(self) -> None:
        """Send one hostile input."""
        if not self.channel._conversation.session.open:
            self.open()
        attack = self.random.choice(ATTACKS)
        self.channel.received(attack(self))
        self.drain.sent.clear()
        self.check()

    def check(self) -> None:
        """The memory that a node can make us hold is bounded."""
        session = self.channel._conversation.session
        assert len(session.wire._unread) <= BODY_BYTES_MAX + FRAME_OVERHEAD_BYTES
        assert len(session._partial) <= MESSAGE_BYTES_MAX
        for stream in self.channel._conversation._streams.values():
            assert len(stream._unread) <= WINDOW_BYTES
        assert len(session._urgent) < 1000
        assert len(json.dumps(self.channel.fact.status)) <= 6 * (64 << 10)

    def seal(self, payload: bytes) -> bytes:
        return self.node.wire.seal(payload[:BODY_BYTES_MAX])

    def some(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def mutated(self, text: bytes) -> bytes:
        changed = bytearray(text)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(changed))
            changed[at : at + self.random.randrange(3)] = self.some(4)
            changed = changed or bytearray(b"x")
        return bytes(changed)


REPORT = json.dumps({"report": {"hash": "0" * 32, "version": "1", "boot_id": "a-b", "status": {"a": [1, {"b": None}]}}})
ODD = [
    "[" * 4000, '{"report":{"status":' + '{"a":' * 900 + "1" + "}" * 902, '{"id":1e400}', '{"id":-1,"report":null}',
    '{"report":{"hash":1}}', '{"report":{"status":{"x":1e999}}}', '{"report":{"status":{"\\ud800":"\\udfff"}}}',
    '{"report":{"status":{"n":' + "9" * 3000 + "}}}", '{"report":{"refused":"\\u0000\\u202e"}}', "null", "0", '""', "",
    '{"report":' + '{"status":{"a":[' + "[],".join([""] * 1000) + "[]]}}}",
]  # fmt: skip


def garbage(attack: Attack) -> bytes:
    return attack.some(300)


def marks(attack: Attack) -> bytes:
    """Headers that promise what does not come."""
    kind, length = attack.random.randrange(8), attack.random.choice([0, 1, 64, 4096, 4097, 65535])
    return (MARK + struct.pack(">BH", kind, length)) * attack.random.randrange(1, 5) + attack.some(100)


def sealed(attack: Attack) -> bytes:
    """A genuine frame of any content."""
    return attack.seal(attack.some(60) or b"\0")


def stream_frames(attack: Attack) -> bytes:
    kind, stream = attack.random.randrange(10), attack.random.choice([0, 1, 2, 3, 77, 2**32 - 1])
    return attack.seal(struct.pack(">BI", kind, stream) + attack.some(40))


def valid_then_changed(attack: Attack) -> bytes:
    return attack.mutated(attack.seal(b"\x02" + REPORT.encode()))


def truncated(attack: Attack) -> bytes:
    frame = attack.seal(b"\x02" + REPORT.encode())
    return frame[: attack.random.randrange(len(frame))] + attack.some(5)


def replayed(attack: Attack) -> bytes:
    return attack.seal(b"\x02" + REPORT.encode()) * 2


def texts(attack: Attack) -> bytes:
    """A genuine message that is nearly a report."""
    return attack.seal(b"\x02" + attack.mutated(REPORT.encode()))


def oddities(attack: Attack) -> bytes:
    text = attack.random.choice(ODD).encode()
    parts = [text[at : at + 4000] for at in range(0, len(text), 4000)] or [b""]
    return b"".join(attack.seal((b"\x02" if part is parts[-1] else b"\x01") + part) for part in parts)


def endless(attack: Attack) -> bytes:
    """Parts of a message that has no end."""
    return b"".join(attack.seal(b"\x01" + bytes(4000)) for _ in range(attack.random.randrange(1, 6)))


def openings(attack: Attack) -> bytes:
    attack.node.start()
    return attack.mutated(attack.node.outgoing(1 << 20)[-300:])


def good(attack: Attack) -> bytes:
    return attack.seal(b"\x02" + REPORT.encode())


ATTACKS: list[Callable[[Attack], bytes]] = [
    garbage, marks, sealed, stream_frames, stream_frames, valid_then_changed, truncated, replayed, texts, texts,
    oddities, endless, openings, good, good,
]  # fmt: skip


async def test_no_bytes_of_a_node_bring_the_host_down() -> None:
    seed = int(os.environ.get("PILEUS_FUZZ_SEED", "0")) or random.randrange(2**32)
    print(f"PILEUS_FUZZ_SEED={seed}")
    attack = Attack(seed)
    await asyncio.sleep(0)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(CASES // 2):
        attack.case()
        if number % 500 == 0:
            await open_a_stream(attack)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < MEMORY_MIB_MAX << 10
    attack.open()
    attack.channel.received(good(attack))
    assert attack.channel.fact.state == "ready", "it is as good as new"
    assert attack.opened > 1000
    attack.task.cancel()
    await asyncio.gather(attack.task, return_exceptions=True)
    assert attack.drain.closed


async def open_a_stream(attack: Attack) -> None:
    """Let streams and requests be under way while the node does its worst; they end with the session."""
    if not attack.channel._conversation.session.open:
        attack.open()
    try:
        async with asyncio.timeout(0.001):
            await attack.channel.connect("10.0.0.1", 80, 1.0)
    except (DriverError, TimeoutError):
        attack.refused += 1


def test_no_message_brings_the_reader_down() -> None:
    seed = int(os.environ.get("PILEUS_FUZZ_SEED", "0")) or random.randrange(2**32)
    print(f"PILEUS_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    texts = [REPORT.encode(), *(odd.encode() for odd in ODD), b'{"id":1,"answer":{"state":"applied"}}\nsaid\n']
    for _ in range(CASES // 4):
        text = bytearray(chance.choice(texts))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(text) + 1)
            text[at : at + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
        try:
            message, rest = read_message(bytes(text))
        except Hostile:
            continue
        assert not rest or message.answer is not None
        if message.report is not None:
            assert readable(message.report.refused).isprintable()
            json.dumps(message.report.status)


def test_no_frame_of_the_switch_brings_the_byte_stream_down() -> None:
    seed = int(os.environ.get("PILEUS_FUZZ_SEED", "0")) or random.randrange(2**32)
    print(f"PILEUS_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    end = Datagrams()
    for number in range(CASES // 4):
        numbers = [chance.choice([0, end._own, end._peer, 1, 2**32 - 1, chance.randrange(2**32)]) for _ in range(4)]
        body = chance.randbytes(chance.choice([0, 1, 60]))
        length = chance.choice([len(body), len(body), 0, 65535])
        frame = struct.pack(">IIIIH", *numbers, length) + body
        end.receive(frame[: chance.randrange(len(frame) + 1)] if chance.random() < 0.1 else frame, number / 100)
        if end.room() > 2000:
            end.write(b"x" * 100)
        assert all(len(out) <= 1400 for out in end.outgoing(number / 100))
        assert len(end._ahead) <= WINDOW_MAX
        assert len(end._unsent) <= UNSENT_BYTES_MAX
        assert len(end._under_way) <= WINDOW_MAX
