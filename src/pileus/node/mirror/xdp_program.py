"""The XDP program of a decapsulator, instruction by instruction, and the layout of its maps.

Frames of Pileus's own sessions are recognised by a handful of comparisons; whatever fails one of them is looked at again, field
by field, for its reason or as a frame of a foreign session. Raw numbers are written as a little-endian machine reads them.

R6: context, R7: the session's key in network order, R8: where its frames go, then its entry, R9: start of the frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Program
from pileus.node.ebpf.kernel import XDP_DROP, XDP_PASS, XDP_REDIRECT
from pileus.node.mirror import wire

ENTRY = struct.Struct("=QQ8s3QIIQ")
"""Of a session on one CPU, a cache line. Written by Python: a word (6 bits where it goes, 58 bits key; in network order, so
that one load has both), source. By the program: counts' key (6 bits set), received, bytes, highest, first, failed, truncated.

A CPU that finds another key's counts starts them anew itself; so nobody's packets are counted for the next one of the slot."""

GROUP = struct.Struct("=4sI")
"""Foreign sessions of one source and type; its value is the group's number. In ``foreign`` a group has a word for each session
ID: the key in network order. It counts only if the session with this key has the same source, for numbers are used again."""

_GROUP_BITS = 10
GROUP_SESSIONS = 1 << _GROUP_BITS

TO_MASK = 0xFC
TO_STORE, TO_SNIFFERS = 1, 2
_KEY_ONLY = ~TO_MASK
_OWN_LEG = wire.FIRST_LEG << 2

_LOOKUP, _CPU, _ADJUST_HEAD, _REDIRECT, _ADJUST_TAIL = 1, 8, 44, 51, 65
_END_AT = 4
"""Of ``struct xdp_md``: where the frame ends."""

_PLACE_AT, _GROUP_AT = -4, -16
_WORD, _SOURCE, _OWNER, _RECEIVED, _BYTES, _HIGHEST = range(0, 48, 8)
_FIRST, _FAILED, _TRUNCATED = 48, 52, 56
_LABEL_RAW = 0xB688
_OVERHEAD = {"own": 62, "III": 54, "II": 50}


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """File descriptors, and how many ``slots`` there are. ``entries``: by CPU and slot; ``groups``: by GROUP; ``foreign``: by
    group's number and session ID; ``refused``: by place in REASONS."""

    slots: int
    entries: int
    groups: int
    foreign: int
    refused: int
    sniffers: int


def diode() -> bytes:
    """Return the program of the sniffers' NIC: nothing comes in."""
    program = Program()
    program.mov_imm(R0, XDP_DROP)
    program.exit()
    return program.code()


def decapsulator(maps: Maps) -> bytes:
    """Return the program of the tunnel's NIC."""
    program = Program()
    _recognise(program)
    program.label("own")
    _find_own(program, maps)
    _count_and_forward(program, maps, "own")
    program.label("look")
    _look_at_ipv4(program)
    _look_at_gre(program)
    for kind, erspan in (("III", 3), ("II", 2)):
        program.label(kind)
        _find_foreign(program, maps, erspan)
        _count_and_forward(program, maps, kind)
    _endings(program, maps)
    return program.code()


def _recognise(program: Program) -> None:
    """Go on if this is a whole frame of an own session, without padding; else to ``look``."""
    program.mov(R6, R1)
    program.load(R9, R6, 0, 4)
    program.load(R3, R6, _END_AT, 4)
    _need(program, wire.OVERHEAD_BYTES + wire.FRAME_BYTES_MIN, "look")
    for offset, mask, wanted in (
        (12, 0x00FFFFFF, 0x00450008),  # IPv4, version 4, a header of 20 bytes
        (20, 0xFF00FF3F, 0x2F000000),  # no fragment; GRE
        (34, 0xFFFFFFFF, 0xEB220010),  # a sequence number and nothing else; ERSPAN type III
    ):
        program.load(R5, R9, offset, 4)
        if mask != 0xFFFFFFFF:
            program.alu32_imm("and", R5, mask)
        program.jump32_imm("ne", R5, wanted, "look")
    for offset, mask, wanted in ((42, 0xF0, 0x20), (53, 1, 1)):  # version 2; with a sub-header
        program.load(R5, R9, offset, 1)
        program.alu_imm("and", R5, mask)
        program.jump_imm("ne", R5, wanted, "look")
    _load_ends(program)
    program.jump("ne", R5, R4, "look")


