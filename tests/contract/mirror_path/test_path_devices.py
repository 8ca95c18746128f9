"""The data path at devices: what is known is given back or kept, and nothing else goes anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.contract.ebpf.rooms import Room
from tests.contract.mirror_path.devices import Devices, read_all

from pileus.node.ebpf import kernel
from pileus.node.mirror import wire
from pileus.node.mirror.xdp import Mode, XdpPath

SOURCE = "10.9.0.1"
SNIFFED, KEPT = 0xABCDEF_0001, 0xFEDCBA_0002
BROADCAST = b"\xff" * 6
ARP = BROADCAST + b"\x02\0\0\0\0\x01" + bytes.fromhex("08060001080006040001020000000001090909090000000000000a090002")
FRAME = b"\x02\0\0\0\0\xaa\x02\0\0\0\0\xbb\x08\x00" + bytes(range(200))


@pytest.fixture(params=["native", "generic"])
def devices(request: pytest.FixtureRequest, room: Room) -> Iterator[Devices]:
    made = Devices(room, request.param)
    made.path.put(SNIFFED & wire.SLOT_MASK, SNIFFED, SOURCE, "sniffers")
    made.path.put(KEPT & wire.SLOT_MASK, KEPT, SOURCE, "store")
    yield made
    made.close()


def _sent(key: int, number: int, frame: bytes = FRAME) -> bytes:
    header = wire.own_header(key, SOURCE, number)
    return wire.encapsulate(header, frame, to_mac=b"\x02\0\0\0\0\x02", from_mac=b"\x02\0\0\0\0\x01")


def test_frames_are_given_back_behind_their_label_and_in_order(devices: Devices) -> None:
    frames = [FRAME + bytes([number]) * (number * 14) for number in range(100)]
    for number, frame in enumerate(frames):
        devices.outside.send(_sent(SNIFFED, number, frame))
    assert read_all(devices.relay) == [wire.label(SNIFFED) + frame for frame in frames]
    counts = devices.path.counts(1)
    assert counts is not None
    assert (counts.received, counts.first, counts.highest, counts.forwarded) == (100, 0, 99, 100)
    assert counts.bytes == sum(map(len, frames))


def test_kept_frames_are_read_whole_and_by_nobody_else(devices: Devices) -> None:
    for number in range(20):
        devices.outside.send(_sent(KEPT, number))
    kept = read_all(devices.kept)
    found = [wire.parse(frame, ethertype=wire.ETHERTYPE_LABEL) for frame in kept]
    assert found == [wire.parse(_sent(KEPT, number)) for number in range(20)]
    assert read_all(devices.relay) == []


def test_nothing_else_reaches_the_ip_stack_or_the_sniffers(devices: Devices) -> None:
    room = devices.room
    room.ip("address", "add", "10.9.0.2/24", "dev", "tunnel")
    ping = BROADCAST + ARP[6:12] + bytes.fromhex("08004500001c00000000400166bf0a0900010a0900020800f7ff00000000")
    others = [ARP, ping, bytes(60), _sent(SNIFFED + (1 << 20), 1), BROADCAST + ARP[6:12] + b"\x88\xb6" + FRAME]
    for frame in others:
        devices.outside.send(frame)
    passed: list[bytes] = []
    for _ in range(50):  # on a busy machine the kernel takes its time
        passed += read_all(devices.seen)
        if sum(devices.path.refused().values()) == len(others):
            break
    assert passed + read_all(devices.relay) == []
    refused = {reason: count for reason, count in devices.path.refused().items() if count}
    assert refused == {"not-ipv4": 3, "not-gre": 1, "unknown-session": 1}


def test_nothing_comes_in_from_the_sniffers(devices: Devices) -> None:
    inside = devices.room.packet_socket("sniffers", 0x0003)
    for _ in range(100):
        devices.relay.send(wire.label(SNIFFED) + FRAME)
    assert read_all(inside) == []
    inside.close()


def test_a_native_path_is_opened_where_drivers_can(room: Room) -> None:
    _, tunnel = room.veth("outside", "tunnel")
    _, sniffers = room.veth("relay", "sniffers")
    path = room.run(XdpPath.open, tunnel, sniffers)
    assert path.mode == "native"
    path.close()


def test_a_path_is_generic_where_a_driver_cannot(room: Room) -> None:
    _, tunnel = room.veth("outside", "tunnel")
    path = room.run(XdpPath.open, tunnel, room.ifindex("lo"))
    assert path.mode == "generic"
    path.close()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_path_to_a_device_that_is_not_there_leaves_nothing_open(room: Room, mode: Mode) -> None:
    _, tunnel = room.veth("outside", "tunnel")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kernel.BpfRefused):
        room.run(XdpPath.open, tunnel, 4242)
    path = room.run(XdpPath, tunnel)
    with pytest.raises(kernel.BpfRefused):
        room.run(path.attach, 4242, tunnel, mode)
    path.close()
    assert len(os.listdir("/proc/self/fd")) == before
