"""What only a real kernel can show of the mirror: devices, queues, offloads, agents that die, frames that somebody forged."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import random
import signal
import socket
import struct
import sys
from pathlib import Path

import msgspec
import pytest
from tests.contract.mirror.conftest import assert_nothing_left
from tests.contract.mirror.rig import LIMIT_S, RealHost, RealRig, counts, ip, put
from tests.contract.mirror.test_mirror import (
    KEY,
    SNIFFER,
    SNIFFER_NIC,
    TUNNEL_NIC,
    WEB,
    delivery,
    relay,
    source,
    three_hosts,
    udp,
)

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror import devices, layout
from pileus.drivers.host.mirror.base import DeliveryCounts, RelayCounts, RelaySpec, SourceCounts, SourceSpec
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.mirror.wanted import COPIES
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.ovs.flows import tap_name
from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, Program
from pileus.node.mirror import wire
from pileus.node.mirror.rules import Rule, decide

pytestmark = pytest.mark.anyio

SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CHECKSUM, GSO_TCP4 = 1, 1


async def real_host(rig: RealRig, *specs: SourceSpec | RelaySpec) -> RealHost:
    host = rig.real["a"]
    await host.plug(WEB, SNIFFER, TUNNEL_NIC, SNIFFER_NIC)
    await put(host, *specs)
    return host


async def test_with_the_last_leg_everything_goes(real: RealRig) -> None:
    host = await real_host(real)
    before = await namespace.inside(host.paths.namespace, devices.numbers)
    queue = await run(["ip", "-n", host.paths.namespace, "link", "show", tap_name(SNIFFER)])
    for spec in (source(), relay(target=""), delivery()):
        await put(host, spec)
    assert COPIES in await namespace.inside(host.paths.namespace, devices.numbers)
    for id in "srd":
        await host.mirror.remove(id)
    assert await namespace.inside(host.paths.namespace, devices.numbers) == before
    assert await run(["ip", "-n", host.paths.namespace, "link", "show", tap_name(SNIFFER)]) == queue
    assert not list(host.paths.run.iterdir())
    host.passes(WEB, udp(1), "egress")
    await put(host, relay(), source())
    host.passes(WEB, udp(2), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 1)
    assert await counts(host, "s") == SourceCounts(seen=1, matched=1, sampled=1, sent=1, sent_bytes=len(udp(2)))


async def test_the_source_goes_on_when_its_agent_is_killed_and_the_next_adopts_it(real: RealRig) -> None:
    a, b, c = (real.real[letter] for letter in "abc")
    await a.plug(WEB)
    await b.plug(TUNNEL_NIC, SNIFFER_NIC)
    await c.plug(SNIFFER)
    await put(c, delivery(b.address))
    await put(b, relay(a.address, c.address))
    spec = msgspec.json.encode(source(target=b.address)).decode()
    agent = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parent / "agent.py"), str(a.paths.state), a.address, spec,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert agent.stdout is not None
    assert await agent.stdout.readline() == b"in force\n"
    for number in range(300):
        a.passes(WEB, udp(number), "egress")
        if number == 100:
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
        if number == 200:
            a.restart()
            await a.mirror.open()
            assert set(await a.mirror.observe()) == {"s"}
            await a.mirror.put(source(target=b.address))
    await c.until(lambda: len(c.delivered[SNIFFER]) == 300)
    assert c.delivered[SNIFFER] == [udp(number) for number in range(300)]
    assert [got.header.sequence for got in b.arrived[TUNNEL_NIC]] == list(range(300))
    assert (await counts(a, "s")).sent == 300  # type: ignore[union-attr]


async def test_a_tap_that_is_full_drops_only_its_own_and_every_drop_is_counted(real: RealRig) -> None:
    host = await real_host(real, relay(target=""), relay(key=KEY + 1, id="r2", target=""))
    slow = "port-0000000005f2"
    await host.plug(slow)
    host.stop_reading(slow)
    await put(host, delivery(), delivery(key=KEY + 1, id="d2", port=slow))
    slow_frames = (Rule(destination_ports=(9, 9)),)
    await put(host, source(key=KEY + 1, id="s2", number=1, rules=slow_frames), source(number=2))
    sent = devices.QUEUE_FRAMES + 500
    for number in range(sent):
        host.passes(WEB, udp(number, port=9, size=8), "egress")
        host.passes(WEB, udp(number, size=8), "egress")
        if number % 100 == 99:
            await host.until(functools.partial(has_all, host, number + 1))
    assert await counts(host, "d") == DeliveryCounts(
        arrived=sent, delivered=sent, delivered_bytes=sent * len(udp(0, size=8))
    )
    found = await counts(host, "d2")
    assert isinstance(found, DeliveryCounts)
    held = host.nics[slow].read()
    assert (found.arrived, found.delivered, found.dropped) == (sent, len(held), sent - len(held))
    assert 0 < found.dropped <= 500


async def test_a_tap_that_nobody_holds_drops_and_takes_again(real: RealRig) -> None:
    host = await real_host(real, relay(target=""), source())
    await put(host, delivery())
    host.close_nic(SNIFFER)
    host.passes(WEB, udp(1), "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 1)
    await host.open_nic(SNIFFER)
    host.passes(WEB, udp(2), "egress")
    await host.until(lambda: len(host.delivered[SNIFFER]) == 1)
    assert await counts(host, "d") == DeliveryCounts(arrived=2, delivered=1, dropped=1, delivered_bytes=len(udp(2)))


async def test_what_is_too_long_for_the_tunnel_is_cut_and_says_so(real: RealRig) -> None:
    for host in real.real.values():
        await ip(host.paths.namespace, ["link set tunnel0 mtu 1500"])
    a, b, c = await three_hosts(real)
    frame = udp(1, size=1472)
    assert len(frame) == 1514
    a.passes(WEB, frame, "egress")
    await c.until(lambda: len(c.delivered[SNIFFER]) == 1)
    assert c.delivered[SNIFFER] == [frame[:1452]]
    assert b.arrived[TUNNEL_NIC][0].header.truncated
    # A leg was put for what the tunnel could carry then; with another MTU it is not in force.
    for host in real.real.values():
        await ip(host.paths.namespace, ["link set tunnel0 mtu 1600"])
    assert await a.mirror.observe() == {}
    await a.mirror.put(source(target=b.address))
    a.passes(WEB, frame, "egress")
    await b.until(lambda: len(b.arrived[TUNNEL_NIC]) == 2)
    assert b.arrived[TUNNEL_NIC][1].frame == frame


async def test_joined_frames_with_unfinished_checksums_are_copied_as_they_would_leave(real: RealRig) -> None:
    host = await real_host(real, relay(), source())
    payload = bytes(range(250)) * 20
    pass_joined(host, payload)
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 4)
    copies = [got.frame for got in host.arrived[TUNNEL_NIC]]
    assert [got.header.sequence for got in host.arrived[TUNNEL_NIC]] == [0, 1, 2, 3]
    assert b"".join(frame[54:] for frame in copies) == payload
    for frame in copies:
        assert int.from_bytes(frame[16:18], "big") == len(frame) - 14
        assert sum16(frame[14:34]) == 0xFFFF
        assert sum16(frame[26:34] + struct.pack("!HH", 6, len(frame) - 34) + frame[34:]) == 0xFFFF


async def test_a_joined_frame_costs_as_much_of_the_rate_as_all_that_is_copied_of_it(real: RealRig) -> None:
    """The first takes what the rate gives in some seconds; one frame of 1,000 bytes would leave room for the second."""
    host = await real_host(real, relay(), source(rate_limit_kbps=130, snap_bytes=1000))
    payload = bytes(43 * 1400)
    for _ in range(2):
        pass_joined(host, payload)
    found = await counts(host, "s")
    assert isinstance(found, SourceCounts)
    assert (found.limited, found.sent, found.sent_bytes) == (1, 43, 43_000)


def pass_joined(host: RealHost, payload: bytes) -> None:
    """Let a TCP packet pass the watched port that is to be cut into ones of 1,400 bytes."""
    pseudo = struct.pack("!4s4sHH", bytes([10, 1, 1, 2]), bytes([10, 1, 1, 3]), 6, 20 + len(payload))
    tcp = struct.pack("!HHIIBBHHH", 1000, 443, 7, 0, 0x50, 0x10, 1000, sum16(pseudo), 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0) + pseudo[:8]
    head = head[:10] + struct.pack("!H", ~sum16(head) & 0xFFFF) + head[12:]
    joined = bytes.fromhex("5254000000025254000000010800") + head + tcp + payload
    meta = struct.pack("=BBHHHH", NEEDS_CHECKSUM, GSO_TCP4, 54, 1400, 34, 16)
    nic = host.nics[WEB].wire
    nic.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    nic.send(meta + joined)


async def test_a_vlan_tag_is_copied_where_it_was(real: RealRig) -> None:
    host = await real_host(real, relay(), source(direction="egress", rules=(Rule(action="reject", family=4), Rule())))
    frame = udp(1)
    tagged = frame[:12] + b"\x81\x00\x20\x07" + frame[12:]
    host.passes(WEB, tagged, "egress")
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == 1)
    assert host.arrived[TUNNEL_NIC][0].frame == tagged


async def test_frames_with_half_a_header_meet_filters_as_rules_say(real: RealRig) -> None:
    rules = (Rule(family=4), Rule(family=6))
    host = await real_host(real, relay(), source(rules=rules))
    ipv6 = udp(1)[:12] + b"\x86\xdd\x60" + bytes(60)
    frames = [whole[:length] for whole in (udp(1), ipv6) for length in range(14, 58)]
    for frame in frames:
        host.passes(WEB, frame, "egress")
    wanted = [frame for frame in frames if decide(rules, frame, "egress")]
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == len(wanted))
    assert [got.frame for got in host.arrived[TUNNEL_NIC]] == wanted
    assert (await counts(host, "s")).seen == len(frames)  # type: ignore[union-attr]


async def test_forged_copies_arrive_nowhere(real: RealRig) -> None:
    a, b, c = await three_hosts(real)
    assert isinstance(b, RealHost)
    assert isinstance(a, RealHost)
    good = wire.own_header(KEY, a.address, 0)
    forged = wire.encapsulate(toward(good, b.address), udp(666))
    mac = bytes.fromhex("027000000062")
    for port in (WEB,):  # of a tenant: it goes to the switch, and nowhere else
        a.passes(port, forged[:0] + mac + forged[6:], "egress")
    for port in (SNIFFER_NIC, TUNNEL_NIC):  # of a decapsulator: a tunnel header is no label
        b.passes(port, mac + forged[6:], "egress")
    for label in (wire.label(KEY + 1), b"\0" * 8 + b"\0\0\0\1\x88\xb6", wire.label(KEY)[:8]):
        b.passes(SNIFFER_NIC, label + udp(666), "egress")
    b.passes(TUNNEL_NIC, wire.label(KEY) + udp(666), "egress")
    # On the tunnel itself, but with another sender, another key, another leg, or as if it came from the host itself.
    for source_, key, leg in (
        (c.address, KEY, 1), (a.address, KEY + 1, 1), (a.address, KEY, 2), (b.address, KEY, 1), ("0.0.0.0", KEY, 1),
    ):  # fmt: skip
        header = toward(wire.own_header(key, source_, 0, leg=leg), b.address)
        packet = wire.encapsulate(header, udp(666), to_mac=mac, from_mac=bytes.fromhex("027000000061"))
        await namespace.inside(a.paths.namespace, functools.partial(send_raw, "tunnel0", packet))
    a.passes(WEB, udp(1), "egress")
    await c.until(lambda: len(c.delivered[SNIFFER]) == 2)
    assert c.delivered[SNIFFER] == [mac + forged[6:], udp(1)]
    copied = [got.frame for got in b.arrived[TUNNEL_NIC]]
    assert copied == [mac + forged[6:], udp(1)], "the tenant's own frame is mirrored as any other"
    assert await counts(b, "r") == RelayCounts(arrived=2, relayed=2)
    # The bus got two that were true as far as it can tell; what claims to be from the host itself ended at the gate.
    assert isinstance(b.mirror, KernelMirror)
    refused = await b.mirror.refused()
    assert refused == {"malformed": 0, "unknown-key": 2, "wrong-source": 1, "unknown-copy": 0, "unknown-label": 4}


async def test_ordinary_traffic_of_the_tunnel_passes_the_gate_and_copies_meet_no_packet_socket(real: RealRig) -> None:
    a, b, c = await three_hosts(real)
    assert isinstance(a, RealHost)
    assert isinstance(b, RealHost)
    listener = await namespace.inside(b.paths.namespace, lambda: listen(b.address))
    switch = await namespace.inside(b.paths.namespace, lambda: watch("tunnel0"))
    with listener, switch:
        for number in range(20):
            a.passes(WEB, udp(number), "egress")
            await namespace.inside(a.paths.namespace, functools.partial(knock, b.address, number))
        await c.until(lambda: len(c.delivered[SNIFFER]) == 20)
        listener.settimeout(LIMIT_S)
        heard = [await asyncio.to_thread(listener.recv, 2000) for _ in range(20)]
        assert heard == [number.to_bytes(1400, "big") for number in range(20)]
        seen = drain(switch)
    protocols = {
        frame[23] for frame in seen if frame[12:14] == b"\x08\x00" and frame[30:34] == socket.inet_aton(b.address)
    }
    assert protocols == {socket.IPPROTO_UDP}


async def test_a_place_that_is_used_again_never_carries_packets_of_who_had_it(
    real: RealRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of two tenants come and go under load, with hardly more places than sessions."""
    a, b = real.real["a"], real.real["b"]
    monkeypatch.setattr(layout, "SLOTS", 3)
    tenants = {WEB: 1, "port-00000000web1": 2}
    await a.plug(*tenants)
    await b.plug(TUNNEL_NIC, SNIFFER_NIC)
    owners: dict[int, int] = {}
    dice = random.Random(7)
    for turn in range(60):
        port = dice.choice(list(tenants))
        key = KEY + turn
        owners[key] = tenants[port]
        await put(b, relay(a.address, key=key))
        await a.mirror.remove(f"s{dice.choice(list(tenants.values()))}")
        change = asyncio.create_task(a.mirror.put(source(key, f"s{tenants[port]}", b.address, port=port)))
        while not change.done():
            for each, tenant in tenants.items():
                a.passes(each, udp(tenant, size=8), "egress")
            await asyncio.sleep(0)
        await change
    arrived = b.arrived[TUNNEL_NIC]
    assert {(got.header.key, got.frame) for got in arrived} <= {(k, udp(owner, size=8)) for k, owner in owners.items()}
    assert len({got.header.key for got in arrived}) > 20
    assert len(arrived) > 500


