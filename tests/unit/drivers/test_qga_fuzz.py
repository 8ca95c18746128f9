"""Whatever a guest's agent says, the host's end gives a typed error and hangs up; it never keeps more than an answer."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, cast

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.qga import ANSWER_BYTES_MAX, NOISE_BYTES_MAX, GuestAgent

pytestmark = pytest.mark.anyio

CASES = 20_000

HONEST: list[dict[str, Any]] = [
    {"return": {"version": "7.2", "supported_commands": [{"name": "guest-exec", "enabled": True}]}, "id": "1"},
    {"return": 1000, "id": "1"},
    {"return": {"count": 2, "buf-b64": "eHg=", "eof": True}, "id": "2"},
    {"return": {"pid": 7}, "id": "1"},
    {"return": {"exited": True, "exitcode": 0, "out-data": "eHg="}, "id": "2"},
    {"error": {"class": "CommandNotFound", "desc": "no"}, "id": "1"},
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Nowhere:
    """Takes what the host says."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        return

    async def drain(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


def said(chance: random.Random) -> bytes:
    """Return what an agent may say: garbage, or something that is almost an answer."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    lines = [json.dumps(chance.choice(HONEST)).encode() for _ in range(chance.randrange(1, 5))]
    text = bytearray(b"\n".join(lines) + b"\n")
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(text))
        text[at : at + chance.randrange(3)] = chance.choice([b"", b"\n", b"\xff", b"{", b'"', b"[[", b"\0", b"1e999"])
        if not text:
            return b""
    return bytes(text)


async def listen(words: bytes, what: str) -> str:
    """Return how a call went whose agent says ``words`` and ends."""
    reader = asyncio.StreamReader(limit=ANSWER_BYTES_MAX)
    reader.feed_data(words)
    reader.feed_eof()
    writer = Nowhere()
    agent = GuestAgent("vm-1", reader, cast(asyncio.StreamWriter, writer))
    try:
        if what == "sync":
            await agent.sync(5.0)
        elif what == "facts":
            await agent.facts()
        elif what == "read":
            content, _ = await agent.read("/x", 100)
            assert len(content) <= 100
        else:
            agent.text(await agent.run(("/x",), 5.0))
    except DriverError as error:
        return error.reason if writer.closed == (error.reason in ("NodeSilent", "NodeHostile")) else "left open"
    return "done"


async def test_no_words_of_an_agent_break_the_host() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    found = {await listen(said(chance), chance.choice(["sync", "facts", "read", "run"])) for _ in range(CASES)}
    assert {"done", "NodeSilent", "NodeHostile", "AgentRefused"} <= found
    assert found <= {"done", "NodeSilent", "NodeHostile", "AgentRefused"}


async def test_too_much_is_hung_up_on() -> None:
    assert await listen(b"x" * (ANSWER_BYTES_MAX + 1), "facts") == "NodeHostile"
    assert await listen(b"x\n" * NOISE_BYTES_MAX, "sync") == "NodeHostile"
    assert await listen(b'{"return":' + b"[" * 100_000 + b"\n", "facts") == "NodeHostile"
    assert await listen(b'{"return": ' + b"9" * 10_000 + b"}\n", "read") == "NodeHostile"
