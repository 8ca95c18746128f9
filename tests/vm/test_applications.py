"""Applications inside a real appliance: one that dies is known at once, and they go on when the node's program dies."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestRequest

if TYPE_CHECKING:
    from tests.vm.appliance_rack import LIMIT_S, Rack, a_rack, ready
else:
    from appliance_rack import LIMIT_S, Rack, a_rack, ready

pytestmark = pytest.mark.anyio

MACHINE = "applications-1"
WEB = "echo $$ > /run/web.pid; while :; do sleep 1000; done"
COUP = "for p in /proc/[0-9]*; do [ ${p##*/} = $$ ] || ! grep -q pileus.node $p/cmdline || kill -9 ${p##*/}; done"
ARM = "cd; [ -e armed ] || { touch armed; exit 0; }; "
"""What comes after it is done when it is started the second time."""

DOCUMENT: dict[str, dict[str, Any]] = {
    "applications": {
        "web": {"command": ["sh", "-c", WEB], "version": "1", "settle_s": 1, "stop_s": 1},
        "sniper": {"command": ["sh", "-c", ARM + 'read pid < /run/web.pid; echo BANG > /dev/console; kill -9 $pid']},
        "coup": {"command": ["sh", "-c", ARM + COUP]},
        "clerk": {"command": ["sh", "-c", "id -un; exec sleep 1000"], "user": "ann"},
    },
    "users": {"ann": {"rights": ["/sbin/reboot"]}},
    "registrations": {"db": {"until": "2100-01-01T00:00:00Z"}},
}  # fmt: skip
POLLS = 20
TOLD_S = 2.0
"""Of what takes a few milliseconds, under emulation on a busy machine."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack() as made:
        yield made


class Node:
    """A node that runs applications, and its host, which is told of changes."""

    def __init__(self, rack: Rack) -> None:
        self._rack = rack
        self._sequences = itertools.count(1)
        self._changed = asyncio.Event()
        rack.guest.on_change(lambda machine: self._changed.set())

    async def applications(self) -> dict[str, Any]:
        """Return what the host knows."""
        return dict((await self._rack.guest.nodes())[MACHINE].status.get("applications", {}))

    async def until(self, name: str, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return what the host knows of an application as soon as it was told what is waited for; it never asks."""
        async with asyncio.timeout(LIMIT_S):
            while not met(told := (await self.applications()).get(name, {})):
                self._changed.clear()
                await self._changed.wait()
        return dict(told)

    async def ask(self, **asked: Any) -> tuple[str, dict[str, Any]]:
        """Return how a request ended; a node whose program was killed is asked again."""
        sequence = next(self._sequences)
        payload = json.dumps(asked).encode()
        request = GuestRequest(id=f"r-{sequence}", sequence=sequence, deadline=time.time() + 3600, payload=payload)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    answer = await self._rack.guest.request(MACHINE, request)
                except DriverError:
                    await self._rack.until(MACHINE, ready)
                    continue
                said = answer.answer.decode()
                return answer.state, json.loads(said) if answer.state == "applied" else {"words": said}

    async def printed(self, words: str) -> float:
        """Return when the console printed it."""
        before = (await self._rack.guest.log(MACHINE, 1 << 20)).count(words.encode())
        async with asyncio.timeout(LIMIT_S):
            # Nobody tells of what a console prints.
            while (await self._rack.guest.log(MACHINE, 1 << 20)).count(words.encode()) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return time.monotonic()


async def test_an_application_that_dies_is_told_at_once_restarted_updated_and_outlives_the_nodes_program(
    rack: Rack,
) -> None:
    await rack.start(MACHINE, "serial", role="applications")
    await rack.guest.attach(MACHINE, "serial")
    await rack.until(MACHINE, ready)
    node = Node(rack)
    await rack.guest.configure(MACHINE, DOCUMENT)
    await node.until("web", lambda told: told["state"] == "running")
    fact = await rack.guest.poll(MACHINE, LIMIT_S)
    assert (fact.status["users"], fact.status["registrations"]) == (["ann"], {"db": "valid"})
    assert (await node.ask(do="log", application="clerk"))[1]["log"] == "ann\n"
    began = time.monotonic()
    for _ in range(POLLS):
        await rack.guest.poll(MACHINE, LIMIT_S)
    print(f"measured: a poll takes {(time.monotonic() - began) / POLLS * 1000:.1f} ms")
    for exits in range(1, 4):
        await is_told_and_restarted(node, exits)
    web = await is_updated(node)

    silent = asyncio.create_task(until_silent(rack))
    await node.ask(do="start", application="coup")
    await silent
    await rack.until(MACHINE, ready)
    again = await rack.guest.poll(MACHINE, LIMIT_S)
    assert again.boot_id == fact.boot_id
    assert again.status["applications"]["web"] == web, "it did not even notice"
    await node.ask(do="restart", application="sniper")
    told = await node.until("web", lambda told: told["state"] == "failed")
    assert (told["code"], told["exits"]) == ("unknown", web["exits"] + 1)


async def is_told_and_restarted(node: Node, exits: int) -> None:
    """Kill the application, and look that the host is told of it, and that a request mends it."""
    shot = asyncio.create_task(node.printed("BANG"))
    asked = asyncio.create_task(node.ask(do="start", application="sniper"))
    shot_at = await shot
    told = await node.until("web", lambda told: told["state"] == "failed")
    told_s = time.monotonic() - shot_at
    print(f"measured: from SIGKILL in the guest to the host's knowing: {told_s * 1000:.0f} ms")
    assert (told["code"], told["exits"]) == ("signal 9", exits)
    assert told_s < TOLD_S
    await asked
    assert await node.ask(do="restart", application="web") == ("applied", {"state": "running"})
    assert (await node.until("web", lambda told: told["state"] == "running"))["exits"] == exits


async def is_updated(node: Node) -> dict[str, Any]:
    """Update the application once well and once not, and return what is known of it then."""
    updated = await node.ask(do="update", application="web", version="2")
    assert updated == ("applied", {"state": "running", "version": "2"})
    state, said = await node.ask(do="update", application="web", version="3", command=["false"])
    words = "the update of web failed, 2 runs on: version 3: exit 1 within 1 s"
    assert (state, said["words"]) == ("refused", words)
    return await node.until("web", lambda told: "update" in told and told["state"] == "running")


async def until_silent(rack: Rack) -> None:
    """Return when the node's program has ended."""
    changed = asyncio.Event()
    rack.guest.on_change(lambda machine: changed.set())
    async with asyncio.timeout(LIMIT_S):
        while (await rack.guest.nodes())[MACHINE].state == "ready":
            changed.clear()
            await changed.wait()
