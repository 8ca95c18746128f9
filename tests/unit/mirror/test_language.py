"""Filters: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests.unit.mirror.frames import ADDRESSES, NETS, PORTS, Packet, packet, write_pcap

from pileus.mirror.filter.language import DEPTH_MAX, TEXT_MAX, FilterError, describe, parse
from pileus.node.mirror.rules import PORT_MAX, RULES_MAX, Rule, decide

SEED = int(os.environ.get("PILEUS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
Fits = Callable[[Packet], bool]

PROTOCOLS: dict[str, Fits] = {
    "tcp": lambda one: one.family != 0 and one.protocol == 6,
    "udp": lambda one: one.family != 0 and one.protocol == 17,
    "sctp": lambda one: one.family != 0 and one.protocol == 132,
    "icmp": lambda one: one.family == 4 and one.protocol == 1,
    "icmp6": lambda one: one.family == 6 and one.protocol == 58,
    "ip": lambda one: one.family == 4,
    "ip6": lambda one: one.family == 6,
    "arp": lambda one: one.arp,
}


def primitive(dice: random.Random, *, directed: bool) -> tuple[str, Fits]:
    """Return a text, and what it means."""
    kind = dice.randrange(7 if directed else 6)
    if kind == 0:
        word = dice.choice(sorted(PROTOCOLS))
        return word, PROTOCOLS[word]
    if kind == 1:
        number = dice.choice((1, 6, 17, 47, 58))
        return f"proto {number}", lambda one: one.family != 0 and one.protocol == number
    if kind == 6:
        word = dice.choice(("inbound", "outbound"))
        return word, lambda one: (one.direction == "ingress") == (word == "inbound")
    side = dice.choice(("", "src ", "dst ", "src and dst "))
    if kind in (2, 3):
        return addressed(dice, side)
    low = dice.choice(PORTS)
    high = low if kind == 4 else dice.choice([port for port in (*PORTS, PORT_MAX) if port >= low])
    limit = dice.choice(("tcp ", "udp ", "", "")) if kind == 4 else ""

    def fits(one: Packet) -> bool:
        if one.ports is None or (limit and not PROTOCOLS[limit.strip()](one)):
            return False
        return sided(side, *(low <= port <= high for port in one.ports))

    return f"{limit}{side}{f'port {low}' if kind == 4 else f'portrange {low}-{high}'}", fits


def addressed(dice: random.Random, side: str) -> tuple[str, Fits]:
    text = dice.choice((*ADDRESSES[4], *ADDRESSES[6], *NETS))
    within = ip_network(text)
    word = "net" if "/" in text else "host"

    def fits(one: Packet) -> bool:
        if not one.family:
            return False
        return sided(side, ip_address(one.source) in within, ip_address(one.destination) in within)

    return f"{side}{word} {text}", fits


def sided(side: str, source: bool, destination: bool) -> bool:
    return {
        "": source or destination, "src ": source, "dst ": destination, "src and dst ": source and destination
    }[side]  # fmt: skip


def expression(dice: random.Random, depth: int, *, directed: bool = True) -> tuple[str, Fits]:
    """Return a text, and what it means."""
    kind = dice.randrange(5)
    if not depth or kind == 0:
        return primitive(dice, directed=directed)
    text, fits = expression(dice, depth - 1, directed=directed)
    if kind == 1:
        return f"{dice.choice(('not', '!'))} ({text})", lambda one: not fits(one)
    other, other_fits = expression(dice, depth - 1, directed=directed)
    if dice.random() < 0.5:
        return f"({text}) {dice.choice(('and', '&&'))} ({other})", lambda one: fits(one) and other_fits(one)
    return f"({text}) {dice.choice(('or', '||'))} ({other})", lambda one: fits(one) or other_fits(one)


def attempt(text: str) -> tuple[tuple[Rule, ...], str]:
    """Return the rules, or why there are none."""
    try:
        return parse(text), ""
    except FilterError as error:
        return (), error.picture + error.message


def test_rules_mean_what_the_expression_says() -> None:
    print(f"PILEUS_SEED={SEED}")
    dice = random.Random(SEED)
    packets = [packet(dice) for _ in range(150)]
    frames = [(one, one.frame()) for one in packets]
    refused = 0
    for _ in range(300):
        text, fits = expression(dice, dice.randrange(5))
        rules, message = attempt(text)
        if message:
            refused += 1
            assert "more than 64 rules" in message or not any(map(fits, packets)), (text, message)
            continue
        assert 0 < len(rules) <= RULES_MAX
        for one, frame in frames:
            assert decide(rules, frame, one.direction) == fits(one), (text, one, rules)
    assert refused < 100


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_takes_the_same_packets(tmp_path: Path) -> None:
    print(f"PILEUS_SEED={SEED}")
    dice = random.Random(SEED)
    frames = [packet(dice).frame() for _ in range(200)]
    file = tmp_path / "frames.pcap"
    write_pcap(file, frames)
    texts = [
        "port 80 or 443", "tcp port 22 or host 10.1.0.1 and udp", "not port 80 or 22", "src or dst net 10.1.0.0/24",
        "tcp dst port 22 or 80 or 443", "host 10.1.0.1 and (203.0.113.7 or 10.1.0.2)", "src 10.1.0.1", "ip proto 17",
        "ip6 proto 6", "port (22 or 53)", "portrange 0-65535", "! tcp && ! udp", "tcp src port http",
        "not host 10.1.0.1 and 10.1.0.2", "icmp or icmp6 or arp", "proto \\tcp", "udp portrange 22-80",
    ]  # fmt: skip
    while len(texts) < 60:
        text, _ = expression(dice, dice.randrange(4), directed=False)
        if "/0" not in text:  # libpcap takes every frame for these, also one without addresses
            texts.append(text)
    compared = 0
    for text in texts:
        rules, message = attempt(text)
        if message:
            continue
        done = subprocess.run(
            ["tcpdump", "-nn", "-r", file, "-w", "-", text], capture_output=True, timeout=20, check=False
        )
        if done.returncode:
            assert b"expression rejects all packets" in done.stderr, (text, done.stderr)
        compared += 1
        taken = {number for number, frame in enumerate(frames) if decide(rules, frame, "ingress")}
        assert taken == _numbers(done.stdout), text
    assert compared > 40


def _numbers(pcap: bytes) -> set[int]:
    """Return the seconds of a capture's packets, which are their numbers here."""
    found, at = set(), 24
    while at < len(pcap):
        seconds, _, length, _ = struct.unpack_from("<IIII", pcap, at)
        found.add(seconds)
        at += 16 + length
    return found


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", ()),
        ("tcp port 443", (
            Rule(protocol=6, source_ports=(443, 443)), Rule(protocol=6, destination_ports=(443, 443))
        )),
        ("not arp", (Rule(action="reject", protocol="arp"), Rule())),
        ("host 10.1.1.5 and not src port 22", (
            Rule(action="reject", source_ports=(22, 22)),
            Rule(family=4, source="10.1.1.5/32"),
            Rule(family=4, destination="10.1.1.5/32"),
        )),
        ("inbound and icmp6", (Rule(direction="ingress", family=6, protocol=58),)),
        ("tcp or not tcp", (Rule(),)),
        ("TCP AND DST PORT HTTPS", (Rule(protocol=6, destination_ports=(443, 443)),)),
    ],
)  # fmt: skip
def test_simple_filters_need_few_rules(text: str, rules: tuple[Rule, ...]) -> None:
    assert parse(text) == rules


