"""Compiled filters against what rules mean in Python: generated rules and frames, by the kernel's own test runs."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from tests.contract.mirror.conftest import skip_without_kernel

from pileus.drivers.host.mirror import layout
from pileus.drivers.host.mirror.base import SourceSpec
from pileus.drivers.host.mirror.layout import SHAPES, Maps
from pileus.drivers.host.mirror.select import Session, select
from pileus.mirror.leg.host import isolated
from pileus.node.ebpf import kernel
from pileus.node.mirror.rules import PORT_MAX, RULES_MAX, Direction, Rule, decide, samples_flow

NOWHERE = 0x7FFFFFF0
"""The number of a device that is not there: a copy fails, and nothing leaves the test."""

IPV4S = ("10.1.1.2", "10.1.1.3", "10.1.2.3", "192.0.2.9", "255.255.255.255", "0.0.0.0")
IPV6S = ("fd00::1", "fd00::2", "fd00:0:0:1::2", "2001:db8::ffff:1", "::", "ff02::1")
PROTOCOLS = (0, 1, 2, 6, 6, 17, 17, 47, 58, 132, 255)
PORTS = (0, 1, 53, 80, 443, 8080, 65_535)
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")


@pytest.fixture
def maps() -> Iterator[Maps]:
    skip_without_kernel()
    made = Maps(**{name: kernel.create_map(*shape, name=name) for name, shape in SHAPES.items()})
    yield made
    for name in SHAPES:
        os.close(getattr(made, name))


def a_rule(dice: random.Random) -> Rule:
    addresses = dice.choice((IPV4S, IPV6S))
    low, high = sorted(dice.choices(PORTS, k=2))
    return Rule(
        action=dice.choice(("accept", "accept", "reject")),
        direction=dice.choice(("both", "both", "ingress", "egress")),
        family=dice.choice((0, 0, 0, 4, 6)),
        protocol=dice.choice((None, None, "arp", dice.choice(PROTOCOLS), 6, 17)),
        source=a_network(dice, addresses),
        destination=a_network(dice, addresses),
        source_ports=dice.choice(((0, PORT_MAX), (low, high))),
        destination_ports=dice.choice(((0, PORT_MAX), (low, high), (high, high))),
    )


def a_network(dice: random.Random, addresses: tuple[str, ...]) -> str:
    if dice.random() < 0.6:
        return ""
    address = dice.choice(addresses)
    longest = ip_address(address).max_prefixlen
    prefix = dice.choice((0, 1, 8, 15, 24, 31, 32, 48, 64, 65, 96, 127, 128))
    return str(ip_network(f"{address}/{min(prefix, longest)}", strict=False))


LEAST = {b"\x08\x00": 34, b"\x86\xdd": 54}
"""A test run takes no frame whose header is not whole; test_kernel.py sends such ones through a tap."""


def a_frame(dice: random.Random) -> bytes:
    while True:
        frame = any_frame(dice)
        if len(frame) >= LEAST.get(frame[12:14], 14):
            return frame


def any_frame(dice: random.Random) -> bytes:
    """Mostly whole packets; some are cut, have options, are fragments, or say something wrong."""
    kind = dice.choice((4, 4, 4, 6, 6, 0))
    macs = dice.randbytes(12)
    if kind == 0:
        return macs + dice.choice((b"\x08\x06", b"\x08\x00", b"\x86\xdd", b"\x88\xcc", b"\x81\x00")) + dice.randbytes(
            dice.randrange(60)
        )  # fmt: skip
    protocol = dice.choice(PROTOCOLS)
    payload = struct.pack("!HH", dice.choice(PORTS), dice.choice(PORTS)) + dice.randbytes(dice.choice((0, 4, 90)))
    if kind == 4:
        words, fragment = dice.choice((0, 0, 0, 1, 10)), dice.choice((0, 0, 0x4000, 0x2000, 0x2001, 0x0007, 0x1FFF))
        head = struct.pack("!BBHHHBBH", 0x45 + words, 0, 0, 0, fragment, 64, protocol, 0)
        ends = ip_address(dice.choice(IPV4S)).packed + ip_address(dice.choice(IPV4S)).packed
        frame = macs + b"\x08\x00" + head + ends + dice.randbytes(4 * words) + payload
    else:
        head = struct.pack("!IHBB", 6 << 28, 0, protocol, 64)
        ends = ip_address(dice.choice(IPV6S)).packed + ip_address(dice.choice(IPV6S)).packed
        frame = macs + b"\x86\xdd" + head + ends + payload
    if dice.random() < 0.1:
        frame = frame[:14] + dice.randbytes(1) + frame[15:]
    return frame[: dice.randrange(14, len(frame) + 1)] if dice.random() < 0.15 else frame


def numbers(maps: Maps, slot: int) -> tuple[int, int, int]:
    """Return what a session has seen, matched and sampled."""
    each = kernel.lookup_per_cpu(maps.counts, struct.pack("I", slot), layout.COUNTS_BYTES)
    seen, matched, sampled = (
        sum(column) for column in zip(*(struct.unpack_from("3Q", one) for one in each), strict=True)
    )
    return seen, matched, sampled


def load(sessions: tuple[Session, ...], direction: Direction, maps: Maps) -> int:
    attach = kernel.ATTACH_TCX_INGRESS if direction == "egress" else kernel.ATTACH_TCX_EGRESS
    return kernel.load(kernel.SCHED_CLS, select(sessions, direction, NOWHERE, maps), "select", attach)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_source_at_an_isolated_port_takes_no_frame(maps: Maps, direction: Direction) -> None:
    spec = isolated(SourceSpec(id="leg", port="port", key=1, target="", rules=(Rule(protocol=6),)))
    assert isinstance(spec, SourceSpec)
    session = Session(slot=0, ticket=0, longest=65_535, rules=spec.rules, sample_one_in=1, sample_by="packet")
    program = load((session,), direction, maps)
    try:
        dice = random.Random(7)
        for number in range(200):
            assert kernel.run_test(program, a_frame(dice))[0] == layout.TCX_NEXT & 0xFFFFFFFF
            assert numbers(maps, 0) == (number + 1, 0, 0)
    finally:
        os.close(program)


def test_compiled_filters_take_what_rules_mean(maps: Maps) -> None:
    seed = int(os.environ.get("MIRROR_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"MIRROR_SEED={seed}")
    dice = random.Random(seed)
    totals: dict[int, list[int]] = {slot: [0, 0, 0] for slot in range(3)}
    taken = 0
    for _ in range(250):
        sessions = tuple(
            Session(
                slot=slot, ticket=slot, longest=65_535, rules=tuple(a_rule(dice) for _ in range(dice.choice((0, 1, 2, 5, 12)))),
                sample_one_in=dice.choice((1, 3)), sample_by="flow",
            )
            for slot in range(dice.choice((1, 1, 2, 3)))
        )  # fmt: skip
        direction = dice.choice(DIRECTIONS)
        program = load(sessions, direction, maps)
        try:
            for _ in range(40):
                frame = a_frame(dice)
                verdict, after, _ = kernel.run_test(program, frame)
                assert (verdict, after) == (layout.TCX_NEXT & 0xFFFFFFFF, frame)
                taker = next((each for each in sessions if decide(each.rules, frame, direction)), None)
                for session in sessions:
                    total = totals[session.slot]
                    total[0] += 1
                    total[1] += session is taker
                    total[2] += session is taker and samples_flow(frame, session.sample_one_in)
                    assert numbers(maps, session.slot) == tuple(total), (seed, session, direction, frame.hex())
                taken += taker is not None
        finally:
            os.close(program)
    assert 1000 < taken < 9000, "the generated rules say nothing"


@pytest.mark.parametrize("source", ["", "10.{n}.0.0/16", "fd00:{n}::1/128"])
def test_as_many_sessions_and_rules_as_there_can_be_load(maps: Maps, source: str) -> None:
    rules = tuple(
        Rule(
            action="reject" if n % 2 else "accept", protocol=6, source=source.format(n=n), destination=source.format(n=n),
            source_ports=(n, 1000 + n), destination_ports=(n, 2000 + n),
        )
        for n in range(RULES_MAX)
    )  # fmt: skip
    sessions = tuple(
        Session(
            slot=n, ticket=n, rules=rules, longest=100, sample_one_in=10, rate_limit_kbps=9,
            sample_by="flow" if n % 2 else "packet",
        )
        for n in range(8)
    )  # fmt: skip
    for direction in DIRECTIONS:
        os.close(load(sessions, direction, maps))
