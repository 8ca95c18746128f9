"""Every instruction against its bytes, written by hand after RFC 9669; and what cannot be an instruction."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R6, R9, R10, BadProgram, Program

EXIT = "9500000000000000"
INSTRUCTIONS: list[tuple[str, Callable[[Program], None]]] = [
    ("bf16000000000000", lambda p: p.mov(R6, R1)),
    ("b700000002000000", lambda p: p.mov_imm(R0, 2)),
    ("b7000000ffffffff", lambda p: p.mov_imm(R0, -1)),
    ("b4030000ffffffff", lambda p: p.mov_imm(R3, 0xFFFFFFFF)),
    ("18020000efcdab890000000067452301", lambda p: p.load_imm64(R2, 0x0123456789ABCDEF)),
    ("18020000feffffff00000000ffffffff", lambda p: p.load_imm64(R2, -2)),
    ("18110000070000000000000000000000", lambda p: p.map(R1, 7)),
    ("6169040000000000", lambda p: p.load(R9, R6, 4, 4)),
    ("69450c0000000000", lambda p: p.load(5, R4, 12, 2)),
    ("7145ffff00000000", lambda p: p.load(5, R4, -1, 1)),
    ("7942080000000000", lambda p: p.load(R2, R4, 8, 8)),
    ("631afcff00000000", lambda p: p.store(R10, -4, R1, 4)),
    ("6b1afcff00000000", lambda p: p.store(R10, -4, R1, 2)),
    ("731afcff00000000", lambda p: p.store(R10, -4, R1, 1)),
    ("7b1af8ff00000000", lambda p: p.store(R10, -8, R1, 8)),
    ("620afcff07000000", lambda p: p.store_imm(R10, -4, 7, 4)),
    ("620afcffffffffff", lambda p: p.store_imm(R10, -4, 0xFFFFFFFF, 4)),
    ("6a0afcffb6880000", lambda p: p.store_imm(R10, -4, 0x88B6, 2)),
    ("7a0af8ff00000000", lambda p: p.store_imm(R10, -8, 0, 8)),
    ("0f21000000000000", lambda p: p.alu("add", R1, R2)),
    ("1701000040000000", lambda p: p.alu_imm("sub", R1, 64)),
    ("57010000ff030000", lambda p: p.alu_imm("and", R1, 0x3FF)),
    ("6701000020000000", lambda p: p.alu_imm("lsh", R1, 32)),
    ("c701000020000000", lambda p: p.alu_imm("arsh", R1, 32)),
    ("5c21000000000000", lambda p: p.alu32("and", R1, R2)),
    ("5401000000ffffff", lambda p: p.alu32_imm("and", R1, 0xFFFFFF00)),
    ("940100000a000000", lambda p: p.alu32_imm("mod", R1, 10)),
    ("dc01000010000000", lambda p: p.swap(R1, 16)),
    ("dc01000040000000", lambda p: p.swap(R1, 64)),
    ("8500000033000000", lambda p: p.call(51)),
    ("db21080000000000", lambda p: p.atomic_add(R1, 8, R2, 8)),
    ("c321040001000000", lambda p: p.fetch_add(R1, 4, R2, 4)),
    ("db210000f1000000", lambda p: p.compare_exchange(R1, 0, R2, 8)),
    (EXIT, lambda p: p.exit()),
]
JUMPS: list[tuple[str, Callable[[Program], None]]] = [
    ("2d34010000000000", lambda p: p.jump("gt", R4, R3, "end")),
    ("1505010008000000", lambda p: p.jump_imm("eq", 5, 8, "end")),
    ("55050100ffffffff", lambda p: p.jump_imm("ne", 5, -1, "end")),
    ("4505010008000000", lambda p: p.jump_imm("set", 5, 8, "end")),
    ("c505010000000000", lambda p: p.jump_imm("slt", 5, 0, "end")),
    ("5e21010000000000", lambda p: p.jump32("ne", R1, R2, "end")),
    ("56050100100022eb", lambda p: p.jump32_imm("ne", 5, 0xEB220010, "end")),
    ("0500010000000000", lambda p: p.goto("end")),
]


@pytest.mark.parametrize(("expected", "make"), INSTRUCTIONS, ids=[each[0] for each in INSTRUCTIONS])
def test_an_instruction_has_these_bytes(expected: str, make: Callable[[Program], None]) -> None:
    program = Program()
    make(program)
    assert program.code() == bytes.fromhex(expected)


@pytest.mark.parametrize(("expected", "make"), JUMPS, ids=[each[0] for each in JUMPS])
def test_a_jump_skips_to_its_label(expected: str, make: Callable[[Program], None]) -> None:
    program = Program()
    make(program)
    program.mov_imm(R0, 2)
    program.label("end")
    program.exit()
    assert program.code()[:8] == bytes.fromhex(expected)


def test_a_jump_may_lead_back() -> None:
    program = Program()
    program.label("again")
    program.alu_imm("sub", R1, 1)
    program.jump_imm("ne", R1, 0, "again")
    assert program.code()[8:] == bytes.fromhex("5501feff00000000")


def _end_behind_the_end(program: Program) -> None:
    program.goto("end")
    program.label("end")


def _two_labels(program: Program) -> None:
    program.label("a")
    program.label("a")


BAD: list[tuple[str, Callable[[Program], None]]] = [
    ("there is no label nowhere", lambda p: p.goto("nowhere")),
    ("no instruction follows label end", _end_behind_the_end),
    ("label a is there twice", _two_labels),
    ("not 3", lambda p: p.load(R1, R2, 0, 3)),
    ("2 bytes cannot be changed at once", lambda p: p.atomic_add(R1, 0, R2, 2)),
    ("the offset is too far away: 32768", lambda p: p.load(R1, R2, 32768, 4)),
    ("there is no register 11", lambda p: p.mov(11, R1)),
    ("there is no neg", lambda p: p.alu("neg", R1, R2)),
    ("there is no le_", lambda p: p.jump("le_", R1, R2, "x")),
    ("add: 0x80000000 does not fit", lambda p: p.alu_imm("add", R1, 1 << 31)),
    ("eq: 0xffffffff does not fit", lambda p: p.jump_imm("eq", R1, 0xFFFFFFFF, "x")),
    ("does not fit into 32 bits", lambda p: p.alu32_imm("and", R1, 1 << 32)),
    ("does not fit into 64 bits", lambda p: p.load_imm64(R1, 1 << 64)),
    ("cannot be stored in 2 bytes", lambda p: p.store_imm(R10, -2, 0x10000, 2)),
    ("cannot be stored in 8 bytes", lambda p: p.store_imm(R10, -8, 0x80000000, 8)),
    ("div by 0", lambda p: p.alu_imm("div", R1, 0)),
    ("lsh by 32 of 32 bits", lambda p: p.alu32_imm("lsh", R1, 32)),
    ("24 bits cannot be swapped", lambda p: p.swap(R1, 24)),
    ("-1 is no file descriptor", lambda p: p.map(R1, -1)),
]


@pytest.mark.parametrize(("words", "make"), BAD, ids=[each[0] for each in BAD])
def test_what_cannot_be_an_instruction_is_refused_with_words(words: str, make: Callable[[Program], None]) -> None:
    program = Program()
    with pytest.raises(BadProgram, match=words):
        _code_of(program, make)


def test_a_label_that_is_too_far_away_is_refused() -> None:
    program = Program()
    program.goto("end")
    for _ in range(1 << 15):
        program.mov_imm(R0, 0)
    program.label("end")
    program.exit()
    with pytest.raises(BadProgram, match="label end is too far away: 32768"):
        program.code()


def _code_of(program: Program, make: Callable[[Program], None]) -> bytes:
    make(program)
    return program.code()
