"""The two programs on the tunnel's device: one takes what comes for the mirror, one learns the way by what leaves.

Both know only their own address. In generic mode XDP comes before any packet socket, so the switch never sees what the
gate takes; everything else goes on as it came.
"""

from __future__ import annotations

from pileus.drivers.host.mirror.layout import (
    ETHERTYPE,
    GRE,
    IP_DESTINATION,
    IP_FRAGMENT,
    IP_PROTOCOL,
    IP_SOURCE,
    IP_VERSION,
    KTIME,
    MAP_UPDATE,
    REDIRECT,
    SKB_END,
    SKB_MARK,
    SKB_START,
    TCX_NEXT,
    WAY,
    WAY_MACS,
    WAY_TIME,
    XDP_END,
    XDP_START,
    Maps,
    network16,
    network32,
)
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R6, R9, R10, Program
from pileus.node.ebpf.kernel import XDP_DROP, XDP_PASS
from pileus.node.mirror.wire import ETHERTYPE_IPV4, GRE_ERSPAN_3, GRE_PROTOCOL, GRE_SEQUENCE, OVERHEAD_BYTES

UPDATE_ANY = 0


def gate(own: str, copies: int) -> bytes:
    """Return the XDP program: GRE for ``own`` goes to the device ``copies``, but never what claims to be from this host."""
    program = Program()
    program.load(R9, R1, XDP_START, 4)
    program.load(R2, R1, XDP_END, 4)
    _need_gre(program, network32(own), IP_DESTINATION, otherwise="pass")
    program.load(R3, R9, IP_VERSION, 1)
    program.jump_imm("ne", R3, 0x45, "drop")
    program.load(R3, R9, IP_FRAGMENT, 2)
    program.jump_imm("set", R3, network16(0x3FFF), "drop")
    program.load(R3, R9, IP_SOURCE, 4)
    program.jump32_imm("eq", R3, network32(own), "drop")
    program.jump32_imm("eq", R3, 0, "drop")
    program.mov_imm(R1, copies)
    program.mov_imm(R2, 0)
    program.call(REDIRECT)
    program.exit()
    for label, verdict in (("drop", XDP_DROP), ("pass", XDP_PASS)):
        program.label(label)
        program.mov_imm(R0, verdict)
        program.exit()
    return program.code()


def learn(own: str, maps: Maps) -> bytes:
    """Return the program at the device's exit: MACs of a copy that the underlay's bridge sent are the way for the next ones."""
    program = Program()
    program.mov(R6, R1)
    program.load(R3, R6, SKB_MARK, 4)
    program.jump32_imm("ne", R3, 0, "on")
    program.load(R9, R6, SKB_START, 4)
    program.load(R2, R6, SKB_END, 4)
    _need_gre(program, network32(own), IP_SOURCE, otherwise="on")
    program.load(R3, R9, GRE, 4)
    program.jump32_imm("ne", R3, network16(GRE_SEQUENCE) | network16(GRE_ERSPAN_3) << 16, "on")
    _store_way(program, maps)
    program.label("on")
    program.mov_imm(R0, TCX_NEXT)
    program.exit()
    return program.code()


def _need_gre(program: Program, own: int, place: int, *, otherwise: str) -> None:
    """Go on only with an IPv4 frame of GRE that has ``own`` at ``place``; R9 is its start, R2 its end."""
    program.mov(R3, R9)
    program.alu_imm("add", R3, OVERHEAD_BYTES)
    program.jump("gt", R3, R2, otherwise)
    program.load(R3, R9, ETHERTYPE, 2)
    program.jump_imm("ne", R3, network16(ETHERTYPE_IPV4), otherwise)
    program.load(R3, R9, IP_PROTOCOL, 1)
    program.jump_imm("ne", R3, GRE_PROTOCOL, otherwise)
    program.load(R3, R9, place, 4)
    program.jump32_imm("ne", R3, own, otherwise)


def _store_way(program: Program, maps: Maps) -> None:
    value, key = -WAY.size, -WAY.size - 8
    for place in range(0, WAY.size, 8):
        program.store_imm(R10, value + place, 0, 8)
    program.load(R3, R9, IP_DESTINATION, 4)
    program.store(R10, key, R3, 4)
    for place, size in ((0, 2), (2, 8), (10, 2)):
        program.load(R3, R9, place, size)
        program.store(R10, value + WAY_MACS + place, R3, size)
    program.call(KTIME)
    program.store(R10, value + WAY_TIME, R0, 8)
    program.map(R1, maps.ways)
    program.mov(R2, R10)
    program.alu_imm("add", R2, key)
    program.mov(R3, R10)
    program.alu_imm("add", R3, value)
    program.mov_imm(R4, UPDATE_ANY)
    program.call(MAP_UPDATE)
