"""What guests can do to each other through the real switch, tried with raw Ethernet frames on their taps.

A sentinel, a good frame sent last on the same port, proves that every frame before it has had its chance to arrive. Two
are needed, one after the other: the switch takes frames in batches and keeps the order inside one only by flow.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import IPv4Address
from itertools import count

import msgspec
import pytest

from pileus.drivers.host.ovs import daemons, flows, namespace
from pileus.drivers.host.ovs.base import STRAY, PortSpec
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

LIMIT_S = 30
"""For conditions that hold within a second on an idle machine."""

BROADCAST = bytes([255] * 6)
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, UDP = 1, 17
IFF_RUNNING = 0x40

RED_A = PortSpec(id="red-00000000000a", mac="52:54:00:00:01:0a", addresses=("10.1.1.10",), vlan=101)
RED_B = PortSpec(id="red-00000000000b", mac="52:54:00:00:01:0b", addresses=("10.1.1.11",), vlan=101)
BLUE_A = PortSpec(id="blue-0000000001a0", mac="52:54:00:00:02:0a", addresses=("10.1.1.10",), vlan=102)
BLUE_B = PortSpec(id="blue-0000000001b0", mac="52:54:00:00:02:0b", addresses=("10.1.1.11",), vlan=102)
NOBODY = bytes.fromhex("525400999999")


def mac_of(spec: PortSpec) -> bytes:
    return bytes.fromhex(spec.mac.replace(":", ""))


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return destination + source + struct.pack("!H", kind) + payload


def arp(sender_mac: bytes, sender: str, target: str, operation: int = 1) -> bytes:
    fixed = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return fixed + sender_mac + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed


def checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    """``fragment`` is the field of flags and offset: 0x2000 a first fragment, 3 a last one with 24 bytes before it."""
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol)
    return start + struct.pack("!H", checksum(start + bytes(2) + ends)) + ends + payload


def udp(source: int, destination: int, payload: bytes = b"x" * 16) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def ipv6(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + ends + payload


class Guest:
    """A machine's NIC: whatever comes in is kept in ``inbox``."""

    def __init__(self, spec: PortSpec, descriptor: int) -> None:
        self.spec = spec
        self.mac = mac_of(spec)
        self.inbox: list[bytes] = []
        self._descriptor = descriptor
        self._arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            os.write(self._descriptor, frame)

    async def arrival(self, frame: bytes, timeout_s: float) -> bool:
        """Return whether ``frame`` is in the inbox within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while frame not in self.inbox:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        while True:
            try:
                self.inbox.append(os.read(self._descriptor, 65_536))
            except BlockingIOError:
                break
        self._arrived.set()


def is_running(link: str) -> bool:
    """Return whether the kernel has put the link to work; setting flags waits for the lock it does so under."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, namespace.SIOCGIFFLAGS, struct.pack("16sH22x", link.encode(), 0))
        fcntl.ioctl(control, namespace.SIOCSIFFLAGS, request)
    return bool(struct.unpack_from("H", request, 16)[0] & IFF_RUNNING)


class Lan:
    """A real switch and the guests on it."""

    def __init__(self, paths: HostPaths) -> None:
        self.paths = paths
        self.switch = OpenVSwitch(paths)
        self.guests: list[Guest] = []
        self._serial = count()

    async def plug(self, spec: PortSpec) -> Guest:
        fact = await self.switch.plug(spec)
        guest = Guest(spec, await self.switch.open_tap(fact.tap))
        self.guests.append(guest)
        async with asyncio.timeout(LIMIT_S):
            # The kernel drops what it sends to a tap until it has noticed that somebody opened it.
            while not await namespace.inside(self.paths.namespace, lambda: is_running(fact.tap)):
                pass
        return guest

    async def settle(self, sender: Guest, receiver: Guest) -> None:
        """Send sentinels until two have arrived, the second sent after the first was there; then forget them."""
        mark, arrived = b"sentinel", 0
        async with asyncio.timeout(LIMIT_S):
            while arrived < 2:
                frame = good(sender.spec, receiver.spec, mark + str(next(self._serial)).encode())
                sender.send(frame)
                arrived += await receiver.arrival(frame, timeout_s=1)
        receiver.inbox = [frame for frame in receiver.inbox if mark not in frame]

    async def counted(self, number: Callable[[], Awaitable[int]], wanted: int) -> None:
        """Wait until ``number`` gives ``wanted``; counters of flows lag up to half a second."""
        seen = None
        try:
            async with asyncio.timeout(LIMIT_S):
                while seen != wanted:
                    seen = await number()
        except TimeoutError:
            pytest.fail(f"counted {seen}, wanted {wanted}")

    async def dropped(self, spec: PortSpec) -> int:
        return (await self.switch.counters())[spec.id].dropped_packets


