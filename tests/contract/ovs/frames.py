"""Ethernet frames made by hand: what a well-behaved machine sends, and what an attacker tries."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

from pileus.drivers.host.ovs.base import PortSpec

BROADCAST = bytes([255] * 6)
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, UDP = 1, 17
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
