"""The program of one port and direction: which session takes a packet, and its copy. Straight-line code made from the rules.

``node.mirror.rules`` says what rules mean. A packet belongs to one of five sections (IPv4 and IPv6, with and without ports;
everything else), and each has code for those rules only that can fit there. R6 is the packet, R9 its start, R8 its ports where
it has any.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Literal

from msgspec import Struct

from pileus.drivers.host.mirror.layout import (
    CLONE_REDIRECT,
    FAILED,
    KTIME,
    LIMITED,
    MARK_COPY,
    MARK_DELIVERED,
    MARK_EGRESS,
    MATCHED,
    PRANDOM,
    PULL_HEADERS,
    SAMPLED,
    SEEN,
    SKB_END,
    SKB_GSO_SEGMENTS,
    SKB_GSO_SIZE,
    SKB_LEN,
    SKB_MARK,
    SKB_START,
    SKB_VLAN_PRESENT,
    SKB_VLAN_PROTO,
    TCX_NEXT,
    Maps,
    look_up,
    network16,
)
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Program
from pileus.node.mirror.rules import (
    ARP,
    IPV4,
    IPV6,
    MULTIPLIERS,
    PORT_MAX,
    WITH_PORTS,
    Direction,
    Network,
    Rule,
    networks,
    threshold,
)

BURST_NS = 100_000_000
"""A session may send ahead of its rate cap what that allows in so long."""

NS_PER_BYTE_AT_1_KBPS = 8_000_000

HEADERS_BYTES_MAX = 78
"""Ethernet, the longest IPv4 header, ports."""

KEY, SEGMENTS, MARK, KIND, TIME = -8, -16, -24, -32, -40
"""Places on the stack: a map's key, how many packets this one stands for, its own mark, its ethertype, the time."""


class Session(Struct, frozen=True, kw_only=True):
    """A session as its code needs it. ``slot``: of its counters; ``ticket``: what its copies carry.

    ``longest``: bytes of a copy.
    """

    slot: int
    ticket: int
    rules: tuple[Rule, ...] = ()
    longest: int
    sample_one_in: int = 1
    sample_by: Literal["packet", "flow"] = "packet"
    rate_limit_kbps: int = 0


class Section(Struct, frozen=True):
    """Packets that have the same headers. ``family`` 0: neither IP; ``ports``: they have them."""

    name: str
    family: Literal[0, 4, 6]
    ports: bool

    @property
    def protocol(self) -> int:
        """Place of the IP protocol's number."""
        return 23 if self.family == 4 else 20

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Places of source and destination, and their bytes."""
        return (26, 30, 4) if self.family == 4 else (22, 38, 16)


SECTIONS = (
    Section("ipv4 with ports", 4, ports=True),
    Section("ipv4", 4, ports=False),
    Section("ipv6 with ports", 6, ports=True),
    Section("ipv6", 6, ports=False),
    Section("other", 0, ports=False),
)


def select(sessions: tuple[Session, ...], direction: Direction, copies: int, maps: Maps) -> bytes:
    """Return the program; ``sessions`` in the order in which they are asked, ``copies`` the device for copies."""
    program = Program()
    program.mov(R6, R1)
    program.load(R1, R6, SKB_MARK, 4)
    program.jump_imm("eq", R1, MARK_DELIVERED, "out")
    _count_seen(program, sessions, maps)
    if _need_headers(sessions):
        _sort(program)
        takers = set[int]().union(*[_ask(program, section, sessions, direction) for section in SECTIONS])
    else:
        takers = {0}
    for number in sorted(takers):
        _take(program, number, sessions[number], maps)
        _copy(program, sessions[number], direction, copies)
    program.label("out")
    program.mov_imm(R0, TCX_NEXT)
    program.exit()
    return program.code()


def _need_headers(sessions: tuple[Session, ...]) -> bool:
    first = sessions[0]
    return bool(first.rules) or (first.sample_one_in > 1 and first.sample_by == "flow")


def _count_seen(program: Program, sessions: tuple[Session, ...], maps: Maps) -> None:
    """A packet that the kernel has joined counts as what it will be cut into."""
    program.load(R7, R6, SKB_GSO_SEGMENTS, 4)
    program.jump_imm("ne", R7, 0, "joined")
    program.mov_imm(R7, 1)
    program.label("joined")
    program.store(R10, SEGMENTS, R7, 8)
    for session in sessions:
        program.store_imm(R10, KEY, session.slot, 4)
        look_up(program, maps.counts, KEY, otherwise="out")
        _add(program, R0, SEEN, R7)


def _sort(program: Program) -> None:
    """Go to the section of the packet."""
    program.load(R1, R6, SKB_VLAN_PROTO, 4)
    program.load(R2, R6, SKB_VLAN_PRESENT, 4)
    program.jump_imm("ne", R2, 0, "not ip")
    _get_headers(program)
    program.mov_imm(R1, 0)
    program.mov(R3, R9)
    program.alu_imm("add", R3, 14)
    program.jump("gt", R3, R2, "not ip")
    program.load(R1, R9, 12, 2)
    program.jump_imm("eq", R1, network16(IPV4), "is ipv4")
    program.jump_imm("eq", R1, network16(IPV6), "is ipv6")
    program.label("not ip")
    program.swap(R1, 16)
    program.store(R10, KIND, R1, 8)
    program.goto("other")
    _sort_ipv4(program)
    _sort_ipv6(program)


def _get_headers(program: Program) -> None:
    """Let R9 be the packet's start and R2 the end of what can be read of it: all headers, or all there is."""
    program.load(R9, R6, SKB_START, 4)
    program.load(R2, R6, SKB_END, 4)
    program.mov(R3, R2)
    program.alu("sub", R3, R9)
    program.jump_imm("ge", R3, HEADERS_BYTES_MAX, "readable")
    program.load(R4, R6, SKB_LEN, 4)
    program.jump("ge", R3, R4, "readable")
    program.jump_imm("le", R4, HEADERS_BYTES_MAX, "pull")
    program.mov_imm(R4, HEADERS_BYTES_MAX)
    program.label("pull")
    program.mov(R1, R6)
    program.mov(R2, R4)
    program.call(PULL_HEADERS)
    program.load(R9, R6, SKB_START, 4)
    program.load(R2, R6, SKB_END, 4)
    program.label("readable")


