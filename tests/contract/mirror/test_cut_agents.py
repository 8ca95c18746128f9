"""An agent that dies between any two things it asks of the kernel: the next one finishes its work, or takes it back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.contract.mirror.rig import RealHost, RealRig, put
from tests.contract.mirror.test_mirror import KEY, SNIFFER, SNIFFER_NIC, TUNNEL_NIC, WEB, delivery, relay, source, udp

from pileus.drivers.host.mirror import devices
from pileus.drivers.host.mirror.base import LegSpec
from pileus.drivers.host.mirror.pins import Pins
from pileus.drivers.host.mirror.real import QUEUE
from pileus.drivers.host.mirror.wanted import COPIES, Leg
from pileus.drivers.host.notes import FileNotes
from pileus.drivers.host.ovs import namespace
from pileus.node.ebpf import kernel

pytestmark = pytest.mark.anyio

STEPS = (
    (kernel, "create_map"), (kernel, "pin"), (kernel, "load"), (kernel, "attach"), (kernel, "replace"), (kernel, "update"),
    (kernel, "delete"), (devices, "say_what_is_dropped"), (devices, "be_as_usual"), (Pins, "drop"), (FileNotes, "put"),
    (FileNotes, "remove"),
)  # fmt: skip
"""What changes the world; each is the last thing of some agent."""


class Killed(BaseException):
    """Nobody catches this: the agent is gone."""


def die_before(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the agent die before its ``number``-th step."""
    steps = itertools.count()

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(steps) >= number:
                raise Killed
            return real(*arguments, **named)

        return step

    for place, name in STEPS:
        monkeypatch.setattr(place, name, wrap(getattr(place, name)))


async def live_until(monkeypatch: pytest.MonkeyPatch, number: int, host: RealHost, work: Callable[[], Any]) -> bool:
    """Let an agent work until its ``number``-th step; then another one takes over. Return whether it came to an end."""
    with monkeypatch.context() as cut:
        die_before(cut, number)
        try:
            await work()
            is_done = True
        except Killed:
            is_done = False
    host.restart()
    await host.mirror.open()
    return is_done


@pytest.mark.parametrize(
    "kind", [*(pytest.param(each, marks=pytest.mark.long) for each in ("first", "changed")), "removed"]
)
async def test_the_next_agent_sees_the_work_through(real: RealRig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    host = real.real["a"]
    await host.plug(WEB, SNIFFER, TUNNEL_NIC, SNIFFER_NIC)
    old: list[LegSpec] = [delivery(), relay(target=""), source(number=1)]
    new: list[LegSpec] = [delivery(key=KEY + 1), relay(target="", key=KEY + 1), source(key=KEY + 1, number=1)]
    goal = [] if kind == "removed" else new
    for number in itertools.count():
        if kind != "first":
            await put(host, *old)

        async def work() -> None:
            for spec in old if kind == "removed" else goal:
                await (host.mirror.remove(spec.id) if kind == "removed" else host.mirror.put(spec))

        is_done = await live_until(monkeypatch, number, host, work)
        # As an agent does: it ends what it knows of and nobody wants, and cannot ask for more.
        for id in set(await host.mirror.known()).difference(each.id for each in goal):
            await host.mirror.remove(id)
        if not goal:
            assert not list(host.paths.run.iterdir()), number
        await put(host, *goal)
        assert {id: fact.spec for id, fact in (await host.mirror.observe()).items()} == {each.id: each for each in goal}
        await check(host, udp(number), 1 if goal else 0)
        for spec in old:
            await host.mirror.remove(spec.id)
        assert not list(host.paths.run.iterdir())
        if is_done:
            assert number > 10, "no step was cut"
            break


@pytest.mark.parametrize("forgotten", ["s", "srd"])
async def test_what_no_note_speaks_of_goes_when_the_next_agent_opens(real: RealRig, forgotten: str) -> None:
    """The one before was killed when it had removed notes, and nothing else."""
    host = real.real["a"]
    await host.plug(WEB, SNIFFER, TUNNEL_NIC, SNIFFER_NIC)
    await put(host, delivery(), relay(target=""))
    before = links(host)
    await put(host, source())
    assert links(host) != before
    notes = FileNotes(host.paths.run / "mirror-legs")
    for id in notes.ids():
        if not id.startswith(QUEUE) and msgspec.json.decode(notes.get(id) or b"", type=Leg).spec.id in forgotten:
            notes.remove(id)
    host.restart()
    await host.mirror.open()
    if forgotten == "s":
        assert links(host) == before
        assert set(await host.mirror.known()) == set(await host.mirror.observe()) == {"r", "d"}
        return
    assert not list(host.paths.run.iterdir())
    assert COPIES not in await namespace.inside(host.paths.namespace, devices.numbers)


def links(host: RealHost) -> list[str]:
    """Return the names of the programs that run."""
    return Pins(host.paths.run / "mirror", host.paths.run / "mirror-links").links()


async def check(host: RealHost, frame: bytes, times: int) -> None:
    """Check that a frame at the watched port arrives at the sniffer so often."""
    host.delivered.clear()
    host.passes(WEB, frame, "egress")
    if times:
        await host.until(lambda: len(host.delivered[SNIFFER]) >= times)
    assert host.delivered[SNIFFER] == [frame] * times