@pytest.fixture
async def lan(host: HostPaths) -> AsyncIterator[Lan]:
    lan = Lan(host)
    await lan.switch.open()
    yield lan
    for guest in lan.guests:
        guest.close()


def good(sender: PortSpec, receiver: PortSpec, payload: bytes) -> bytes:
    """A frame that must pass when both are on one VLAN."""
    packet = ipv4(sender.addresses[0], receiver.addresses[0], UDP, udp(4000, 4001, payload))
    return ethernet(mac_of(receiver), mac_of(sender), IPV4, packet)


def good_frames(sender: PortSpec, receiver: PortSpec) -> Iterator[bytes]:
    """One of each kind that a well-behaved machine sends to another."""
    me, you = mac_of(sender), mac_of(receiver)
    mine, yours = sender.addresses[0], receiver.addresses[0]
    yield ethernet(BROADCAST, me, ARP, arp(me, mine, yours))
    yield ethernet(you, me, ARP, arp(me, mine, yours, operation=2))
    yield ethernet(BROADCAST, me, ARP, arp(me, mine, mine))
    yield ethernet(BROADCAST, me, ARP, arp(me, "0.0.0.0", mine))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, ICMP, struct.pack("!BBHHH", 8, 0, 0, 1, 1)))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, 6, struct.pack("!HHIIBBHHH", 4000, 80, 1, 0, 0x50, 2, 512, 0, 0)))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, UDP, udp(5000, 53)))
    yield ethernet(you, me, IPV4, ipv4(mine, "198.51.100.1", UDP, udp(5000, 53)))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, UDP, udp(5000, 53, b"x" * 1472)))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, UDP, udp(5000, 53), fragment=0x2000))
    yield ethernet(you, me, IPV4, ipv4(mine, yours, UDP, b"y" * 24, fragment=3))
    yield ethernet(bytes.fromhex("01005e0000fb"), me, IPV4, ipv4(mine, "224.0.0.251", UDP, udp(5353, 5353)))
    yield ethernet(BROADCAST, me, IPV4, ipv4("0.0.0.0", "255.255.255.255", UDP, udp(68, 67)))


def link_layer_attacks(me: bytes, you: bytes, mine: str, yours: str) -> Iterator[tuple[str, bytes]]:
    payload = ipv4(mine, yours, UDP, udp(5000, 53))
    tagged = struct.pack("!HH", 102, IPV4) + payload
    yield "wrong MAC", ethernet(you, NOBODY, IPV4, payload)
    yield "the peer's own MAC", ethernet(you, you, IPV4, payload)
    yield "a multicast MAC as source", ethernet(you, bytes.fromhex("01005e000001"), IPV4, payload)
    yield "VLAN tag of the other account", ethernet(you, me, 0x8100, tagged)
    yield "VLAN tag of the own account", ethernet(you, me, 0x8100, struct.pack("!HH", 101, IPV4) + payload)
    yield "priority tag", ethernet(you, me, 0x8100, struct.pack("!HH", 0, IPV4) + payload)
    yield "service tag", ethernet(you, me, 0x88A8, tagged)
    yield "two tags", ethernet(you, me, 0x8100, struct.pack("!HH", 101, 0x8100) + tagged)
    yield "spanning tree", ethernet(bytes.fromhex("0180c2000000"), me, 38, b"\x42\x42\x03" + bytes(35))
    yield "LLDP", ethernet(bytes.fromhex("0180c200000e"), me, 0x88CC, bytes(46))
    yield "IPv4 to a reserved address", ethernet(bytes.fromhex("0180c2000003"), me, IPV4, payload)
    yield "unknown ethertype", ethernet(you, me, 0x88B5, bytes(46))
    yield "reverse ARP", ethernet(you, me, 0x8035, arp(me, mine, yours, operation=3))


