"""What guests can do to each other through the real switch, tried with raw Ethernet frames on their taps."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.contract.ovs.frames import (
    ARP,
    BROADCAST,
    ICMP,
    IPV4,
    IPV6,
    NOBODY,
    UDP,
    arp,
    attacks,
    ethernet,
    good,
    good_frames,
    ipv4,
    ipv6,
    udp,
)  # fmt: skip
from tests.contract.ovs.lan import LIMIT_S, Guest, Lan

from pileus.drivers.host.ovs import daemons, flows, namespace
from pileus.drivers.host.ovs.base import APART, STRAY, PortSpec
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

RED_A = PortSpec(id="red-00000000000a", mac="52:54:00:00:01:0a", addresses=("10.1.1.10",), vlan=101)
RED_B = PortSpec(id="red-00000000000b", mac="52:54:00:00:01:0b", addresses=("10.1.1.11",), vlan=101)
BLUE_A = PortSpec(id="blue-0000000001a0", mac="52:54:00:00:02:0a", addresses=("10.1.1.10",), vlan=102)
BLUE_B = PortSpec(id="blue-0000000001b0", mac="52:54:00:00:02:0b", addresses=("10.1.1.11",), vlan=102)


@pytest.fixture
async def lan(host: HostPaths) -> AsyncIterator[Lan]:
    lan = Lan(host)
    await lan.switch.open()
    yield lan
    for guest in lan.guests:
        guest.close()


async def test_good_frames_pass_unchanged_inside_a_vlan(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    for sender, receiver in ((a, b), (b, a)):
        frames = list(good_frames(sender.spec, receiver.spec))
        sender.send(*frames)
        await lan.settle(sender, receiver)
        assert sorted(receiver.inbox) == sorted(frames)
    assert await lan.dropped(RED_A) == 0


async def test_two_accounts_with_the_same_addresses_never_see_each_others_frames(lan: Lan) -> None:
    red_a, red_b = await lan.plug(RED_A), await lan.plug(RED_B)
    blue_a, blue_b = await lan.plug(BLUE_A), await lan.plug(BLUE_B)
    own = list(good_frames(RED_A, RED_B))
    red_a.send(*own, *good_frames(RED_A, BLUE_A), *good_frames(RED_A, BLUE_B))
    await lan.settle(red_a, red_b)
    await lan.settle(blue_a, blue_b)
    await lan.settle(blue_b, blue_a)
    assert blue_a.inbox == []
    assert blue_b.inbox == []
    broadcasts = [frame for blue in (BLUE_A, BLUE_B) for frame in good_frames(RED_A, blue) if frame[0] & 1]
    assert sorted(red_b.inbox) == sorted(own + broadcasts)


async def test_no_spoofed_frame_arrives_anywhere_and_each_is_counted(lan: Lan) -> None:
    attacker, peer, stranger = await lan.plug(RED_A), await lan.plug(RED_B), await lan.plug(BLUE_B)
    friend = await lan.plug(BLUE_A)
    tried = attacks(RED_A, RED_B) + attacks(RED_A, BLUE_B)
    attacker.send(*(frame for _, frame in tried))
    await lan.settle(attacker, peer)
    await lan.settle(friend, stranger)
    names = {frame: name for name, frame in tried}
    for guest in (peer, stranger, friend, attacker):
        assert [names.get(frame, frame.hex()) for frame in guest.inbox] == []
    await lan.counted(lambda: lan.dropped(RED_A), len(tried))


async def test_a_port_apart_gets_nothing_and_gives_nothing(lan: Lan) -> None:
    apart = await lan.plug(msgspec.structs.replace(RED_A, vlan=APART))
    red, blue = await lan.plug(RED_B), await lan.plug(BLUE_B)
    friend = await lan.plug(msgspec.structs.replace(BLUE_A, vlan=101, addresses=("10.1.1.12",)))
    for other in (red, blue):
        apart.send(*good_frames(apart.spec, other.spec))
        other.send(*good_frames(other.spec, apart.spec))
    await lan.settle(friend, red)
    assert apart.inbox == blue.inbox == []
    own = bytes.fromhex(apart.spec.mac.replace(":", ""))
    assert not any(frame[6:12] == own for frame in red.inbox)
    fact = (await lan.switch.observe())[RED_A.id]
    assert (fact.vlan, fact.blocked) == (APART, False)
    assert STRAY not in (await lan.switch.vlan_counts())[RED_A.id]


async def test_a_port_without_addresses_may_only_ask_for_one(lan: Lan) -> None:
    a, b = await lan.plug(msgspec.structs.replace(RED_A, addresses=())), await lan.plug(RED_B)
    frames = list(good_frames(RED_A, RED_B))
    a.send(*frames)
    await lan.counted(lambda: lan.dropped(RED_A), len(frames) - 1)
    assert await b.arrival(frames[-1], LIMIT_S)
    assert b.inbox == frames[-1:]


async def test_a_frame_for_an_unknown_machine_is_shown_to_nobody(lan: Lan) -> None:
    a, b, third = (
        await lan.plug(RED_A),
        await lan.plug(RED_B),
        await lan.plug(msgspec.structs.replace(BLUE_A, addresses=("10.1.1.12",), vlan=101)),
    )
    packet = ipv4("10.1.1.10", "10.1.1.11", UDP, udp(1, 2))
    a.send(ethernet(NOBODY, a.mac, IPV4, packet), ethernet(b.mac, a.mac, IPV4, packet))
    await lan.settle(a, b)
    await lan.settle(a, third)
    assert b.inbox == [ethernet(b.mac, a.mac, IPV4, packet)]
    assert third.inbox == []


async def test_a_machine_does_not_get_its_own_broadcast_back(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    a.send(*good_frames(RED_A, RED_A))
    await lan.settle(a, b)
    await lan.settle(b, a)
    assert a.inbox == []


async def test_the_host_neither_speaks_to_a_guest_nor_answers_it(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    solicitation = struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, "fe80::1")
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    for target in ("127.0.0.1", "0.0.0.0", "10.1.1.1", "255.255.255.255", "224.0.0.1"):
        a.send(
            ethernet(BROADCAST, a.mac, ARP, arp(a.mac, "10.1.1.10", target)),
            ethernet(BROADCAST, a.mac, IPV4, ipv4("10.1.1.10", target, ICMP, echo)),
            ethernet(BROADCAST, a.mac, IPV4, ipv4("10.1.1.10", target, UDP, udp(9, 9))),
        )
    a.send(ethernet(bytes.fromhex("3333ff000001"), a.mac, IPV6, ipv6("fe80::2", "ff02::1:ff00:1", 58, solicitation)))
    a.send(ethernet(bytes.fromhex("333300000001"), a.mac, IPV6, ipv6("fe80::2", "ff02::1", 58, echo)))
    await lan.settle(a, b)
    await lan.settle(b, a)
    assert a.inbox == []


async def test_frames_before_the_flows_pass_neither_then_nor_later(lan: Lan) -> None:
    tap = flows.tap_name(RED_A.id)
    await namespace.make_tap(lan.paths.namespace, tap)
    a = Guest(RED_A, await lan.switch.open_tap(tap))
    lan.guests.append(a)
    b = await lan.plug(RED_B)
    spoofed = [frame for _, frame in attacks(RED_A, RED_B)]
    plugging = asyncio.create_task(lan.switch.plug(RED_A))
    sent = 0
    while not plugging.done():
        a.send(*spoofed)
        sent += len(spoofed)
        await asyncio.sleep(0)
    await plugging
    await lan.settle(a, b)
    assert b.inbox == [], f"of {sent} frames"


async def test_a_switch_that_was_killed_passes_nothing_until_ports_are_plugged_again(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    a.send(*good_frames(RED_A, RED_B))
    await lan.settle(a, b)
    b.inbox.clear()
    await daemons.stop(daemons.SwitchFiles.of(lan.paths), "ovs-vswitchd")
    await lan.switch.open()
    frames = [*good_frames(RED_A, RED_B), *(frame for _, frame in attacks(RED_A, RED_B))]
    a.send(*frames)

    async def refused_by_the_bridge() -> bool:
        stats = await lan.switch._flow_stats()
        return sum(stat.packets for stat in stats if stat.role == flows.Role.base) >= len(frames)

    await lan.counted(refused_by_the_bridge, True)
    await lan.switch.plug(RED_A)
    await lan.switch.plug(RED_B)
    await lan.settle(a, b)
    assert b.inbox == []
    counts = (await lan.switch.vlan_counts())[RED_B.id]
    assert set(counts) == {RED_B.vlan}
    assert counts[RED_B.vlan] >= 2


async def test_a_changed_address_holds_from_the_moment_plug_returns(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    moved = msgspec.structs.replace(RED_A, addresses=("10.1.1.77",))
    for now, before in ((moved, RED_A), (RED_A, moved)) * 3:
        a.send(*good_frames(before, RED_B))
        await lan.settle(a, b)
        b.inbox.clear()
        await lan.switch.plug(now)
        a.spec = now
        stale = list(good_frames(before, RED_B))[:-1]
        a.send(*stale)
        await lan.settle(a, b)
        assert b.inbox == []


async def test_a_port_moved_to_another_vlan_leaves_the_old_one_at_once(lan: Lan) -> None:
    a, b, blue = await lan.plug(RED_A), await lan.plug(RED_B), await lan.plug(BLUE_B)
    b.send(*good_frames(RED_B, RED_A))
    await lan.settle(b, a)
    a.inbox.clear()
    a.spec = msgspec.structs.replace(RED_A, vlan=102)
    await lan.switch.plug(a.spec)
    b.send(*good_frames(RED_B, RED_A))
    third = await lan.plug(msgspec.structs.replace(BLUE_A, addresses=("10.1.1.12",), vlan=101))
    await lan.settle(b, third)
    await lan.settle(a, blue)
    await lan.settle(blue, a)
    assert a.inbox == []
    assert blue.inbox == []


async def test_counters_are_the_guests_view(lan: Lan) -> None:
    a, b = await lan.plug(RED_A), await lan.plug(RED_B)
    frames = [good(RED_A, RED_B, b"z" * 100)] * 7
    a.send(*frames, ethernet(b.mac, NOBODY, IPV4, ipv4("10.1.1.10", "10.1.1.11", UDP, udp(1, 2))))
    await lan.counted(lambda: lan.dropped(RED_A), 1)
    counters = await lan.switch.counters()
    assert (counters[RED_A.id].tx_packets, counters[RED_A.id].rx_packets) == (8, 0)
    assert (counters[RED_B.id].tx_packets, counters[RED_B.id].rx_packets) == (0, 7)
    assert counters[RED_B.id].rx_bytes == sum(len(frame) for frame in frames)
    sent = await lan.switch.sent_bytes([RED_A.id, RED_B.id])
    assert sent == {RED_A.id: counters[RED_A.id].tx_bytes, RED_B.id: 0}


async def test_counts_by_vlan_show_own_frames_only_and_would_show_others(lan: Lan) -> None:
    red_a, red_b = await lan.plug(RED_A), await lan.plug(RED_B)
    blue_a, blue_b = await lan.plug(BLUE_A), await lan.plug(BLUE_B)
    for _ in range(3):
        red_a.send(*good_frames(RED_A, RED_B), *good_frames(RED_A, BLUE_B))
        blue_b.send(*good_frames(BLUE_B, BLUE_A), *good_frames(BLUE_B, RED_A))
    await lan.settle(red_a, red_b)
    await lan.settle(blue_b, blue_a)
    counts = await lan.switch.vlan_counts()
    received = {port: counters.rx_packets for port, counters in (await lan.switch.counters()).items()}
    assert counts == {spec.id: {spec.vlan: received[spec.id]} for spec in (RED_A, RED_B, BLUE_A, BLUE_B)}
    assert received[RED_A.id] == received[BLUE_B.id] == 0 < received[RED_B.id]

    stray = good(BLUE_B, RED_A, b"past the switch")
    await namespace.inside(lan.paths.namespace, lambda: send_past_the_switch(flows.tap_name(RED_A.id), stray))
    assert await red_a.arrival(stray, LIMIT_S)
    assert (await lan.switch.vlan_counts())[RED_A.id] == {RED_A.vlan: 0, STRAY: 1}


def send_past_the_switch(tap: str, frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((tap, 0))
        raw.send(frame)


@pytest.mark.parametrize("limited", ["sender", "receiver"])
async def test_a_rate_limit_holds_for_what_a_port_sends_and_for_what_it_receives(lan: Lan, limited: str) -> None:
    kbps = 1000
    slow = [msgspec.structs.replace(spec, rate_limit_kbps=kbps) for spec in (RED_A, RED_B)]
    a = await lan.plug(slow[0] if limited == "sender" else RED_A)
    b = await lan.plug(slow[1] if limited == "receiver" else RED_B)
    await lan.settle(a, b)
    clock = asyncio.get_running_loop().time
    start = clock()
    for serial in range(400):
        a.send(good(RED_A, RED_B, serial.to_bytes(2, "big") * 500))
        await asyncio.sleep(0)
    await lan.settle(a, b)
    allowed = (kbps * (clock() - start) + 256) * 1000 / 8 / 1042
    assert 20 <= len(b.inbox) <= allowed * 1.1 + 2
    for spec in (RED_A, RED_B):
        await lan.switch.plug(spec)
    b.inbox.clear()
    burst = [good(RED_A, RED_B, serial.to_bytes(2, "big") * 500) for serial in range(60)]
    a.send(*burst)
    await lan.settle(a, b)
    assert b.inbox == burst
