"""What a role sees is told at once, over every carrier; a role that always has news costs no more than the host bears."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.guest.base import Guest, GuestRequest, NodeFact
from pileus.drivers.host.guest.flood import Limits
from pileus.node.applications.role import Applications
from pileus.node.document import Document
from pileus.node.duty import REST_S_MIN
from pileus.node.serve import TICK_S

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import LIMIT_S, MACHINE, NicRig, RealRig, SerialRig, TestRole
    from tests.contract.guest.test_backchannel import until_ready
else:
    from node_rigs import LIMIT_S, MACHINE, NicRig, RealRig, SerialRig, TestRole
    from test_backchannel import until_ready

pytestmark = pytest.mark.anyio

ROUNDS = 10
DOCUMENT: Document = {"applications": {"web": {"command": ["sleep", "1000"]}}}


class Restless(TestRole):
    """A role that has news whenever it is asked, long ones, and always wants to be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self._readable, self._writable = os.pipe()
        os.write(self._writable, b"x")

    def wake_fd(self) -> int:
        return self._readable

    def status(self) -> dict[str, Any]:
        self.looks += 1
        return {"looks": self.looks, "words": "x" * 20_000}

    def close(self) -> None:
        os.close(self._readable)
        os.close(self._writable)


class Busy(TestRole):
    """A role that says how it is in the middle of a request, which ends when it is ``free``."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self._tell: Callable[[dict[str, Any]], None] = lambda status: None

    def on_news(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        self._tell({"doing": id})
        assert self.free.wait(LIMIT_S)
        return b"done"


@pytest.fixture(params=["serial", "nic"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[RealRig]:
    paths = request.getfixturevalue("paths")
    made: RealRig = SerialRig(paths) if request.param == "serial" else NicRig(paths)
    yield made
    await made.close()


class Ears:
    """Waits for what the host is told, and never asks."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._changed = asyncio.Event()
        guest.on_change(lambda machine: self._changed.set())

    async def until(self, met: Callable[[NodeFact], bool]) -> NodeFact:
        async with asyncio.timeout(LIMIT_S):
            while not met(fact := (await self._guest.nodes())[MACHINE]):
                self._changed.clear()
                await self._changed.wait()
        return fact


async def ready_with(rig: RealRig, role: Any) -> Guest:
    guest = rig.guest()  # type: ignore[attr-defined]
    await rig.seed(guest)
    assert rig.appliance is not None
    rig.appliance.role = role
    await rig.start()  # type: ignore[attr-defined]
    await rig.attach(guest)  # type: ignore[attr-defined]
    await until_ready(guest)
    return guest  # type: ignore[no-any-return]


async def test_the_end_of_an_application_is_told_before_the_next_tick(rig: RealRig, tmp_path: Path) -> None:
    role = Applications(tmp_path, "boot-1")
    guest = await ready_with(rig, role)
    ears = Ears(guest)
    told_s = []
    for round in range(ROUNDS):
        wanted: Document = {"applications": {"web": {"command": ["sleep", "1000"], "version": str(round)}}}
        await guest.configure(MACHINE, wanted)
        await ears.until(lambda fact: fact.status["applications"]["web"]["state"] == "running")
        began = time.monotonic()
        os.kill(role._kept.notes["web"].pid, signal.SIGKILL)
        fact = await ears.until(lambda fact: fact.status["applications"]["web"]["state"] == "failed")
        told_s.append(time.monotonic() - began)
        assert fact.status["applications"]["web"]["code"] == "signal 9"
    print(
        f"measured: killed to told: median {statistics.median(told_s) * 1000:.1f} ms, max {max(told_s) * 1000:.1f} ms"
    )
    assert statistics.median(told_s) < TICK_S / 2
    await guest.configure(MACHINE, {})
    await guest.detach(MACHINE)
    role.close()


async def test_what_a_role_says_in_the_middle_of_a_request_is_told_then(rig: RealRig) -> None:
    role = Busy()
    guest = await ready_with(rig, role)
    ears = Ears(guest)
    request = GuestRequest(id="r-1", sequence=1, deadline=time.time() + 60)
    asked = asyncio.create_task(guest.request(MACHINE, request))
    await ears.until(lambda fact: fact.status == {"doing": "r-1"})
    assert not asked.done()
    role.free.set()
    assert (await asked).answer == b"done"
    await ears.until(lambda fact: fact.status == {})
    await guest.detach(MACHINE)


async def test_a_role_that_always_has_news_is_no_flood(request: pytest.FixtureRequest) -> None:
    limits = Limits(noise_burst_bytes=128 << 10, strikes=0)
    rig = SerialRig(request.getfixturevalue("paths"), limits=limits)
    role = Restless()
    guest = await ready_with(rig, role)
    ears = Ears(guest)
    began = time.monotonic()
    first = (await ears.until(lambda fact: "looks" in fact.status)).status["looks"]
    fact = await ears.until(lambda fact: fact.status["looks"] >= first + 40)
    assert fact.state == "ready", "it never was hung up on"
    assert time.monotonic() - began >= 40 * REST_S_MIN * 0.9, "looks are not closer than they may be"
    assert rig.port is not None
    assert rig.port.connections == 1
    await guest.detach(MACHINE)
    await rig.close()
    role.close()
