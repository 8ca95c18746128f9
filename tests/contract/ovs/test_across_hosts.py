"""What guests of three hosts can say to each other, and cannot: trunk, tunnel, and what an attacker tries."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import msgspec
import pytest
from tests.contract.ovs.frames import (
    ARP,
    BROADCAST,
    ICMP,
    IPV4,
    UDP,
    arp,
    attacks,
    ethernet,
    good,
    good_frames,
    ipv4,
    mac_of,
    udp,
)
from tests.contract.ovs.lan import Guest
from tests.contract.ovs.site import BLUE, RED, Site, everybody, got, machine, segment, tunnel_of

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import daemons, flows, namespace
from pileus.drivers.host.ovs.real import OpenVSwitch

ECHO = struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1)
"""An echo request with its checksum."""

pytestmark = pytest.mark.anyio


async def flows_of(switch: OpenVSwitch) -> list[str]:
    """Return all flows as text, without what changes by itself."""
    return sorted((await switch._ofctl("dump-flows", "--no-stats")).splitlines()[1:])


async def test_good_frames_pass_unchanged_and_once_over_trunk_and_tunnel(site: Site) -> None:
    guests = await everybody(site, RED)
    for sender in guests:
        for receiver in guests:
            if sender is receiver:
                continue
            frames = sorted(good_frames(sender.spec, receiver.spec))
            sender.send(*frames)
            others = [guest for guest in guests if guest is not sender]
            await site.settle(sender, *others)
            assert got(receiver) == frames
            (third,) = [guest for guest in others if guest is not receiver]
            assert got(third) == [frame for frame in frames if frame[0] & 1]
            assert got(sender) == []


async def test_nothing_passes_between_accounts_on_any_host(site: Site) -> None:
    red, blue = await everybody(site, RED), await everybody(site, BLUE)
    for sender in red:
        for target in (*red, *blue):
            if target is not sender:
                sender.send(*(frame for _, frame in attacks(sender.spec, target.spec)))
            if target in blue:
                sender.send(*good_frames(sender.spec, target.spec))
    for sender in (*red, *blue):
        await site.settle(sender, *(other for other in (red if sender in red else blue) if other is not sender))
    for guest in blue:
        assert got(guest) == []
    macs = {guest.mac for guest in red}
    assert {frame[6:12] for guest in red for frame in got(guest)} <= macs
    for lan in site.hosts.values():
        vlans = {port: fact.vlan for port, fact in (await lan.switch.observe()).items()}
        assert {port: list(counts) for port, counts in (await lan.switch.vlan_counts()).items()} == {
            port: [vlan] for port, vlan in vlans.items()
        }


async def test_a_spoofed_frame_is_on_no_wire(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    wires = [await site.listen(rack, machine(RED, 99)) for rack in ("rack1", "rack2")]
    for target in (b, c):
        a.send(*(frame for _, frame in attacks(a.spec, target.spec)))
    await site.settle(a, b, c, wires[0])
    assert [got(wire) for wire in wires] == [[], []]
    assert got(b) == got(c) == []


async def test_frames_before_the_flows_pass_on_no_host(site: Site) -> None:
    await site.join(RED)
    b, c = await site.plug("b", machine(RED, 11)), await site.plug("c", machine(RED, 12))
    lan, spec = site.hosts["a"], machine(RED, 10)
    tap = flows.tap_name(spec.id)
    await namespace.make_tap(lan.paths.namespace, tap)
    a = Guest(spec, await lan.switch.open_tap(tap))
    lan.guests.append(a)
    spoofed = [frame for target in (b, c) for _, frame in attacks(spec, target.spec)]
    a.send(*spoofed)
    await lan.switch.plug(spec)
    a.send(*spoofed)
    await site.settle(a, b, c)
    assert got(b) == got(c) == []


async def test_a_broadcast_is_once_on_each_wire_and_comes_back_on_none(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    racks = [await site.listen(rack, machine(RED, 99)) for rack in ("rack1", "rack2")]
    hello = ethernet(BROADCAST, a.mac, ARP, arp(a.mac, "10.1.1.10", "10.1.1.77"))
    unknown = good(a.spec, machine(RED, 77), b"nobody has this MAC")
    a.send(hello, unknown)
    await site.settle(a, b, c, racks[0])
    tag = struct.pack("!HH", 0x8100, RED)
    assert got(racks[0]) == sorted(frame[:12] + tag + frame[12:] for frame in (hello, unknown))
    assert got(racks[1]) == []  # what came by tunnel does not go on by trunk
    assert got(b) == got(c) == [hello]
    assert got(a) == []


async def test_a_machine_that_was_heard_is_sent_to_where_it_is_and_nowhere_else(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    rack = await site.listen("rack1", machine(RED, 99))
    to_c, to_b = good(a.spec, c.spec, b"over the tunnel"), good(a.spec, b.spec, b"over the trunk")
    a.send(to_c, to_b)
    await site.settle(a, b, c, rack)
    assert (got(b), got(c)) == ([to_b], [to_c])
    assert not [frame for frame in got(rack) if b"over the tunnel" in frame]
    learned = [
        line for line in await flows_of(site.hosts["a"].switch) if f"cookie={flows.LEARNED_MARK:#x}" in line[:20]
    ]
    assert len(learned) == 2
    # It moves to the other pod, keeps its MAC, and is found there as soon as it has spoken.
    await site.hosts["b"].unplug(b)
    moved = await site.plug("c", b.spec)
    await site.settle(moved, a)
    again = good(a.spec, moved.spec, b"now by tunnel")
    a.send(again)
    while not await moved.arrival(again, timeout_s=1):  # the datapath's cache follows what was learned, a little later
        a.send(again)
    got(rack)
    a.send(again)
    await site.settle(a, moved, rack)
    assert not [frame for frame in got(rack) if b"now by tunnel" in frame]


async def test_what_a_stranger_says_on_the_trunk_reaches_nobody(site: Site) -> None:
    a, b, _ = await everybody(site, RED)
    stranger = await site.listen("rack1", machine(RED, 99))
    frame = good(stranger.spec, a.spec, b"x" * 20)

    def tagged(vlan: int, frame: bytes) -> bytes:
        return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]

    for hostile in (
        frame,
        tagged(BLUE, frame),
        tagged(0, frame),
        tagged(RED, tagged(BLUE, frame)),
        tagged(RED, tagged(RED, frame)),
        tagged(RED, ethernet(a.mac, stranger.mac, 0x88B5, bytes(46))),
        tagged(RED, ethernet(bytes.fromhex("0180c2000010"), stranger.mac, IPV4, frame[14:])),
        # Last, because the rack believes whose MAC is where.
        tagged(RED, ethernet(BROADCAST, a.mac, ARP, arp(a.mac, "10.1.1.10", "10.1.1.10"))),
        tagged(RED, ethernet(BROADCAST, b"\x01" + a.mac[1:], ARP, arp(a.mac, "10.1.1.10", "10.1.1.10"))),
    ):
        stranger.send(hostile)
    await site.settle(b, a)
    assert got(a) == []
    await site.settle(a, b)  # the rack has believed whose MAC is where
    stranger.send(tagged(RED, frame))  # the trunk is trusted with what its hosts have checked
    assert await a.arrival(frame, 30)


async def test_a_stranger_on_the_underlay_is_not_let_in(site: Site) -> None:
    a, _, c = await everybody(site, RED)
    # Host a takes another for its peer in pod 2, and the old one goes on to send.
    await site.hosts["a"].switch.join(msgspec.structs.replace(segment(RED, "a"), peers=("10.200.2.250",)))
    stats = site.hosts["a"].switch._flow_stats
    before = sum(stat.packets for stat in await stats() if stat.role == flows.Role.base)
    frames = list(good_frames(c.spec, a.spec))
    c.send(*frames)

    async def refused() -> bool:
        return sum(stat.packets for stat in await stats() if stat.role == flows.Role.base) >= before + len(frames)

    await site.hosts["a"].counted(refused, True)
    assert got(a) == []


async def test_a_guest_cannot_speak_with_its_host_by_the_underlays_address(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    underlay = await site.listen("under1", msgspec.structs.replace(machine(RED, 98), addresses=("10.200.1.50",)))
    own = tunnel_of("a")
    underlay.send(ethernet(BROADCAST, underlay.mac, ARP, arp(underlay.mac, "10.200.1.50", own)))
    assert await underlay.arrives(lambda: any(is_answer(frame, own) for frame in underlay.inbox))
    (host_mac,) = {frame[6:12] for frame in underlay.inbox if is_answer(frame, own)}
    for source in (*a.spec.addresses, "10.200.1.1", "10.200.1.50", tunnel_of("c")):
        a.send(
            ethernet(BROADCAST, a.mac, ARP, arp(a.mac, source, own)),
            ethernet(BROADCAST, a.mac, IPV4, ipv4(source, own, ICMP, ECHO)),
            ethernet(BROADCAST, a.mac, IPV4, ipv4(source, own, UDP, udp(9, 9))),
        )
    await site.settle(a, b, c)
    await site.settle(b, a)
    assert got(a) == []
    underlay.send(ethernet(host_mac, underlay.mac, IPV4, ipv4("10.200.1.50", own, ICMP, ECHO)))
    assert await underlay.arrives(lambda: any(is_echo_from(frame, own) for frame in underlay.inbox))
    assert sum(is_echo_from(frame, own) for frame in underlay.inbox) == 1


def is_answer(frame: bytes, address: str) -> bool:
    """Whether it is an ARP reply of the address to somebody."""
    return frame[12:14] == b"\x08\x06" and frame[21] == 2 and frame[28:32] == IPv4Address(address).packed


def is_echo_from(frame: bytes, address: str) -> bool:
    """Whether it is ICMP or plain UDP from the address."""
    is_plain = frame[23:24] == b"\x01" or frame[36:38] == b"\x00\x09"
    return frame[12:14] == b"\x08\x00" and is_plain and frame[26:30] == IPv4Address(address).packed


async def test_nothing_of_a_segment_stays_where_it_was_left(site: Site) -> None:
    lan = site.hosts["a"]
    a = await site.plug("a", machine(RED, 10))
    before = await flows_of(lan.switch)
    others = await everybody_but_a(site)
    for _ in range(2):
        await site.join(RED)
        await site.settle(a, *others)
        await site.settle(others[1], a)
        assert set(await lan.switch.segments()) == {RED}
        await lan.switch.leave(RED)
        await lan.switch.leave(RED)
        assert await lan.switch.segments() == {}
        assert await flows_of(lan.switch) == before
        for guest in (a, *others):
            got(guest)
        a.send(*good_frames(a.spec, others[0].spec), *good_frames(a.spec, others[1].spec))
        others[0].send(*good_frames(others[0].spec, a.spec))
        others[1].send(*good_frames(others[1].spec, a.spec))
        await site.settle(others[0], others[1])
        await site.settle(others[1], others[0])
        neighbour = await site.plug("a", machine(RED, 20))
        await site.settle(a, neighbour)
        await site.settle(neighbour, a)
        await lan.unplug(neighbour)
        assert got(a) == []
        assert not [frame for guest in others for frame in got(guest) if frame[6:12] == a.mac]
    assert await lan.switch._database.segments() == {}


async def everybody_but_a(site: Site) -> list[Guest]:
    return [await site.plug("b", machine(RED, 11)), await site.plug("c", machine(RED, 12))]


async def test_a_killed_switch_has_its_segments_again_and_its_ports_when_they_are_plugged(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    lan = site.hosts["a"]
    joined, ports = await lan.switch.segments(), await lan.switch.observe()
    await daemons.stop(daemons.SwitchFiles.of(lan.paths), "ovs-vswitchd")
    assert await lan.switch.segments() == {}
    new = OpenVSwitch(lan.paths, lan.uplinks)
    await new.open()
    assert await new.segments() == joined
    assert all(fact.blocked for fact in (await new.observe()).values())
    b.send(*good_frames(b.spec, a.spec))
    await site.settle(b, c)
    assert got(a) == []
    await new.plug(a.spec)
    assert await new.observe() == ports
    await site.settle(a, b, c)
    await site.settle(c, a)
    assert got(a) == []
    # The same without a new agent: plugging alone brings the tunnel's address back, too.
    await daemons.stop(daemons.SwitchFiles.of(lan.paths), "ovs-vswitchd")
    await new.plug(a.spec)
    assert (await new.segments(), await new.observe()) == (joined, ports)
    await site.settle(a, b, c)
    await site.settle(c, a)


async def test_a_tunnel_whose_gateway_cannot_be_is_named_and_hinders_nobody_else(site: Site) -> None:
    lan = site.hosts["a"]
    switch = OpenVSwitch(lan.paths, msgspec.structs.replace(lan.uplinks, tunnel_gateway="192.0.2.1"))
    await switch.open()
    with pytest.raises(DriverError, match="tunnel0 cannot have its address or gateway") as refused:
        await switch.join(segment(RED, "a"))
    assert refused.value.reason == "UplinkMissing"
    assert await switch.segments() == {}
    await switch.join(segment(RED, "a", "ab"))
    await site.join(RED, "b")
    await site.settle(await site.plug("a", machine(RED, 10)), await site.plug("b", machine(RED, 11)))


async def test_a_device_that_is_missing_or_made_anew_is_named_and_taken_up_when_it_is_there(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    switch = site.hosts["a"].switch
    for device, other in (("trunk0", b), ("tunnel0", c)):
        await site.cut("a", device)
        assert await switch.segments() == {}
        with pytest.raises(DriverError, match=device) as refused:
            await switch.join(segment(RED, "a"))
        assert refused.value.reason == "UplinkMissing"
        await OpenVSwitch(site.hosts["a"].paths, site.hosts["a"].uplinks).open()
        await site.settle(a, *{b, c} - {other})
        await site.connect("a", device)
        assert await switch.segments() == {}
        await switch.join(segment(RED, "a"))
        assert await switch.segments() == {RED: segment(RED, "a")}
        await site.settle(a, b, c)
        await site.settle(other, a)


async def test_peers_change_in_place(site: Site) -> None:
    a, b, c = await everybody(site, RED)
    switch = site.hosts["a"].switch
    alone = msgspec.structs.replace(segment(RED, "a"), trunk=False, peers=(tunnel_of("a"),))
    wanted = await flows_of(switch)
    for spec, hears in ((alone, ()), (segment(RED, "a", "ab"), (b,)), (segment(RED, "a"), (b, c))):
        await switch.join(spec)
        assert await switch.segments() == {RED: spec}
        for guest in (b, c):
            got(guest)
        frames = [frame for other in (b, c) for frame in good_frames(a.spec, other.spec)]
        a.send(*frames)
        await site.settle(b, c)
        await site.settle(c, b)
        if hears:
            await site.settle(a, *hears)
        for guest in (b, c):
            from_a = [frame for frame in got(guest) if frame[6:12] == mac_of(a.spec)]
            assert bool(from_a) == (guest in hears)
    for guest in (b, c):
        await site.settle(guest, a)
    assert await flows_of(switch) == wanted
