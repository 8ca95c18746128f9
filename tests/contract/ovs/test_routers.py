"""The public segment, routers and stations of other sites, on real switches."""

from __future__ import annotations

import struct

import msgspec
import pytest
from tests.contract.ovs.frames import (
    ARP,
    BROADCAST,
    IPV4,
    UDP,
    arp,
    attacks,
    ethernet,
    good,
    good_frames,
    ipv4,
    udp,
)
from tests.contract.ovs.lan import Guest
from tests.contract.ovs.site import RED, Site, everybody, got, machine

from pileus.drivers.host.ovs.base import PUBLIC_VLAN, PortSpec, Station

pytestmark = pytest.mark.anyio

FAR = PortSpec(id="far", mac="52:54:00:00:fa:01", addresses=("10.1.1.201",), vlan=RED)
"""A machine of another site."""


def public(number: int) -> PortSpec:
    """A machine of the public segment."""
    spec = machine(RED + 99, number)
    return msgspec.structs.replace(spec, vlan=PUBLIC_VLAN, addresses=(f"203.0.113.{number}",))


def tagged(vlan: int, frame: bytes) -> bytes:
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


async def hear_each_other(site: Site, *guests: Guest) -> None:
    for guest in guests:
        await site.settle(guest, *(other for other in guests if other is not guest))


async def test_the_public_segment_is_shared_untagged_by_all_hosts_and_its_outside(site: Site) -> None:
    outside = await site.listen("public", public(1))
    a, near, c = await site.plug("a", public(10)), await site.plug("a", public(11)), await site.plug("c", public(12))
    members = [outside, a, near, c]
    await hear_each_other(site, *members)
    for sender in members:
        for receiver in members:
            if sender is receiver:
                continue
            frames = sorted(good_frames(sender.spec, receiver.spec))
            sender.send(*frames)
            others = [other for other in members if other is not sender]
            await site.settle(sender, *others)
            assert got(receiver) == frames
            broadcasts = [frame for frame in frames if frame[0] & 1]
            assert [got(other) for other in others if other is not receiver] == [broadcasts] * 2
            assert got(sender) == []
    assert {port: list(counts) for port, counts in (await site.hosts["a"].switch.vlan_counts()).items()} == {
        a.spec.id: [PUBLIC_VLAN],
        near.spec.id: [PUBLIC_VLAN],
    }


async def test_nothing_false_gets_onto_the_public_segment(site: Site) -> None:
    outside = await site.listen("public", public(1))
    a, c = await site.plug("a", public(10)), await site.plug("c", public(12))
    await hear_each_other(site, outside, a, c)
    for target in (outside, c):
        a.send(*(frame for _, frame in attacks(a.spec, target.spec)))
    await site.settle(a, outside, c)
    assert got(outside) == got(c) == []
    in_name_of_a = ethernet(BROADCAST, a.mac, ARP, arp(a.mac, "203.0.113.10", "203.0.113.10"))
    outside.send(in_name_of_a, ethernet(a.mac, outside.mac, 0x88B5, bytes(46)))
    outside.send(tagged(RED, good(outside.spec, a.spec, b"tagged")))
    await site.settle(c, a)
    assert got(a) == []


async def test_public_segment_and_accounts_never_meet(site: Site) -> None:
    outside = await site.listen("public", public(1))
    red = await everybody(site, RED)
    a = await site.plug("a", public(10))
    await hear_each_other(site, outside, a)
    for guest in red:
        guest.send(*good_frames(guest.spec, outside.spec), *good_frames(guest.spec, a.spec))
    for guest in red:
        outside.send(*good_frames(outside.spec, guest.spec))
        outside.send(*(tagged(RED, frame) for frame in good_frames(outside.spec, guest.spec)))
        a.send(*good_frames(a.spec, guest.spec))
    await hear_each_other(site, *red)
    await hear_each_other(site, outside, a)
    reds, publics = {guest.mac for guest in red}, {outside.mac, a.mac}
    assert not {frame[6:12] for guest in red for frame in got(guest)} & publics
    assert not {frame[6:12] for guest in (outside, a) for frame in got(guest)} & reds


