"""Flow records: who talked to whom, both directions in one, and never more than there is room for."""

from __future__ import annotations

import random
import struct

import pytest

from pileus.node.mirror.flows import Ends, Flows, ends_of, original_bytes, protocol_name

MACS = bytes.fromhex("525400000002525400000001")
S = 1_000_000_000
SYN, ACK = 2, 16


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    ends = bytes(map(int, source.split("."))) + bytes(map(int, destination.split(".")))
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return MACS + b"\x08\x00" + head + ends + payload


def tcp(source: str, source_port: int, destination: str, port: int, flags: int = ACK, more: int = 0) -> bytes:
    head = struct.pack("!HHIIBBHHH", source_port, port, 1, 1, 0x50, flags, 512, 0, 0)
    return ipv4(source, destination, 6, head + bytes(more))


def talkers(ends: Ends) -> tuple[int, int, set[tuple[bytes, int]]]:
    both = {(ends.source, ends.source_port), (ends.destination, ends.destination_port)}
    return ends.family, ends.protocol, both


def ipv6(protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return MACS + b"\x86\xdd" + head + bytes(15) + b"\x01" + bytes(15) + b"\x02" + payload


def test_both_directions_are_one_flow_that_begins_with_who_asked() -> None:
    flows = Flows()
    ask, answer = ("10.0.0.1", 4000, "10.0.0.2", 443), ("10.0.0.2", 443, "10.0.0.1", 4000)
    flows.add(tcp(*ask, SYN), 1 * S, 54)
    flows.add(tcp(*answer, SYN | ACK), 2 * S, 54)
    flows.add(tcp(*ask, ACK, 100), 4 * S, 154)
    flows.add(tcp(*answer, ACK, 46), 3 * S, 1500)
    (flow,) = flows.changed()
    assert flow.told() == {
        "protocol": "tcp", "a": "10.0.0.1", "a_port": 4000, "b": "10.0.0.2", "b_port": 443,
        "first": 1.0, "last": 4.0, "packets": [2, 2], "bytes": [208, 1554],
    }  # fmt: skip


def test_an_answer_that_is_seen_first_is_still_an_answer() -> None:
    flows = Flows()
    flows.add(tcp("10.0.0.2", 443, "10.0.0.1", 4000, SYN | ACK), S, 54)
    flows.add(tcp("10.0.0.1", 4000, "10.0.0.2", 443), S, 60)
    (flow,) = flows.changed()
    assert (flow.told()["a_port"], flow.packets, flow.bytes) == (4000, [1, 1], [60, 54])


@pytest.mark.parametrize(
    ("frame", "name", "ports"),
    [
        (ipv4("10.0.0.1", "10.0.0.2", 17, struct.pack("!HHHH", 5, 53, 8, 0)), "udp", (5, 53)),
        (ipv4("10.0.0.1", "10.0.0.2", 17, struct.pack("!HHHH", 5, 53, 8, 0), fragment=0x2000), "udp", (5, 53)),
        (ipv4("10.0.0.1", "10.0.0.2", 17, struct.pack("!HHHH", 5, 53, 8, 0), fragment=3), "udp", (0, 0)),
        (ipv4("10.0.0.1", "10.0.0.2", 1, bytes(8)), "icmp", (0, 0)),
        (ipv4("10.0.0.1", "10.0.0.2", 6, b"\x00\x05"), "tcp", (0, 0)),
        (ipv4("10.0.0.1", "10.0.0.2", 99, bytes(8)), "99", (0, 0)),
        (ipv6(17, struct.pack("!HHHH", 7, 9, 8, 0)), "udp", (7, 9)),
        (ipv6(58, bytes(8)), "icmp6", (0, 0)),
        (MACS + b"\x08\x06" + bytes(28), "arp", (0, 0)),
        (MACS + b"\x88\xcc" + bytes(28), "0x88cc", (0, 0)),
        (MACS + b"\x81\x00\x00\x65" + tcp("10.0.0.1", 1, "10.0.0.2", 2)[12:], "tcp", (1, 2)),
        (MACS[:9], "0x0000", (0, 0)),
        (b"", "0x0000", (0, 0)),
    ],
)
def test_every_frame_has_a_flow(frame: bytes, name: str, ports: tuple[int, int]) -> None:
    ends = ends_of(frame)
    assert (protocol_name(ends), (ends.source_port, ends.destination_port)) == (name, ports)
    flows = Flows()
    flows.add(frame, S, len(frame))
    assert next(flows.changed()).told()["packets"] == [1, 0]


def test_idle_flows_go_first_and_are_counted() -> None:
    flows = Flows(limit=3)
    for port in (1, 2, 3, 1, 4):
        flows.add(tcp("10.0.0.1", port, "10.0.0.2", 80), port * S, 100)
    assert [flow.ends.source_port for flow in flows.changed()] == [4, 1, 3]
    assert flows.gone == [1, 1, 100]
    assert sum(sum(flow.packets) for flow in flows.changed()) + flows.gone[1] == 5
    flows.resize(1)
    assert [flow.ends.source_port for flow in flows.changed()] == [4]
    assert flows.gone == [3, 4, 400]


def test_only_what_changed_since_a_mark_is_told_again() -> None:
    flows = Flows()
    for port in (1, 2, 3):
        flows.add(tcp("10.0.0.1", port, "10.0.0.2", 80), S, 100)
    mark = flows.mark
    assert list(flows.changed(mark)) == []
    flows.add(tcp("10.0.0.2", 80, "10.0.0.1", 2), S, 100)
    assert [flow.packets for flow in flows.changed(mark)] == [[1, 1]]


def test_the_ip_header_tells_how_long_a_cut_frame_was() -> None:
    whole = tcp("10.0.0.1", 1, "10.0.0.2", 2, more=1000)
    assert original_bytes(whole[:64]) == len(whole)
    assert original_bytes(ipv6(17, bytes(500))[:60]) == 14 + 40 + 500
    assert original_bytes(whole[:15]) == 15
    assert original_bytes(tcp("10.0.0.1", 1, "10.0.0.2", 2) + bytes(6)) == 60  # padding is longer than IP says


def test_no_bytes_break_it() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, flows = random.Random(seed), Flows(limit=50)
    ends = [("10.0.0.1", 1, "10.0.0.2", 2), ("10.0.0.2", 2, "10.0.0.1", 1)]
    starts = [
        *(tcp(*each, more=20) for each in ends),
        tcp("10.0.0.1", 1, "10.0.0.2", 2),
        ipv6(6, bytes(20)),
        MACS + b"\x81\x00",
        b"",
    ]
    for _ in range(5000):
        frame = bytearray(chance.choice(starts) + chance.randbytes(chance.randrange(20)))
        for _ in range(chance.randrange(3)):
            if frame:
                frame[chance.randrange(len(frame))] = chance.randrange(256)
        cut = bytes(frame[: chance.randrange(len(frame) + 1)])
        flows.add(cut, S, original_bytes(cut))
        # However it was found, it is the flow of that frame.
        assert talkers(next(flows.changed()).ends) == talkers(ends_of(cut))
    assert all(flow.told() for flow in flows.changed())
    assert sum(sum(flow.packets) for flow in flows.changed()) + flows.gone[1] == 5000