def arp_attacks(me: bytes, you: bytes, mine: str, yours: str) -> Iterator[tuple[str, bytes]]:
    for destination in (you, BROADCAST):
        yield "ARP for another address", ethernet(destination, me, ARP, arp(me, "10.1.1.1", yours, operation=2))
        yield "ARP for the peer's address", ethernet(destination, me, ARP, arp(me, yours, mine, operation=2))
        yield "gratuitous ARP of the peer", ethernet(destination, me, ARP, arp(me, yours, yours))
        yield "ARP in the peer's name", ethernet(destination, me, ARP, arp(you, mine, yours))
        yield "ARP with the peer's MAC outside too", ethernet(destination, you, ARP, arp(you, yours, mine))
        yield "probe for the peer's address", ethernet(destination, me, ARP, arp(me, "0.0.0.0", yours))
        yield "answer from no address", ethernet(destination, me, ARP, arp(me, "0.0.0.0", mine, operation=2))
        wide = struct.pack("!HHBBH", 1, IPV4, 8, 4, 2) + bytes(24)
        yield "ARP with odd lengths", ethernet(destination, me, ARP, wide)


def ipv4_attacks(me: bytes, you: bytes, mine: str, yours: str) -> Iterator[tuple[str, bytes]]:
    def frame(packet: bytes, destination: bytes = you) -> bytes:
        return ethernet(destination, me, IPV4, packet)

    yield "wrong source", frame(ipv4("10.1.1.99", yours, UDP, udp(5000, 53)))
    yield "the peer's own source", frame(ipv4(yours, yours, UDP, udp(5000, 53)))
    yield "no source", frame(ipv4("0.0.0.0", yours, UDP, udp(5000, 53)))
    yield "loopback source", frame(ipv4("127.0.0.1", yours, UDP, udp(5000, 53)))
    yield "spoofed first fragment", frame(ipv4("10.1.1.99", yours, UDP, udp(5000, 53), fragment=0x2000))
    yield "spoofed later fragment", frame(ipv4("10.1.1.99", yours, UDP, b"y" * 24, fragment=3))
    yield "truncated header", frame(b"\x45\x00\x00\x14" + bytes(10))
    yield "header length beyond the frame", frame(b"\x4f" + ipv4(mine, yours, UDP, b"")[1:])
    yield "ICMP redirect", frame(ipv4(mine, yours, ICMP, struct.pack("!BBH", 5, 1, 0) + bytes(32)))
    for destination, target in ((you, yours), (BROADCAST, "255.255.255.255")):
        yield "DHCP offer", frame(ipv4(mine, target, UDP, udp(67, 68, b"o" * 240)), destination)
        yield "DHCP offer, odd port", frame(ipv4(mine, target, UDP, udp(1067, 68, b"o" * 240)), destination)
        first = ipv4(mine, target, UDP, udp(67, 68, b"o" * 64), fragment=0x2000)
        yield "DHCP offer in fragments", frame(first, destination)
        tiny = ipv4(mine, target, UDP, udp(67, 68, b""), fragment=0x2000)
        yield "DHCP offer in tiny fragments", frame(tiny, destination)
        yield "DHCP offer from no address", frame(ipv4("0.0.0.0", target, UDP, udp(67, 68)), destination)


def ipv6_attacks(me: bytes, you: bytes) -> Iterator[tuple[str, bytes]]:
    everyone, local = bytes.fromhex("333300000001"), "fe80::5054:ff:fe00:10a"
    for destination in (you, everyone):
        for name, kind in (("router advertisement", 134), ("neighbour advertisement", 136), ("redirect", 137)):
            message = struct.pack("!BBH", kind, 0, 0) + bytes(28)
            yield name, ethernet(destination, me, IPV6, ipv6(local, "ff02::1", 58, message))
        yield (
            "neighbour solicitation",
            ethernet(destination, me, IPV6, ipv6("::", "ff02::1", 58, struct.pack("!BBH", 135, 0, 0) + bytes(20))),
        )
        yield "DHCPv6 server", ethernet(destination, me, IPV6, ipv6(local, "ff02::1", UDP, udp(547, 546)))
        yield "plain IPv6", ethernet(destination, me, IPV6, ipv6("2001:db8::1", "2001:db8::2", UDP, udp(1, 2)))
        hidden = bytes([UDP, 0, 0, 0, 0, 0, 0, 0]) + udp(547, 546)
        yield "IPv6 behind a fragment header", ethernet(destination, me, IPV6, ipv6(local, "ff02::1", 44, hidden))


def attacks(attacker: PortSpec, target: PortSpec) -> list[tuple[str, bytes]]:
    me, you = mac_of(attacker), mac_of(target)
    mine, yours = attacker.addresses[0], target.addresses[0]
    return [
        *link_layer_attacks(me, you, mine, yours),
        *arp_attacks(me, you, mine, yours),
        *ipv4_attacks(me, you, mine, yours),
        *ipv6_attacks(me, you),
    ]


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
