"""The mirror between hosts with real switches, two of them in pods that a router joins: nothing but the taps is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.mirror.test_mirror import KEY
from tests.contract.ovs.conftest import built
from tests.contract.ovs.frames import good as good_frame
from tests.contract.ovs.lan import LIMIT_S, Guest
from tests.contract.ovs.site import RED, Site, everybody, machine, tunnel_of

from pileus.drivers.host.mirror.base import DeliveryCounts, DeliverySpec, RelaySpec, SourceCounts, SourceSpec
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.database import UNDERLAY
from pileus.node.mirror import wire

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Three hosts with real switches."""
    async with built(tmp_path) as site:
        yield site


@pytest.fixture
async def mirrors(site: Site) -> AsyncIterator[dict[str, KernelMirror]]:
    """A mirror on each host."""
    made = {letter: KernelMirror(lan.paths, lan.uplinks) for letter, lan in site.hosts.items()}
    try:
        for mirror in made.values():
            await mirror.open()
            assert mirror.problem() == ""
        yield made
    finally:
        for mirror in made.values():
            await mirror.tear_down()


async def tap(site: Site, letter: str, name: str) -> int:
    """Return a descriptor of a tap that belongs to no bridge; who reads it is the test's affair."""
    place = site.hosts[letter].paths.namespace
    await namespace.make_tap(place, name)
    return await namespace.open_tap(place, name)


async def sent_by_underlay(site: Site, letter: str) -> int:
    """Return how many packets the kernel has given the underlay's bridge."""
    return (await namespace.counters(site.hosts[letter].paths.namespace))[UNDERLAY].tx_packets


async def frames(descriptor: int, count: int) -> list[bytes]:
    """Return the next frames of a tap."""
    found: list[bytes] = []
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        async with asyncio.timeout(LIMIT_S):
            while len(found) < count:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        found.append(os.read(descriptor, 65_536))
    finally:
        loop.remove_reader(descriptor)
    return found


async def test_what_two_vms_say_reaches_a_sniffer_in_another_pod(site: Site, mirrors: dict[str, KernelMirror]) -> None:
    """Source on a, decapsulator on c (the way is the router's), sniffer on b."""
    guests = dict(zip("abc", await everybody(site, RED), strict=True))
    into, back, sniffer = "p0000000000d1", "p0000000000d2", "p0000000000f1"
    first, second, last = await tap(site, "c", into), await tap(site, "c", back), await tap(site, "b", sniffer)
    try:
        source = SourceSpec(id="s", port=machine(RED, 10).id, key=KEY, target=tunnel_of("c"))
        await mirrors["b"].put(DeliverySpec(id="d", key=KEY, source=tunnel_of("c"), port=port_of(sniffer)))
        ports = {"tunnel_port": port_of(into), "sniffer_port": port_of(back)}
        await mirrors["c"].put(RelaySpec(id="r", key=KEY, source=tunnel_of("a"), target=tunnel_of("b"), **ports))
        await mirrors["a"].put(source)
        by_switch = await sent_by_underlay(site, "a")
        said = [frame for n in range(50) for frame in await exchange(guests["a"], guests["c"], n)]
        arrived = [wire.parse(frame) for frame in await frames(first, len(said))]
        assert [got.frame for got in arrived if isinstance(got, wire.Arrived)] == said
        for got in arrived:
            assert isinstance(got, wire.Arrived)
            os.write(second, wire.label(KEY) + got.frame)
        assert await frames(last, len(said)) == said
        # The switch asks for the way; then copies go past it.
        assert await sent_by_underlay(site, "a") - by_switch < len(said) / 2
        total = sum(map(len, said))
        assert (await mirrors["a"].observe())["s"].counts == SourceCounts(
            seen=len(said), matched=len(said), sampled=len(said), sent=len(said), sent_bytes=total
        )
        assert (await mirrors["b"].observe())["d"].counts == DeliveryCounts(
            arrived=len(said), delivered=len(said), delivered_bytes=total
        )
    finally:
        for descriptor in (first, second, last):
            os.close(descriptor)


async def exchange(one: Guest, other: Guest, number: int) -> list[bytes]:
    """Let two guests say something to each other; return both frames."""
    packets = []
    for sender, receiver in ((one, other), (other, one)):
        frame = good(sender, receiver, number)
        sender.send(frame)
        assert await receiver.arrival(frame, LIMIT_S)
        packets.append(frame)
    return packets


def good(sender: Guest, receiver: Guest, number: int) -> bytes:
    return good_frame(sender.spec, receiver.spec, b"%d;" % number + b"y" * (number * 28))


def port_of(tap: str) -> str:
    """Return a port whose tap has this name."""
    return f"port-{tap[1:]}"
