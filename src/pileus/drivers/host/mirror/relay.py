"""The XDP program on the tap of a decapsulator's second NIC: what it gives back goes out on its second leg.

The label says the session and nothing else; where its frames go the host knows. R6 is the context, R7 the frame's length, R8
the value of the label, R9 the packet.
"""

from __future__ import annotations

from pileus.drivers.host.mirror.layout import (
    ADJUST_HEAD,
    ADJUST_TAIL,
    ETHERTYPE,
    FLAGS,
    IP_CHECKSUM,
    IP_LENGTH,
    KTIME,
    OUT_CHECKSUM,
    OUT_DEVICE,
    OUT_HEADER,
    OUT_LONGEST,
    OUT_SLOT,
    REDIRECT,
    RELAYED,
    SEQUENCE,
    TIMESTAMP,
    TRUNCATED_BIT,
    XDP_END,
    XDP_INGRESS,
    XDP_START,
    Maps,
    count_refusal,
    fold_checksum,
    increase,
    look_up,
    network16,
)
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R6, R7, R8, R9, R10, Program
from pileus.node.ebpf.kernel import XDP_DROP, XDP_PASS
from pileus.node.mirror.wire import ETHERTYPE_LABEL, FRAME_BYTES_MIN, LABEL_BYTES, OVERHEAD_BYTES

ETHERTYPE_CONTROL = 0x88B5
"""Of the switch's control path, which goes on as it came."""

KEY, CUT = -8, -16


def relay(copies: int, maps: Maps) -> bytes:
    """Return the program; it is the same on every such tap, and ``copies`` is where the bus begins."""
    program = Program()
    program.mov(R6, R1)
    _read_label(program)
    look_up(program, maps.labels, KEY, otherwise="unknown-label")
    program.mov(R8, R0)
    # Two decapsulators of one host must not speak for each other.
    program.load(R1, R8, OUT_DEVICE, 4)
    program.load(R2, R6, XDP_INGRESS, 4)
    program.jump32("ne", R1, R2, "unknown-label")
    _cut(program)
    _make_room(program)
    _write_header(program)
    _number(program, maps)
    program.mov_imm(R1, copies)
    program.mov_imm(R2, 0)
    program.call(REDIRECT)
    program.exit()
    count_refusal(program, maps, "unknown-label", go_to="drop")
    for label, verdict in (("drop", XDP_DROP), ("pass", XDP_PASS)):
        program.label(label)
        program.mov_imm(R0, verdict)
        program.exit()
    return program.code()


def _packet(program: Program, least: int, *, otherwise: str) -> None:
    """Let R9 be the packet and R2 its end; go elsewhere when it is shorter than ``least``."""
    program.load(R9, R6, XDP_START, 4)
    program.load(R2, R6, XDP_END, 4)
    program.mov(R1, R9)
    program.alu_imm("add", R1, least)
    program.jump("gt", R1, R2, otherwise)


def _read_label(program: Program) -> None:
    _packet(program, LABEL_BYTES + FRAME_BYTES_MIN, otherwise="unknown-label")
    program.load(R1, R9, ETHERTYPE, 2)
    program.jump_imm("eq", R1, network16(ETHERTYPE_CONTROL), "pass")
    program.jump_imm("ne", R1, network16(ETHERTYPE_LABEL), "unknown-label")
    program.load(R1, R9, 8, 4)
    program.jump_imm("ne", R1, 0, "unknown-label")
    program.load(R1, R9, 0, 8)
    program.store(R10, KEY, R1, 8)
    program.mov(R7, R2)
    program.alu("sub", R7, R9)
    program.alu_imm("sub", R7, LABEL_BYTES)


def _cut(program: Program) -> None:
    program.store_imm(R10, CUT, 0, 4)
    program.load(R2, R8, OUT_LONGEST, 4)
    program.jump("le", R7, R2, "whole")
    program.mov(R1, R6)
    program.mov(R3, R2)
    program.alu("sub", R2, R7)
    program.mov(R7, R3)
    program.call(ADJUST_TAIL)
    program.jump_imm("ne", R0, 0, "drop")
    program.store_imm(R10, CUT, TRUNCATED_BIT, 4)
    program.label("whole")


def _make_room(program: Program) -> None:
    program.mov(R1, R6)
    program.mov_imm(R2, LABEL_BYTES - OVERHEAD_BYTES)
    program.call(ADJUST_HEAD)
    program.jump_imm("ne", R0, 0, "drop")
    _packet(program, OVERHEAD_BYTES, otherwise="drop")


def _write_header(program: Program) -> None:
    for place, size in ((0, 2), *((at, 8) for at in range(2, 58, 8)), (58, 4)):
        program.load(R1, R8, OUT_HEADER + place, size)
        program.store(R9, place, R1, size)
    program.alu_imm("add", R7, OVERHEAD_BYTES - LABEL_BYTES)
    program.load(R3, R8, OUT_CHECKSUM, 4)
    program.alu("add", R3, R7)
    program.swap(R7, 16)
    program.store(R9, IP_LENGTH, R7, 2)
    fold_checksum(program, R3)
    program.store(R9, IP_CHECKSUM, R3, 2)
    program.load(R1, R9, FLAGS, 1)
    program.load(R2, R10, CUT, 4)
    program.alu("or", R1, R2)
    program.store(R9, FLAGS, R1, 1)
    program.call(KTIME)
    program.alu_imm("div", R0, 100)
    program.swap(R0, 32)
    program.store(R9, TIMESTAMP, R0, 4)


def _number(program: Program, maps: Maps) -> None:
    """Give the frame its number on this leg, and count it."""
    program.load(R1, R8, OUT_SLOT, 4)
    program.store(R10, KEY, R1, 4)
    look_up(program, maps.sequences, KEY, otherwise="drop")
    program.mov_imm(R1, 1)
    program.fetch_add(R0, 0, R1, 8)
    program.swap(R1, 32)
    program.store(R9, SEQUENCE, R1, 4)
    look_up(program, maps.counts, KEY, otherwise="drop")
    increase(program, R0, RELAYED)