def _find_own(program: Program, maps: Maps) -> None:
    program.load(R7, R9, 54, 8)
    program.mov(R5, R7)
    program.alu_imm("and", R5, TO_MASK)
    program.jump_imm("ne", R5, _OWN_LEG, "wrong-leg")
    program.alu_imm("and", R7, _KEY_ONLY)
    _find_entry(program, maps)


def _find_foreign(program: Program, maps: Maps, erspan: int) -> None:
    program.load(R5, R9, 26, 4)
    program.store(R10, _GROUP_AT, R5, 4)
    program.store_imm(R10, _GROUP_AT + 4, erspan, 4)
    _lookup(program, maps.groups, _GROUP_AT, "unknown-session")
    program.load(R4, R0, 0, 4)
    program.alu_imm("lsh", R4, _GROUP_BITS)
    program.load(R5, R9, 44, 2)
    program.swap(R5, 16)
    program.alu_imm("and", R5, GROUP_SESSIONS - 1)
    program.alu("add", R4, R5)
    program.store(R10, _PLACE_AT, R4, 4)
    _lookup(program, maps.foreign, _PLACE_AT, "unknown-session")
    program.load(R7, R0, 0, 8)
    _find_entry(program, maps)


def _find_entry(program: Program, maps: Maps) -> None:
    """Go on if the slot that the key says is of this key and source; R0: its entry, R8: where its frames go."""
    program.call(_CPU)
    program.mov(R5, R7)
    program.alu_imm("rsh", R5, 48)
    program.swap(R5, 16)
    program.jump_imm("ge", R5, maps.slots, "unknown-session")
    program.alu_imm("mul", R0, maps.slots)
    program.alu("add", R0, R5)
    program.store(R10, _PLACE_AT, R0, 4)
    _lookup(program, maps.entries, _PLACE_AT, "unknown-session")
    # The word first: whoever writes an entry writes it last.
    program.load(R8, R0, _WORD, 8)
    program.load(R4, R0, _SOURCE, 4)
    program.mov(R1, R8)
    program.alu_imm("and", R1, _KEY_ONLY)
    program.jump("ne", R1, R7, "unknown-session")
    program.alu_imm("and", R8, TO_MASK)
    program.jump_imm("eq", R8, 0, "unknown-session")
    program.load(R5, R9, 26, 4)
    program.jump("ne", R4, R5, "unknown-session")


def _count_and_forward(program: Program, maps: Maps, kind: str) -> None:
    overhead = _OVERHEAD[kind]
    program.load(R4, R9, 38, 4)
    program.swap(R4, 32)
    program.mov(R1, R7)
    program.alu_imm("or", R1, TO_MASK)
    program.load(R2, R0, _OWNER, 8)
    program.jump("eq", R1, R2, f"{kind} known")
    _start_counts(program)
    program.label(f"{kind} known")
    _add(program, R0, _RECEIVED)
    program.load(R3, R6, _END_AT, 4)
    program.alu("sub", R3, R9)
    program.alu_imm("sub", R3, overhead)
    program.load(R1, R0, _BYTES, 8)
    program.alu("add", R1, R3)
    program.store(R0, _BYTES, R1, 8)
    program.load(R1, R0, _HIGHEST, 8)
    program.alu32("sub", R4, R1)
    program.jump32_imm("sle", R4, 0, f"{kind} late")
    program.alu("add", R1, R4)
    program.store(R0, _HIGHEST, R1, 8)
    program.label(f"{kind} late")
    program.load(R3, R9, 44, 1)
    program.alu_imm("and", R3, 4)
    program.jump_imm("eq", R3, 0, f"{kind} whole")
    _add(program, R0, _TRUNCATED)
    program.label(f"{kind} whole")
    _forward(program, maps, overhead)


def _start_counts(program: Program) -> None:
    """The key last: who reads between sees the old one's."""
    for offset in (_RECEIVED, _BYTES, _TRUNCATED):
        program.store_imm(R0, offset, 0, 8)
    program.store_imm(R0, _FAILED, 0, 4)
    program.store(R0, _HIGHEST, R4, 8)
    program.store(R0, _FIRST, R4, 4)
    program.store(R0, _OWNER, R1, 8)


def _forward(program: Program, maps: Maps, overhead: int) -> None:
    program.jump_imm("eq", R8, TO_STORE << 2, "keep")
    program.mov(R8, R0)
    program.store(R9, overhead - 14, R7, 8)
    program.store_imm(R9, overhead - 6, 0, 4)
    program.store_imm(R9, overhead - 2, _LABEL_RAW, 2)
    program.mov(R1, R6)
    program.mov_imm(R2, overhead - wire.LABEL_BYTES)
    program.call(_ADJUST_HEAD)
    program.jump_imm("ne", R0, 0, "failed")
    program.map(R1, maps.sniffers)
    program.mov_imm(R2, 0)
    program.mov_imm(R3, XDP_DROP)
    program.call(_REDIRECT)
    program.jump_imm("ne", R0, XDP_REDIRECT, "failed")
    program.exit()