def _sort_ipv4(program: Program) -> None:
    program.label("is ipv4")
    program.mov(R3, R9)
    program.alu_imm("add", R3, 34)
    program.jump("gt", R3, R2, "not ip")
    program.load(R3, R9, 14, 1)
    program.mov(R4, R3)
    program.alu_imm("rsh", R4, 4)
    program.jump_imm("ne", R4, 4, "not ip")
    program.alu_imm("and", R3, 15)
    program.jump_imm("lt", R3, 5, "not ip")
    program.load(R4, R9, 23, 1)
    for protocol in WITH_PORTS:
        program.jump_imm("eq", R4, protocol, "ports of ipv4")
    program.goto("ipv4")
    program.label("ports of ipv4")
    program.load(R4, R9, 20, 2)
    program.jump_imm("set", R4, network16(0x1FFF), "ipv4")
    program.alu_imm("lsh", R3, 2)
    program.mov(R8, R9)
    program.alu("add", R8, R3)
    program.alu_imm("add", R8, 14)
    program.mov(R3, R8)
    program.alu_imm("add", R3, 4)
    program.jump("gt", R3, R2, "ipv4")
    program.goto("ipv4 with ports")


def _sort_ipv6(program: Program) -> None:
    program.label("is ipv6")
    program.mov(R3, R9)
    program.alu_imm("add", R3, 54)
    program.jump("gt", R3, R2, "not ip")
    program.load(R3, R9, 14, 1)
    program.alu_imm("rsh", R3, 4)
    program.jump_imm("ne", R3, 6, "not ip")
    program.load(R4, R9, 20, 1)
    for protocol in WITH_PORTS:
        program.jump_imm("eq", R4, protocol, "ports of ipv6")
    program.goto("ipv6")
    program.label("ports of ipv6")
    program.mov(R8, R9)
    program.alu_imm("add", R8, 54)
    program.mov(R3, R8)
    program.alu_imm("add", R3, 4)
    program.jump("gt", R3, R2, "ipv6")
    program.goto("ipv6 with ports")


def _ask(program: Program, section: Section, sessions: tuple[Session, ...], direction: Direction) -> set[int]:
    """Ask the sessions about packets of one section; return which of them can take one. The verifier wants no dead code."""
    program.label(section.name)
    takers = set()
    for number, session in enumerate(sessions):
        here = f"{section.name}: {number}"
        can_take, can_go_on = _ask_one(program, session.rules, section, direction, here)
        if can_take:
            takers.add(number)
            program.label(f"{here}: taken")
            if session.sample_one_in > 1 and session.sample_by == "flow":
                _hash_flow(program, section, here)
            program.goto(f"take {number}")
        if not can_go_on:
            return takers
        program.label(f"{here}: next")
    program.goto("out")
    return takers