async def test_without_its_namespace_nothing_is_in_force_and_all_can_be_removed(real: RealRig) -> None:
    host = await real_host(real, relay(), source())
    for port in list(host.nics):
        host.close_nic(port)
    await run(["ip", "netns", "delete", host.paths.namespace])
    assert await host.mirror.observe() == {}
    with pytest.raises(DriverError):
        await host.mirror.put(source())
    await host.mirror.remove("s")
    await host.mirror.remove("r")
    assert not list(host.paths.run.iterdir())


async def test_a_leg_that_cannot_be_put_hinders_no_other_one(real: RealRig) -> None:
    host = await real_host(real, source())
    place = host.paths.namespace
    taken = await namespace.inside(place, functools.partial(occupy, tap_name(SNIFFER_NIC)))
    try:
        with pytest.raises(DriverError, match="refuses"):
            await host.mirror.put(relay())
        assert set(await host.mirror.observe()) == {"s"}
        await put(host, delivery())
    finally:
        os.close(taken)
    await put(host, relay())
    assert set(await host.mirror.observe()) == {"s", "d", "r"}


async def test_changing_a_session_disturbs_no_other_one_of_the_port(real: RealRig) -> None:
    host = await real_host(real, relay(), source(number=1))
    sent = 0
    for turn in range(40):
        other = source(key=KEY + 1, id="other", rules=(Rule(protocol=100 + turn),))
        work = asyncio.create_task(host.mirror.put(other) if turn % 2 else host.mirror.remove("other"))
        while not work.done():
            host.passes(WEB, udp(sent), "egress")
            sent += 1
            await asyncio.sleep(0)
        await work
    await host.until(lambda: len(host.arrived[TUNNEL_NIC]) == sent)
    assert [got.header.sequence for got in host.arrived[TUNNEL_NIC]] == list(range(sent))
    assert [got.frame for got in host.arrived[TUNNEL_NIC]] == [udp(number) for number in range(sent)]