@pytest.mark.parametrize(
    ("text", "marked", "message"),
    [
        ("prot tcp", "prot", 'unknown word "prot"; did you mean `proto`?'),
        ("tcp prt 80", "prt", 'unknown word "prt"; did you mean `port`?'),
        ("tcp 443", "443", '"443" alone says nothing; say what it is, such as `port 443`'),
        ("port httpp", "httpp", '"httpp" is no port; it is a number from 0 to 65535; did you mean `http`?'),
        ("port 65536", "65536", '"65536" is no port; it is a number from 0 to 65535'),
        ("portrange 90-80", "90-80", "the range ends before it begins; write 80-90"),
        ("portrange 80", "80", '"80" is no range of ports; write it like 5000-5999'),
        ("host web", "web", '"web" is no IP address; names are not looked up'),
        ("host 10.0.0.0/8", "10.0.0.0/8", "`host` takes one address; say `net 10.0.0.0/8`"),
        ("net 10.0.0.5/24", "10.0.0.5/24",
         "10.0.0.5/24 has bits beyond its first 24; say `net 10.0.0.0/24`, or `host 10.0.0.5`"),
        ("net 10", "10", '"10" is no range of addresses; write it like 10.1.0.0/16 or 2001:db8::/32'),
        ("tcp and", " ", "something is missing at the end after `and`"),
        ("tcp udp", "udp", '"udp" cannot stand here; join what is asked by `and` or `or`'),
        ("tcp or (udp", "(", "there is no ) for this ("),
        ("tcp)", ")", "there is no ( for this )"),
        ("()", ")", '")" cannot stand here after `(`'),
        ("icmp port 5", "icmp port 5", "no icmp packet is so"),
        ("tcp and udp", "tcp and udp", "no packet can be so; what is joined by `and` must be possible at once"),
        ("vlan 5", "vlan", '"vlan" cannot be asked for here; protocols, addresses, ports and directions can be asked for'),
        ("tcp[13] != 0", "tcp[13]",
         '"tcp[13]" cannot be asked for here; protocols, addresses, ports and directions can be asked for'),
        ("host fe80::1%eth0", "fe80::1%eth0", '"fe80::1%eth0" is no IP address; names are not looked up'),
        ("src proto 6", "src proto 6", "a protocol has no side; say `proto` without `src` or `dst`"),
    ],
)  # fmt: skip
def test_an_error_names_the_word_and_its_place(text: str, marked: str, message: str) -> None:
    with pytest.raises(FilterError) as raised:
        parse(text)
    assert raised.value.message == message
    shown, marks = raised.value.picture.split("\n")
    assert shown == text
    assert f"{text} "[marks.index("^") :].startswith(marked)


