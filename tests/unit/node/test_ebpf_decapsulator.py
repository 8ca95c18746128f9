"""The decapsulator's program as it is assembled; what it does is tested where a kernel takes it."""

from __future__ import annotations

import struct
from dataclasses import replace

from pileus.node.ebpf.kernel import XDP_DROP
from pileus.node.mirror import KEY_BITS, xdp_program
from pileus.node.mirror.xdp_program import Maps

MAPS = Maps(slots=1024, entries=11, groups=12, foreign=13, refused=14, sniffers=15)
LOAD_MAP = 0x18


def _instructions(code: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<BBhi", code))


def test_the_program_is_whole_and_small() -> None:
    found = _instructions(xdp_program.decapsulator(MAPS))
    assert len(found) < 512
    used = {imm for code, registers, _, imm in found if code == LOAD_MAP and registers >> 4 == 1}
    assert used == {11, 12, 13, 14, 15}


def test_the_program_differs_by_the_number_of_slots_alone() -> None:
    few, many = (_instructions(xdp_program.decapsulator(replace(MAPS, slots=slots))) for slots in (1024, 16_384))
    assert {(one[3], other[3]) for one, other in zip(few, many, strict=True) if one != other} == {(1024, 16_384)}


def test_the_diode_drops_all() -> None:
    assert xdp_program.diode() == struct.pack("<BBhiBBhi", 0xB7, 0, 0, XDP_DROP, 0x95, 0, 0, 0)


def test_an_entry_is_a_cache_line_and_a_group_a_key_of_eight_bytes() -> None:
    assert (xdp_program.ENTRY.size, xdp_program.GROUP.size) == (64, 8)
    assert xdp_program.GROUP_SESSIONS == 1 << 10
    assert KEY_BITS + 6 == 64