def has_all(host: RealHost, number: int) -> bool:
    return len(host.delivered[SNIFFER]) == number


def occupy(device: str) -> int:
    """Attach a program of somebody else's to a device; return its link."""
    program = Program()
    program.mov_imm(R0, kernel.XDP_PASS)
    program.exit()
    loaded = kernel.load(kernel.XDP, program.code(), "other")
    try:
        return kernel.attach(loaded, socket.if_nametoindex(device), kernel.ATTACH_XDP, kernel.XDP_GENERIC)
    finally:
        os.close(loaded)


def sum16(content: bytes) -> int:
    """Return the ones' complement sum of 16-bit words (RFC 1071)."""
    padded = content + b"\0" * (len(content) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def toward(header: wire.Header, destination: str) -> wire.Header:
    """Return the header with a destination."""

    return dataclasses.replace(header, destination=destination)


def send_raw(device: str, frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire_:
        wire_.bind((device, 0))
        wire_.send(frame)


def listen(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 4789))
    return made


def watch(device: str) -> socket.socket:
    """Return a packet socket like the switch's own; what leaves by the device is not in it."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((device, 3))
    made.setblocking(False)
    return made


def knock(address: str, number: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(number.to_bytes(1400, "big"), (address, 4789))


def drain(watcher: socket.socket) -> list[bytes]:
    frames: list[bytes] = []
    while True:
        try:
            frame, (_, _, kind, *_) = watcher.recvfrom(65_536)
        except BlockingIOError:
            return frames
        if kind != socket.PACKET_OUTGOING:
            frames.append(frame)


async def test_classifiers_leave_those_of_others_alone_and_go_with_the_last_session(tmp_path: Path) -> None:
    rig = RealRig(tmp_path, "never")
    await rig.build()
    try:
        host = await real_host(rig, relay(), source())
        tap, place = tap_name(WEB), host.paths.namespace
        assert (await filters(place, tap)).count("direct-action") == 1
        host.restart()
        await host.mirror.open()
        assert set(await host.mirror.observe()) == {"r", "s"}
        theirs = ["filter", "add", "dev", tap, "ingress", "prio", "7", "u32", "match", "u32", "0", "0", "flowid", "1:1"]
        await run(["tc", "-n", place, *theirs])
        for leg in ("s", "r"):
            await host.mirror.remove(leg)
        assert "direct-action" not in await filters(place, tap)
        assert "u32" in await filters(place, tap)
        assert "clsact" not in await run(["tc", "-n", place, "qdisc", "show", "dev", "tunnel0"])
    finally:
        await rig.remove()
    assert_nothing_left(rig)


async def filters(place: str, tap: str) -> str:
    """Return what traffic control says of a tap's classifiers."""
    return await run(["tc", "-n", place, "filter", "show", "dev", tap, "ingress"])