def test_what_is_too_long_is_refused_soon() -> None:
    many = " or ".join(f"host 10.0.{number}.1" for number in range(20))
    ports = " or ".join(str(port) for port in range(20))
    deep = "(" * (DEPTH_MAX + 1) + "tcp" + ")" * (DEPTH_MAX + 1)
    nots = " and ".join(f"not (port {port} and host 10.0.0.{port})" for port in range(40))
    long = "tcp" + " or tcp" * TEXT_MAX
    for text in (f"({many}) and (port {ports})", nots, deep, long):
        began = time.monotonic()
        with pytest.raises(FilterError, match=r"more than|at most"):
            parse(text)
        assert time.monotonic() - began < 5


def test_any_text_is_read_or_refused() -> None:
    print(f"PILEUS_SEED={SEED}")
    dice = random.Random(SEED)
    words = [
        "tcp",
        "port",
        "80",
        "(",
        ")",
        "not",
        "and",
        "or",
        "src",
        "dst",
        "host",
        "1.2.3.4",
        "net",
        "::/0",
        "\x1b[2J",
        "é",
        "/",
    ]
    for _ in range(3000):
        text = " ".join(dice.choices(words, k=dice.randrange(12)))
        rules, message = attempt(text)
        assert message.startswith(text) if not rules else not message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "every packet"),
        ("tcp port 443", "tcp port 443"),
        ("host 10.1.1.5 and not port 22", "not port 22, host 10.1.1.5"),
        ("udp dst portrange 5000-5999 or icmp", "udp dst portrange 5000-5999, icmp"),
        ("not arp", "not arp, everything else"),
        ("proto 47", "proto 47"),
        ("port 1 or 2 or 3 or 4 or 5 or 6", "port 1, port 2, port 3, port 4 and 2 more"),
        ("src host 10.0.0.1 and dst port 80", "src host 10.0.0.1 dst port 80"),
    ],
)
def test_rules_are_told_on_one_line(text: str, line: str) -> None:
    if line:
        assert describe(parse(text)) == line
    else:
        with pytest.raises(FilterError):
            parse(text)