async def test_a_router_forwards_any_address_that_is_no_neighbours(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    spec = msgspec.structs.replace(machine(RED, 30), routes=True)
    router = await site.plug("a", spec)
    await hear_each_other(site, router, a, b, c)
    for receiver in (a, b, c):
        packet = ipv4("198.51.100.7", receiver.spec.addresses[0], UDP, udp(53, 5000))
        forwarded = ethernet(receiver.mac, router.mac, IPV4, packet)
        offer = ethernet(
            receiver.mac, router.mac, IPV4, ipv4("10.1.1.30", receiver.spec.addresses[0], UDP, udp(67, 68))
        )
        router.send(forwarded, offer)
        for false in (
            ethernet(receiver.mac, router.mac, IPV4, ipv4("10.1.1.10", "10.1.1.11", UDP, udp(1, 2))),
            ethernet(receiver.mac, router.mac, IPV4, ipv4("198.51.100.7", "10.1.1.11", UDP, udp(67, 68))),
            ethernet(receiver.mac, receiver.mac, IPV4, packet),
            ethernet(receiver.mac, router.mac, ARP, arp(router.mac, "198.51.100.7", "10.1.1.11", operation=2)),
            ethernet(receiver.mac, router.mac, ARP, arp(router.mac, "10.1.1.10", "10.1.1.11", operation=2)),
            tagged(RED, forwarded),
        ):
            router.send(false)
        await site.settle(router, a, b, c)
        assert got(receiver) == sorted([forwarded, offer])
    # As soon as it is no router any more, it is a machine like any other.
    await site.hosts["a"].switch.plug(machine(RED, 30))
    router.send(ethernet(a.mac, router.mac, IPV4, ipv4("198.51.100.7", "10.1.1.10", UDP, udp(53, 5000))))
    await site.settle(router, a, b, c)
    assert got(a) == got(b) == got(c) == []


async def test_an_address_is_a_neighbours_from_the_moment_it_is_plugged(site: Site) -> None:
    a = await site.plug("a", machine(RED, 10))
    router = await site.plug("a", msgspec.structs.replace(machine(RED, 30), routes=True))
    await site.settle(router, a)
    frame = ethernet(a.mac, router.mac, IPV4, ipv4("10.1.1.40", "10.1.1.10", UDP, udp(53, 5000)))
    for is_neighbour in (False, True, False):
        if is_neighbour:
            neighbour = await site.plug("a", machine(RED, 40))
        router.send(frame)
        await site.settle(router, a)
        assert got(a) == ([] if is_neighbour else [frame])
        if is_neighbour:
            await site.hosts["a"].unplug(neighbour)


async def test_a_station_of_another_site_is_reached_and_heard_on_all_hosts_and_says_nothing_false(site: Site) -> None:
    station = Station(mac=FAR.mac, addresses=FAR.addresses)
    a, b, c = await everybody(site, RED)
    gate = await site.plug("a", msgspec.structs.replace(machine(RED, 30), stations=(station,)))
    await hear_each_other(site, gate, a, b, c)
    for guest in (a, b, c):
        frames = [frame for frame in good_frames(FAR, guest.spec) if b"\x00D\x00C" not in frame and not probes(frame)]
        gate.send(*frames)
        gate.send(*(frame for _, frame in attacks(FAR, guest.spec)))
        await site.settle(gate, a, b, c)
        assert got(guest) == sorted(frames)
        for other in (a, b, c):
            got(other)
        answers = sorted(good_frames(guest.spec, FAR))
        guest.send(*answers)
        await site.settle(guest, gate, *({a, b, c} - {guest}))
        assert got(gate) == answers
        for other in {a, b, c} - {guest}:
            assert all(frame[0] & 1 for frame in got(other))
    rack = await site.listen("rack1", machine(RED, 99))
    rack.send(tagged(RED, good(FAR, a.spec, b"from the rack, in its name")))
    await site.settle(b, a)
    assert got(a) == []
    await site.hosts["a"].switch.plug(machine(RED, 30))
    gate.send(*good_frames(FAR, a.spec))
    await site.settle(gate, a, b)
    assert got(a) == got(b) == []


def probes(frame: bytes) -> bool:
    """Whether it is an ARP probe: a station never asks whether its address is free."""
    return frame[12:14] == b"\x08\x06" and frame[28:32] == bytes(4)