def _look_at_ipv4(program: Program) -> None:
    _need(program, 34, "short")
    program.load(R5, R9, 12, 2)
    program.jump_imm("ne", R5, 0x0008, "not-ipv4")
    program.load(R5, R9, 14, 1)
    program.mov(R4, R5)
    program.alu_imm("and", R4, 0xF0)
    program.jump_imm("ne", R4, 0x40, "not-ipv4")
    program.jump_imm("ne", R5, 0x45, "options")
    program.load(R5, R9, 20, 2)
    program.alu_imm("and", R5, 0xFF3F)
    program.jump_imm("ne", R5, 0, "fragment")
    program.load(R5, R9, 23, 1)
    program.jump_imm("ne", R5, wire.GRE_PROTOCOL, "not-gre")
    _load_ends(program)
    program.jump_imm("lt", R5, 50, "short")
    program.jump("gt", R5, R4, "short")
    program.jump("eq", R5, R4, "exact")
    program.alu("sub", R5, R4)
    program.mov(R1, R6)
    program.mov(R2, R5)
    program.call(_ADJUST_TAIL)
    program.jump_imm("ne", R0, 0, "short")
    program.load(R9, R6, 0, 4)
    program.load(R3, R6, _END_AT, 4)
    program.label("exact")


def _look_at_gre(program: Program) -> None:
    _need(program, 50, "short")
    program.load(R5, R9, 34, 2)
    program.jump_imm("ne", R5, 0x0010, "bad-gre")
    program.load(R4, R9, 42, 1)
    program.alu_imm("rsh", R4, 4)
    program.load(R5, R9, 36, 2)
    program.jump_imm("eq", R5, 0xBE88, "type II")
    program.jump_imm("ne", R5, 0xEB22, "bad-gre")
    program.jump_imm("ne", R4, 2, "bad-version")
    _need(program, _OVERHEAD["III"] + wire.FRAME_BYTES_MIN, "short")
    program.load(R5, R9, 53, 1)
    program.alu_imm("and", R5, 1)
    program.jump_imm("eq", R5, 0, "III")
    _need(program, _OVERHEAD["own"] + wire.FRAME_BYTES_MIN, "short")
    program.goto("own")
    program.label("type II")
    program.jump_imm("ne", R4, 1, "bad-version")
    _need(program, _OVERHEAD["II"] + wire.FRAME_BYTES_MIN, "short")
    program.goto("II")


def _endings(program: Program, maps: Maps) -> None:
    program.label("keep")
    program.store_imm(R9, 12, _LABEL_RAW, 2)
    program.mov_imm(R0, XDP_PASS)
    program.exit()
    program.label("failed")
    program.load(R1, R8, _FAILED, 4)
    program.alu_imm("add", R1, 1)
    program.store(R8, _FAILED, R1, 4)
    program.goto("drop")
    for number, reason in enumerate(wire.REASONS):
        program.label(reason)
        program.store_imm(R10, _PLACE_AT, number, 4)
        program.goto("refuse")
    program.label("refuse")
    _lookup(program, maps.refused, _PLACE_AT, "drop")
    _add(program, R0, 0)
    program.label("drop")
    program.mov_imm(R0, XDP_DROP)
    program.exit()


def _need(program: Program, length: int, otherwise: str) -> None:
    """Go on if the frame has that many bytes (R3: its end)."""
    program.mov(R4, R9)
    program.alu_imm("add", R4, length)
    program.jump("gt", R4, R3, otherwise)


def _load_ends(program: Program) -> None:
    """R5: where the IPv4 header says that the frame ends; R4: where it does (R3: its end)."""
    program.load(R5, R9, 16, 2)
    program.swap(R5, 16)
    program.alu_imm("add", R5, 14)
    program.mov(R4, R3)
    program.alu("sub", R4, R9)


def _lookup(program: Program, table: int, key_at: int, otherwise: str) -> None:
    """R0: the value of the key on the stack."""
    program.mov(R2, R10)
    program.alu_imm("add", R2, key_at)
    program.map(R1, table)
    program.call(_LOOKUP)
    program.jump_imm("eq", R0, 0, otherwise)


def _add(program: Program, counts: int, offset: int) -> None:
    """Count one; nobody else does on this CPU."""
    program.load(R1, counts, offset, 8)
    program.alu_imm("add", R1, 1)
    program.store(counts, offset, R1, 8)
