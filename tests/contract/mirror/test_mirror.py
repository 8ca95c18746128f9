"""What holds for every mirror, in memory and in the kernel."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from tests.contract.mirror.rig import Host, Rig, counts, put

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror.base import (
    DeliveryCounts,
    DeliverySpec,
    LegSpec,
    RelayCounts,
    RelaySpec,
    SourceCounts,
    SourceSpec,
)
from pileus.node.mirror.rules import SESSIONS_PER_PORT_MAX, SNAP_BYTES_MIN, Rule, samples_flow

pytestmark = pytest.mark.anyio

WEB, SNIFFER, TUNNEL_NIC, SNIFFER_NIC = (
    "port-00000000web0",
    "port-0000000005f1",
    "port-00000000d001",
    "port-00000000d002",
)
KEY = 0x2AA_AAAA_AAAA_0005
UDP = 17


def udp(number: int, *, port: int = 53, size: int = 40, source: str = "10.1.1.2") -> bytes:
    """A frame that tells its number, of ``size`` bytes after its UDP header."""
    payload = struct.pack("!HHHHQ", 1000 + number % 60_000, port, 8 + size, 0, number).ljust(8 + size, b"x")
    ends = ip_address(source).packed + ip_address("10.1.1.3").packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, UDP, 0) + ends
    return bytes.fromhex("5254000000025254000000010800") + head + payload


def source(key: int = KEY, id: str = "s", target: str = "", **fields: Any) -> SourceSpec:
    return SourceSpec(**{"id": id, "port": WEB, "key": key, "target": target, **fields})


def relay(origin: str = "", target: str | None = None, key: int = KEY, id: str = "r") -> RelaySpec:
    return RelaySpec(
        id=id, key=key, source=origin, tunnel_port=TUNNEL_NIC, sniffer_port=SNIFFER_NIC, target=target
    )  # fmt: skip


def delivery(origin: str = "", key: int = KEY, id: str = "d", port: str = SNIFFER) -> DeliverySpec:
    return DeliverySpec(id=id, key=key, source=origin, port=port)


async def one_host(rig: Rig, *specs: LegSpec) -> Host:
    host = rig.hosts["a"]
    await host.plug(WEB, SNIFFER, TUNNEL_NIC, SNIFFER_NIC)
    await put(host, *specs)
    return host


async def three_hosts(rig: Rig, **fields: Any) -> tuple[Host, Host, Host]:
    """Source on a, decapsulator on b, sniffer on c."""
    a, b, c = (rig.hosts[letter] for letter in "abc")
    await a.plug(WEB)
    await b.plug(TUNNEL_NIC, SNIFFER_NIC)
    await c.plug(SNIFFER)
    await put(c, delivery(b.address))
    await put(b, relay(a.address, c.address))
    await put(a, source(target=b.address, **fields))
    return a, b, c


async def test_what_passes_a_port_reaches_the_sniffer_unchanged_over_three_hosts(rig: Rig) -> None:
    a, b, c = await three_hosts(rig)
    frames = [udp(number, size=number % 1400 + 8) for number in range(200)]
    for number, frame in enumerate(frames):
        a.passes(WEB, frame, "egress" if number % 2 else "ingress")
    await c.until(lambda: len(c.delivered[SNIFFER]) == len(frames))
    assert c.delivered[SNIFFER] == frames
    arrived = b.arrived[TUNNEL_NIC]
    assert [got.header.sequence for got in arrived] == list(range(200))
    assert {got.header.direction for got in arrived[1::2]} == {"egress"}
    assert {(got.header.source, got.header.key, got.header.truncated) for got in arrived} == {(a.address, KEY, False)}
    total = sum(map(len, frames))
    assert await counts(a, "s") == SourceCounts(seen=200, matched=200, sampled=200, sent=200, sent_bytes=total)
    assert await counts(b, "r") == RelayCounts(arrived=200, relayed=200)
    assert await counts(c, "d") == DeliveryCounts(arrived=200, delivered=200, delivered_bytes=total)


async def test_all_legs_may_be_on_one_host(rig: Rig) -> None:
    host = await one_host(rig, delivery(), relay(target=""), source())
    frames = [udp(number) for number in range(50)]
    for frame in frames:
        host.passes(WEB, frame, "egress")
    await host.until(lambda: len(host.delivered[SNIFFER]) == 50)
    assert host.delivered[SNIFFER] == frames
    assert {got.header.source for got in host.arrived[TUNNEL_NIC]} == {"0.0.0.0"}


async def test_a_relay_without_target_keeps_the_packets(rig: Rig) -> None:
    host = await one_host(rig, delivery(), relay(target=None), source())
    host.passes(WEB, udp(1), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 1)
    assert await counts(host, "r") == RelayCounts(arrived=1)
    assert host.delivered[SNIFFER] == []


@pytest.mark.parametrize("length", [14, 15, 33, 34, 35, 59, 60])
async def test_the_shortest_frames_are_carried_as_they_are(rig: Rig, length: int) -> None:
    host = await one_host(rig, delivery(), relay(target=""), source())
    frame = udp(1)[:12] + b"\x88\xcc" + bytes(range(length - 14))
    host.passes(WEB, frame, "egress")
    await host.until(lambda: len(host.delivered[SNIFFER]) == 1)
    assert host.delivered[SNIFFER] == [frame]


@pytest.mark.parametrize("snap", [1, 64, 65, 128])
async def test_a_snap_length_cuts_and_says_so(rig: Rig, snap: int) -> None:
    host = await one_host(rig, delivery(), relay(target=""), source(snap_bytes=snap))
    frames, length = [udp(1, size=500), udp(2, size=8)], max(snap, SNAP_BYTES_MIN)
    for frame in frames:
        host.passes(WEB, frame, "egress")
    await host.until(lambda: len(host.delivered[SNIFFER]) == 2)
    assert host.delivered[SNIFFER] == [frame[:length] for frame in frames]
    assert [got.header.truncated for got in host.arrived[TUNNEL_NIC]] == [len(frame) > length for frame in frames]
    assert (await counts(host, "s")).truncated == sum(len(frame) > length for frame in frames)  # type: ignore[union-attr]


async def test_a_direction_sees_that_direction_only(rig: Rig) -> None:
    host = await one_host(rig, relay(), source(direction="ingress"))
    for number in range(4):
        host.passes(WEB, udp(number), "egress" if number % 2 else "ingress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 2)
    assert [got.frame for got in host.arrived[TUNNEL_NIC]] == [udp(0), udp(2)]
    assert await counts(host, "s") == SourceCounts(seen=2, matched=2, sampled=2, sent=2, sent_bytes=2 * len(udp(0)))


async def test_the_first_session_that_takes_a_packet_gets_it_and_nobody_else(rig: Rig) -> None:
    dns = (Rule(protocol=UDP, destination_ports=(53, 53)),)
    host = await one_host(
        rig, relay(), relay(key=KEY + 1, id="r2"),
        source(id="all", key=KEY + 1, number=7), source(id="dns", number=3, rules=dns),
    )  # fmt: skip
    for port in (53, 80, 53):
        host.passes(WEB, udp(port, port=port), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 3)
    ports = [(got.header.key, got.frame) for got in host.arrived[TUNNEL_NIC]]
    assert ports == [(KEY, udp(53)), (KEY + 1, udp(80, port=80)), (KEY, udp(53))]
    every, first = await counts(host, "all"), await counts(host, "dns")
    assert isinstance(every, SourceCounts)
    assert isinstance(first, SourceCounts)
    assert (every.seen, every.matched, first.seen, first.matched) == (3, 1, 3, 2)


async def test_sessions_without_a_number_take_nothing_from_each_other(rig: Rig) -> None:
    dns = (Rule(protocol=UDP, destination_ports=(53, 53)),)
    host = await one_host(
        rig, relay(), relay(key=KEY + 1, id="r2"), relay(key=KEY + 2, id="r3"),
        source(id="all"), source(id="dns", key=KEY + 1, rules=dns), source(id="first", key=KEY + 2, number=1),
    )  # fmt: skip
    for port in (53, 80):
        host.passes(WEB, udp(port, port=port), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 5)
    got = sorted((one.header.key - KEY, one.frame) for one in host.arrived[TUNNEL_NIC])
    assert got == sorted([(0, udp(53)), (0, udp(80, port=80)), (1, udp(53)), (2, udp(53)), (2, udp(80, port=80))])


async def test_flows_are_sampled_whole(rig: Rig) -> None:
    host = await one_host(rig, relay(), source(sample_one_in=4, sample_by="flow"))
    frames = [udp(number, size=8) for number in range(400)] * 2
    wanted = [frame for frame in frames if samples_flow(frame, 4)]
    for frame in frames:
        host.passes(WEB, frame, "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == len(wanted))
    assert [got.frame for got in host.arrived[TUNNEL_NIC]] == wanted
    found = await counts(host, "s")
    assert isinstance(found, SourceCounts)
    assert (found.seen, found.matched, found.sampled, found.sent) == (800, 800, len(wanted), len(wanted))


async def test_one_packet_in_so_many_is_sampled(rig: Rig) -> None:
    host = await one_host(rig, relay(), source(sample_one_in=4))
    for number in range(2000):
        host.passes(WEB, udp(number, size=8), "ingress")
    found = await counts(host, "s")
    assert isinstance(found, SourceCounts)
    assert (found.seen, found.matched, found.sampled) == (2000, 2000, found.sent)
    # Six standard deviations of 2,000 draws with a chance of 1/4.
    assert abs(found.sampled - 500) < 6 * (2000 * 3 / 16) ** 0.5


async def test_a_rate_cap_holds_and_the_port_loses_nothing(rig: Rig) -> None:
    rate_kbps = 800
    host = await one_host(rig, relay(), source(rate_limit_kbps=rate_kbps))
    for number in range(300):
        host.passes(WEB, udp(number, size=1000), "egress")
    found = await counts(host, "s")
    assert isinstance(found, SourceCounts)
    assert (found.seen, found.sampled, found.sent) == (300, 300, 300 - found.limited)
    # 100 ms ahead are 10,000 bytes: ten frames; a slow machine takes longer to send them all, and is allowed more.
    assert found.sent >= 10
    assert found.limited > 0


async def test_a_leg_is_observed_as_put_and_gone_when_removed(rig: Rig) -> None:
    host = await one_host(rig)
    specs: list[LegSpec] = [source(rules=(Rule(protocol="arp"), Rule(source="fd00::/8"))), relay(target=""), delivery()]
    for spec in specs:
        await host.mirror.put(spec)
        await host.mirror.put(spec)
    seen = await host.mirror.observe()
    assert {id: fact.spec for id, fact in seen.items()} == {spec.id: spec for spec in specs}
    for spec in specs:
        await host.mirror.remove(spec.id)
        await host.mirror.remove(spec.id)
        assert spec.id not in await host.mirror.observe()
    assert await host.mirror.observe() == {}


async def test_another_agent_adopts_legs_with_their_counts(rig: Rig) -> None:
    host = await one_host(rig, relay(), source())
    host.passes(WEB, udp(1), "egress")
    await host.mirror.close()
    host.passes(WEB, udp(2), "egress")
    host.restart()
    await host.mirror.open()
    host.passes(WEB, udp(3), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 3)
    assert [got.header.sequence for got in host.arrived[TUNNEL_NIC]] == [0, 1, 2]
    assert (await counts(host, "s")).sent == 3  # type: ignore[union-attr]
    assert set(await host.mirror.observe()) == {"r", "s"}


async def test_a_changed_leg_keeps_its_counts_and_a_new_key_has_none(rig: Rig) -> None:
    host = await one_host(rig, relay(), relay(key=KEY + 1, id="r2"), source())
    host.passes(WEB, udp(1), "egress")
    await host.mirror.put(source(snap_bytes=64))
    host.passes(WEB, udp(2), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 2)
    assert (await counts(host, "s")).sent == 2  # type: ignore[union-attr]
    await host.mirror.put(source(key=KEY + 1))
    assert await counts(host, "s") == SourceCounts()
    host.passes(WEB, udp(3), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 3)
    assert [(got.header.key, got.header.sequence) for got in host.arrived[TUNNEL_NIC]] == [
        (KEY, 0), (KEY, 1), (KEY + 1, 0),
    ]  # fmt: skip


async def test_a_source_that_takes_anothers_place_misses_no_packet_and_doubles_none(rig: Rig) -> None:
    host = await one_host(rig, relay(), source(session="one"))
    passed, is_over = 0, asyncio.Event()

    async def pass_all() -> None:
        nonlocal passed
        while not is_over.is_set():
            host.passes(WEB, udp(passed, size=8), "egress" if passed % 2 else "ingress")
            passed += 1
            await asyncio.sleep(0)

    passing = asyncio.create_task(pass_all())
    changes = 20
    for number in range(1, changes + 1):
        await host.mirror.put(source(key=KEY + number, id=f"s{number}", session="one"))
    is_over.set()
    await passing
    found = [await counts(host, id) for id in ("s", *(f"s{number}" for number in range(1, changes + 1)))]
    assert sum(each.seen for each in found if isinstance(each, SourceCounts)) == passed
    assert all(isinstance(each, SourceCounts) and each.sent == each.seen for each in found)


async def test_of_a_sessions_sources_at_a_port_the_newest_copies(rig: Rig) -> None:
    host = await one_host(rig, relay(), relay(key=KEY + 1, id="r2"), source(session="one"))
    host.passes(WEB, udp(1), "egress")
    await host.mirror.put(source(key=KEY + 1, id="s2", session="one"))
    await host.mirror.put(source(session="one"))
    host.passes(WEB, udp(2), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 2)
    assert [(got.header.key, got.header.sequence) for got in host.arrived[TUNNEL_NIC]] == [(KEY, 0), (KEY + 1, 0)]
    length = len(udp(1))
    each = SourceCounts(seen=1, matched=1, sampled=1, sent=1, sent_bytes=length)
    assert (await counts(host, "s"), await counts(host, "s2")) == (each, each)
    await host.mirror.remove("s")
    host.passes(WEB, udp(3), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 3)
    assert set(await host.mirror.observe()) == {"r", "r2", "s2"}


async def test_copies_with_an_unknown_key_or_from_another_source_arrive_nowhere(rig: Rig) -> None:
    a, b, c = await three_hosts(rig)
    await put(b, relay(c.address, c.address))
    a.passes(WEB, udp(1), "egress")
    await put(b, relay(a.address, c.address, key=KEY + 1))
    a.passes(WEB, udp(2), "egress")
    await put(b, relay(a.address, c.address))
    a.passes(WEB, udp(3), "egress")
    await c.until(lambda: len(c.delivered[SNIFFER]) == 1)
    assert c.delivered[SNIFFER] == [udp(3)]
    assert b.arrived[TUNNEL_NIC][0].header.sequence == 2


async def test_a_leg_whose_port_has_gone_is_not_in_force(rig: Rig) -> None:
    host = await one_host(rig, relay(), source())
    await host.unplug(WEB)
    assert set(await host.mirror.observe()) == {"r"}
    await host.plug(WEB)
    assert set(await host.mirror.observe()) == {"r"}
    assert set(await host.mirror.known()) == {"r", "s"}
    await host.mirror.put(source())
    host.passes(WEB, udp(1), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 1)


async def test_what_cannot_be_is_refused(rig: Rig) -> None:
    host = await one_host(rig)
    for spec, reason in (
        (source(port="port-0000000000ff"), "NoPort"),
        (delivery(port="port-0000000000ff"), "NoPort"),
        (source(rules=(Rule(source="10.0.0.1/8"),)), "BadRules"),
    ):
        with pytest.raises(DriverError) as caught:
            await host.mirror.put(spec)
        assert caught.value.reason == reason
    assert await host.mirror.observe() == {}
    for number in range(SESSIONS_PER_PORT_MAX):
        await host.mirror.put(source(key=KEY + number, id=f"s{number}"))
    with pytest.raises(DriverError) as caught:
        await host.mirror.put(source(key=KEY + 99, id="s99"))
    assert caught.value.reason == "TooManySessions"
    await host.mirror.put(source(key=KEY, id="s0", snap_bytes=99))
    assert len(await host.mirror.observe()) == SESSIONS_PER_PORT_MAX
    await host.mirror.put(source(key=KEY + 98, id="s98", session="s0"))
    assert len(await host.mirror.observe()) == SESSIONS_PER_PORT_MAX + 1