def _ask_one(
    program: Program, rules: tuple[Rule, ...], section: Section, direction: Direction, here: str
) -> tuple[bool, bool]:
    """Return whether the session can take a packet of the section, and whether it can leave one."""
    outcomes = set()
    for place, rule in enumerate(rules):
        if not _can_fit(rule, section, direction):
            continue
        before = len(program)
        _fit(program, rule, section, otherwise=f"{here}: after {place}")
        is_always = len(program) == before
        outcomes.add(rule.action)
        program.goto(f"{here}: taken" if rule.action == "accept" else f"{here}: next")
        if is_always:
            return "accept" in outcomes, "reject" in outcomes
        program.label(f"{here}: after {place}")
    if not rules:
        return True, False
    program.goto(f"{here}: next")
    return "accept" in outcomes, True


def _can_fit(rule: Rule, section: Section, direction: Direction) -> bool:
    """Return whether the rule can fit a packet of the section at all."""
    if rule.direction not in ("both", direction) or rule.family not in (0, section.family):
        return False
    if rule.protocol == "arp":
        if section.family:
            return False
    elif rule.protocol is not None and (not section.family or (section.ports and rule.protocol not in WITH_PORTS)):
        return False
    if any(network is not None and network.version != section.family for network in networks(rule)):
        return False
    any_port = (0, PORT_MAX)
    return section.ports or (rule.source_ports == any_port and rule.destination_ports == any_port)


def _fit(program: Program, rule: Rule, section: Section, *, otherwise: str) -> None:
    """Go on if the rule fits."""
    if rule.protocol == "arp":
        program.load(R1, R10, KIND, 8)
        program.jump_imm("ne", R1, ARP, otherwise)
    elif rule.protocol is not None:
        program.load(R1, R9, section.protocol, 1)
        program.jump_imm("ne", R1, rule.protocol, otherwise)
    for place, network in zip(section.addresses, networks(rule), strict=False):
        if network is not None:
            _fit_network(program, network, place, otherwise=otherwise)
    for place, (low, high) in ((0, rule.source_ports), (2, rule.destination_ports)):
        if (low, high) == (0, PORT_MAX):
            continue
        program.load(R1, R8, place, 2)
        program.swap(R1, 16)
        if low == high:
            program.jump_imm("ne", R1, low, otherwise)
            continue
        program.jump_imm("lt", R1, low, otherwise)
        program.jump_imm("gt", R1, high, otherwise)


def _fit_network(program: Program, network: Network, place: int, *, otherwise: str) -> None:
    mask = network.netmask.packed
    for at in range(0, 4 if isinstance(network, IPv4Network) else 16, 4):
        bits = int.from_bytes(mask[at : at + 4], "little")
        if not bits:
            return
        program.load(R1, R9, place + at, 4)
        if bits != 0xFFFFFFFF:
            program.alu32_imm("and", R1, bits)
        wanted = int.from_bytes(network.network_address.packed[at : at + 4], "little")
        program.jump32_imm("ne", R1, wanted, otherwise)


def _hash_flow(program: Program, section: Section, here: str) -> None:
    """Let R7 be ``rules.flow_hash`` of the packet."""
    if not section.family:
        program.load(R7, R10, KIND, 8)
        program.mov_imm(R1, 0)
    else:
        first, _, size = section.addresses
        program.load(R7, R9, first, 4)
        for at in range(4, 2 * size, 4):
            program.load(R1, R9, first + at, 4)
            program.alu32("xor", R7, R1)
        program.swap(R7, 32)
        program.load(R1, R9, section.protocol, 1)
        program.alu_imm("lsh", R1, 16)
    if section.ports:
        if section.family == 4:
            program.load(R2, R9, 20, 2)
            program.jump_imm("set", R2, network16(0x3FFF), f"{here}: hash")
        program.load(R2, R8, 0, 2)
        program.load(R3, R8, 2, 2)
        program.alu("xor", R2, R3)
        program.swap(R2, 16)
        program.alu("or", R1, R2)
    program.label(f"{here}: hash")
    _scramble(program)


