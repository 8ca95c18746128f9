"""What mirror rules mean."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from pileus.node.mirror.rules import BadRules, Direction, Rule, check, decide, flow_hash, samples_flow

TCP, UDP, ICMP = 6, 17, 1
MACS = bytes.fromhex("525400000002525400000001")


def ipv4(source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, options: int = 0) -> bytes:
    """An Ethernet frame with an IPv4 packet; ``options``: words of them; ``fragment``: flags and offset."""
    head = struct.pack("!BBHHHBBH", 0x45 + options, 0, 20 + 4 * options + len(payload), 0, fragment, 64, protocol, 0)
    addresses = ip_address(source).packed + ip_address(destination).packed
    return MACS + b"\x08\x00" + head + addresses + bytes(4 * options) + payload


def ipv6(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return MACS + b"\x86\xdd" + head + ip_address(source).packed + ip_address(destination).packed + payload


def ports(source: int, destination: int) -> bytes:
    return struct.pack("!HHI", source, destination, 8)


WEB = ipv4("10.0.0.1", "10.0.0.2", TCP, ports(40_000, 443))
BACK = ipv4("10.0.0.2", "10.0.0.1", TCP, ports(443, 40_000))
DNS6 = ipv6("fd00::1", "fd00::2", UDP, ports(5353, 53))
ARP = MACS + b"\x08\x06" + bytes(28)
LLDP = MACS + b"\x88\xcc" + bytes(40)


def takes(frame: bytes, *rules: Rule, direction: Direction = "ingress") -> bool:
    return decide(rules, frame, direction)


@pytest.mark.parametrize("frame", [WEB, DNS6, ARP, LLDP, MACS, b""])
def test_without_rules_every_frame_is_taken_and_a_bare_rule_fits_all(frame: bytes) -> None:
    assert takes(frame)
    assert takes(frame, Rule())
    assert not takes(frame, Rule(action="reject"))


def test_what_no_rule_fits_is_not_taken_and_the_first_that_fits_decides() -> None:
    web, reject_web = Rule(protocol=TCP, destination_ports=(443, 443)), Rule(action="reject", source="10.0.0.0/30")
    assert takes(WEB, web)
    assert not takes(BACK, web)
    assert not takes(WEB, reject_web, web)
    assert takes(WEB, web, reject_web)


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        (Rule(protocol=TCP), {"web"}),
        (Rule(protocol="arp"), {"arp"}),
        (Rule(family=4), {"web"}),
        (Rule(family=6), {"dns"}),
        (Rule(protocol=UDP), {"dns"}),
        (Rule(source="fd00::/64"), {"dns"}),
        (Rule(source="10.0.0.1/32"), {"web"}),
        (Rule(destination="0.0.0.0/0"), {"web"}),
        (Rule(destination="::/0"), {"dns"}),
        (Rule(source_ports=(5000, 6000)), {"dns"}),
        (Rule(destination_ports=(1, 65_535)), {"web", "dns"}),
        (Rule(family=6, source="10.0.0.0/8"), set()),
        (Rule(direction="egress"), set()),
    ],
)
def test_a_rule_fits_what_it_says_only(rule: Rule, taken: set[str]) -> None:
    frames = {"web": WEB, "dns": DNS6, "arp": ARP, "lldp": LLDP}
    assert {name for name, frame in frames.items() if takes(frame, rule)} == taken


def test_ports_come_after_options_and_only_in_the_first_fragment() -> None:
    rule = Rule(destination_ports=(443, 443))
    assert takes(ipv4("10.0.0.1", "10.0.0.2", TCP, ports(1, 443), options=10), rule)
    assert takes(ipv4("10.0.0.1", "10.0.0.2", TCP, ports(1, 443), fragment=0x2000), rule)
    assert not takes(ipv4("10.0.0.1", "10.0.0.2", TCP, ports(1, 443), fragment=0x0001), rule)
    assert not takes(ipv4("10.0.0.1", "10.0.0.2", ICMP, ports(1, 443)), rule)
    assert not takes(ipv4("10.0.0.1", "10.0.0.2", TCP, b"\0\1\1"), rule)
    assert takes(ipv4("10.0.0.1", "10.0.0.2", TCP, b"\0\1\1"), Rule(protocol=TCP))


@pytest.mark.parametrize("length", range(14, 34))
def test_a_header_that_is_not_whole_is_none(length: int) -> None:
    assert not takes(WEB[:length], Rule(family=4))
    assert takes(WEB[:length], Rule())


def test_a_wrong_version_or_length_is_no_ip() -> None:
    assert not takes(WEB[:14] + b"\x65" + WEB[15:], Rule(family=4))
    assert not takes(WEB[:14] + b"\x44" + WEB[15:], Rule(family=4))
    assert not takes(DNS6[:14] + b"\x40" + DNS6[15:], Rule(family=6))


def test_both_directions_of_a_flow_are_sampled_alike_and_fragments_like_each_other() -> None:
    assert flow_hash(WEB) == flow_hash(BACK)
    assert flow_hash(DNS6) == flow_hash(ipv6("fd00::2", "fd00::1", UDP, ports(53, 5353)))
    first = ipv4("10.0.0.1", "10.0.0.2", UDP, ports(1, 2), fragment=0x2000)
    assert flow_hash(first) == flow_hash(ipv4("10.0.0.1", "10.0.0.2", UDP, ports(7, 8), fragment=0x0010))
    assert flow_hash(ipv4("10.0.0.1", "10.0.0.2", UDP, b"")) != flow_hash(WEB)


def test_one_flow_in_ten_is_sampled() -> None:
    flows = [ipv4(f"10.0.{n % 7}.{n % 250}", "10.1.0.2", TCP, ports(1024 + n, 443)) for n in range(10_000)]
    assert 900 < sum(samples_flow(flow, 10) for flow in flows) < 1100
    assert all(samples_flow(flow, 1) for flow in flows)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (Rule(source="10.0.0.1/8"), "host bits"),
        (Rule(destination="here"), "here"),
        (Rule(source_ports=(2, 1)), "2-1"),
        (Rule(destination_ports=(0, 65_536)), "65536"),
        (Rule(protocol=256), "256"),
    ],
)
def test_rules_that_cannot_be_are_refused(rule: Rule, word: str) -> None:
    with pytest.raises(BadRules, match=word):
        check((rule,))


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(BadRules, match="65"):
        check((Rule(),) * 65)