def _scramble(program: Program) -> None:
    """``rules.scramble`` of R7 and R1, in R7."""
    program.alu32_imm("mul", R7, MULTIPLIERS[0])
    _fold(program, 15)
    program.alu32("xor", R7, R1)
    program.alu32_imm("mul", R7, MULTIPLIERS[1])
    _fold(program, 13)
    program.alu32_imm("mul", R7, MULTIPLIERS[2])
    _fold(program, 16)


def _fold(program: Program, bits: int) -> None:
    program.mov(R2, R7)
    program.alu32_imm("rsh", R2, bits)
    program.alu32("xor", R7, R2)


def _take(program: Program, number: int, session: Session, maps: Maps) -> None:
    """The session's rules took the packet: count, sample, keep to the rate."""
    program.label(f"take {number}")
    program.store_imm(R10, KEY, session.slot, 4)
    look_up(program, maps.counts, KEY, otherwise="out")
    program.mov(R8, R0)
    program.load(R9, R10, SEGMENTS, 8)
    _add(program, R8, MATCHED, R9)
    if session.sample_one_in > 1:
        chance = R7
        if session.sample_by == "packet":
            program.call(PRANDOM)
            chance = R0
        program.jump32_imm("ge", chance, threshold(session.sample_one_in), "out")
    _add(program, R8, SAMPLED, R9)
    if session.rate_limit_kbps:
        _keep_rate(program, number, session, maps)


def _keep_rate(program: Program, number: int, session: Session, maps: Maps) -> None:
    """Let the packet pass if its theoretical arrival time is not too far ahead (GCRA; ITU-T I.371).

    It costs what is copied of it, and a joined one becomes as many copies as it has segments.
    """
    program.call(KTIME)
    program.store(R10, TIME, R0, 8)
    look_up(program, maps.rates, KEY, otherwise="out")
    program.mov(R7, R0)
    program.load(R3, R10, TIME, 8)
    program.load(R0, R7, 0, 8)
    program.jump("ge", R0, R3, f"ahead {number}")
    # If another CPU was faster, its time is as good.
    program.compare_exchange(R7, 0, R3, 8)
    program.mov(R0, R3)
    program.label(f"ahead {number}")
    program.alu("sub", R0, R3)
    program.jump_imm("le", R0, BURST_NS, f"conforms {number}")
    _add(program, R8, LIMITED, R9)
    program.goto("out")
    program.label(f"conforms {number}")
    program.load(R1, R6, SKB_LEN, 4)
    _get_copied(program, number, session)
    program.jump("le", R1, R2, f"short {number}")
    program.mov(R1, R2)
    program.label(f"short {number}")
    program.alu_imm("mul", R1, NS_PER_BYTE_AT_1_KBPS)
    program.alu_imm("div", R1, session.rate_limit_kbps)
    program.atomic_add(R7, 0, R1, 8)


def _get_copied(program: Program, number: int, session: Session) -> None:
    """Let R2 be the most bytes that can be copied of a packet of R1 bytes; R3 is lost.

    Not by the kernel's count of segments: what came from a socket or a VM with offloads has none yet.
    """
    program.mov_imm(R2, session.longest)
    program.load(R3, R6, SKB_GSO_SIZE, 4)
    program.jump_imm("eq", R3, 0, f"whole {number}")
    program.mov(R2, R1)
    program.alu("div", R2, R3)
    program.alu_imm("add", R2, 1)
    program.alu_imm("mul", R2, session.longest)
    program.label(f"whole {number}")


def _copy(program: Program, session: Session, direction: Direction, copies: int) -> None:
    """Send a copy to the bus; the packet keeps its own mark."""
    program.load(R1, R6, SKB_MARK, 4)
    program.store(R10, MARK, R1, 8)
    program.mov_imm(R1, MARK_COPY | (MARK_EGRESS if direction == "egress" else 0) | session.ticket)
    program.store(R6, SKB_MARK, R1, 4)
    program.mov(R1, R6)
    program.mov_imm(R2, copies)
    program.mov_imm(R3, 0)
    program.call(CLONE_REDIRECT)
    program.load(R1, R10, MARK, 8)
    program.store(R6, SKB_MARK, R1, 4)
    program.jump_imm("eq", R0, 0, "out")
    _add(program, R8, FAILED, R9)
    program.goto("out")


def _add(program: Program, counts: int, place: int, amount: int) -> None:
    """Add a register to a counter of this CPU; R1 is lost."""
    program.load(R1, counts, place, 8)
    program.alu("add", R1, amount)
    program.store(counts, place, R1, 8)
