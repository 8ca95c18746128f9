"""eBPF instructions from method calls. Pure: knows neither the kernel nor any program.

Sizes are in bytes (1, 2, 4, 8), offsets in bytes from a register. Source: RFC 9669.
"""

from __future__ import annotations

import struct

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
"""R0: result; R1-R5: arguments, lost by a call; R6-R9: kept over calls; R10: top of the stack of 512 bytes, never written."""

_INSTRUCTION = struct.Struct("<BBhi")
_SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_LOAD, _STORE_IMM, _STORE, _ATOMIC = 0x61, 0x62, 0x63, 0xC3
_ALU32, _JUMP64, _JUMP32, _ALU64 = 0x04, 0x05, 0x06, 0x07
_FROM_REGISTER = 0x08
_TO_BIG_ENDIAN, _LOAD_64, _CALL, _EXIT = 0xDC, 0x18, 0x85, 0x95
_MAP_BY_FD = 1
_FETCH, _COMPARE_EXCHANGE = 0x01, 0xF1
_ALU = {
    "add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "or": 0x40, "and": 0x50, "lsh": 0x60, "rsh": 0x70, "mod": 0x90,
    "xor": 0xA0, "mov": 0xB0, "arsh": 0xC0,
}  # fmt: skip
_JUMPS = {
    "eq": 0x10, "gt": 0x20, "ge": 0x30, "set": 0x40, "ne": 0x50, "sgt": 0x60, "sge": 0x70, "lt": 0xA0, "le": 0xB0, "slt": 0xC0,
    "sle": 0xD0,
}  # fmt: skip
_INSTRUCTIONS_MAX = 1_000_000


class BadProgram(ValueError):
    """What was asked for cannot be an instruction, or a jump leads nowhere."""


class Program:
    """A program in the making. ``s``-jumps compare signed numbers; ``set`` jumps when an ``and`` is not zero."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._instructions)

    def mov(self, dst: int, src_reg: int) -> None:
        """Copy a register, all 64 bits."""
        self.alu("mov", dst, src_reg)

    def mov_imm(self, dst: int, value: int) -> None:
        """Set a register to a number of -2**31 to 2**32 - 1."""
        self._alu_imm(_ALU64 if value < 1 << 31 else _ALU32, "mov", dst, value)

    def load_imm64(self, dst: int, value: int) -> None:
        """Set a register to any number of 64 bits."""
        if not -(1 << 63) <= value < 1 << 64:
            raise BadProgram(f"{value:#x} does not fit into 64 bits")
        value &= (1 << 64) - 1
        self._wide(dst, 0, value)

    def map(self, dst: int, fd: int) -> None:
        """Set a register to the map with this file descriptor, as helpers want it."""
        if fd < 0:
            raise BadProgram(f"{fd} is no file descriptor of a map")
        self._wide(dst, _MAP_BY_FD, fd)

    def load(self, dst: int, src: int, offset: int, size: int) -> None:
        """Read memory into a register; the bits above become 0."""
        self._add(_LOAD | _size(size), dst, src, offset, 0)

    def store(self, dst: int, offset: int, src: int, size: int) -> None:
        """Write the low bytes of ``src`` to memory at ``dst``."""
        self._add(_STORE | _size(size), dst, src, offset, 0)

    def store_imm(self, dst: int, offset: int, value: int, size: int) -> None:
        """Write a number to memory; one of 8 bytes must be of -2**31 to 2**31 - 1."""
        code = _STORE_IMM | _size(size)
        bits = min(8 * size, 32)
        if not -(1 << bits - 1) <= value < 1 << (31 if size == 8 else bits):
            raise BadProgram(f"{value:#x} cannot be stored in {size} bytes at once")
        self._add(code, dst, 0, offset, value)

    def alu(self, op: str, dst: int, src_reg: int) -> None:
        """``dst = dst op src``, 64 bits."""
        self._add(_ALU64 | _FROM_REGISTER | _known(_ALU, op), dst, src_reg, 0, 0)

    def alu_imm(self, op: str, dst: int, value: int) -> None:
        """``dst = dst op value``, 64 bits; value of -2**31 to 2**31 - 1."""
        self._alu_imm(_ALU64, op, dst, value)

    def alu32(self, op: str, dst: int, src_reg: int) -> None:
        """``dst = dst op src`` of the low 32 bits; the bits above become 0."""
        self._add(_ALU32 | _FROM_REGISTER | _known(_ALU, op), dst, src_reg, 0, 0)

    def alu32_imm(self, op: str, dst: int, value: int) -> None:
        """``dst = dst op value`` of the low 32 bits; the bits above become 0."""
        self._alu_imm(_ALU32, op, dst, value)

    def swap(self, dst: int, bits: int) -> None:
        """Turn the low 16, 32 or 64 bits between the host's and network order; the bits above become 0."""
        if bits not in (16, 32, 64):
            raise BadProgram(f"{bits} bits cannot be swapped")
        self._add(_TO_BIG_ENDIAN, dst, 0, 0, bits)

    def jump(self, op: str, dst: int, reg: int, label: str) -> None:
        """Go to the label if ``dst op reg``, 64 bits."""
        self._jump(_JUMP64 | _FROM_REGISTER | _known(_JUMPS, op), dst, reg, 0, label)

    def jump_imm(self, op: str, dst: int, value: int, label: str) -> None:
        """Go to the label if ``dst op value``, 64 bits; value of -2**31 to 2**31 - 1."""
        self._jump(_JUMP64 | _known(_JUMPS, op), dst, 0, _signed(value, op), label)

    def jump32(self, op: str, dst: int, reg: int, label: str) -> None:
        """Go to the label if ``dst op reg`` of the low 32 bits."""
        self._jump(_JUMP32 | _FROM_REGISTER | _known(_JUMPS, op), dst, reg, 0, label)

    def jump32_imm(self, op: str, dst: int, value: int, label: str) -> None:
        """Go to the label if ``dst op value`` of the low 32 bits."""
        self._jump(_JUMP32 | _known(_JUMPS, op), dst, 0, _any32(value, op), label)

    def goto(self, label: str) -> None:
        """Go to the label."""
        self._jump(_JUMP64, 0, 0, 0, label)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        if name in self._labels:
            raise BadProgram(f"label {name} is there twice")
        self._labels[name] = len(self._instructions)

    def call(self, function: int) -> None:
        """Call the kernel's helper with this number; the result is in R0, and R1-R5 are lost."""
        self._add(_CALL, 0, 0, 0, function)

    def atomic_add(self, dst: int, offset: int, src: int, size: int) -> None:
        """Add ``src`` to memory, whole; sizes 4 and 8."""
        self._atomic(dst, offset, src, size, _ALU["add"])

    def fetch_add(self, dst: int, offset: int, src: int, size: int) -> None:
        """Add ``src`` to memory, whole; ``src`` becomes what was there before. Sizes 4 and 8."""
        self._atomic(dst, offset, src, size, _ALU["add"] | _FETCH)

    def compare_exchange(self, dst: int, offset: int, src: int, size: int) -> None:
        """Write ``src`` if memory equals R0; R0 becomes what was there before. Sizes 4 and 8."""
        self._atomic(dst, offset, src, size, _COMPARE_EXCHANGE)

    def exit(self) -> None:
        """Return R0."""
        self._add(_EXIT, 0, 0, 0, 0)

    def code(self) -> bytes:
        """Return the program.

        Raises: BadProgram for a jump to a label that is not there, is too far away, or after the last instruction.
        """
        if len(self) > _INSTRUCTIONS_MAX:
            raise BadProgram(f"{len(self)} instructions are more than {_INSTRUCTIONS_MAX}")
        return b"".join(self._encoded(place) for place in range(len(self)))

    def _encoded(self, place: int) -> bytes:
        code, registers, offset, imm = self._instructions[place]
        if place in self._jumps:
            offset = self._distance(place, self._jumps[place])
        return _INSTRUCTION.pack(code, registers, offset, imm - (1 << 32) if imm >= 1 << 31 else imm)

    def _distance(self, place: int, label: str) -> int:
        target = self._labels.get(label)
        if target is None:
            raise BadProgram(f"there is no label {label}")
        if target == len(self):
            raise BadProgram(f"no instruction follows label {label}")
        return _offset(target - place - 1, f"label {label}")

    def _alu_imm(self, kind: int, op: str, dst: int, value: int) -> None:
        code = kind | _known(_ALU, op)
        bits = 64 if kind == _ALU64 else 32
        if op in ("div", "mod") and value == 0:
            raise BadProgram(f"{op} by 0")
        if op in ("lsh", "rsh", "arsh") and not 0 <= value < bits:
            raise BadProgram(f"{op} by {value} of {bits} bits")
        self._add(code, dst, 0, 0, _signed(value, op) if kind == _ALU64 else _any32(value, op))

    def _jump(self, code: int, dst: int, src: int, imm: int, label: str) -> None:
        self._jumps[len(self)] = label
        self._add(code, dst, src, 0, imm)

    def _atomic(self, dst: int, offset: int, src: int, size: int, operation: int) -> None:
        if size not in (4, 8):
            raise BadProgram(f"{size} bytes cannot be changed at once; 4 and 8 can")
        self._add(_ATOMIC | _size(size), dst, src, offset, operation)

    def _wide(self, dst: int, source: int, value: int) -> None:
        """Two instructions that hold the halves of a number."""
        self._add(_LOAD_64, dst, source, 0, value & 0xFFFFFFFF)
        self._add(0, 0, 0, 0, value >> 32)

    def _add(self, code: int, dst: int, src: int, offset: int, imm: int) -> None:
        for register in (dst, src):
            if not R0 <= register <= R10:
                raise BadProgram(f"there is no register {register}")
        self._instructions.append((code, dst | src << 4, _offset(offset, "the offset"), imm))


def _size(size: int) -> int:
    try:
        return _SIZES[size]
    except KeyError:
        raise BadProgram(f"memory is read and written in 1, 2, 4 or 8 bytes, not {size}") from None


def _known(operations: dict[str, int], op: str) -> int:
    try:
        return operations[op]
    except KeyError:
        raise BadProgram(f"there is no {op}; there are {', '.join(operations)}") from None


def _signed(value: int, op: str) -> int:
    # It is extended by its sign: a larger one would silently be another number.
    if not -(1 << 31) <= value < 1 << 31:
        raise BadProgram(f"{op}: {value:#x} does not fit; load it into a register, or use 32 bits")
    return value


def _any32(value: int, op: str) -> int:
    if not -(1 << 31) <= value < 1 << 32:
        raise BadProgram(f"{op}: {value:#x} does not fit into 32 bits")
    return value


def _offset(offset: int, what: str) -> int:
    if not -(1 << 15) <= offset < 1 << 15:
        raise BadProgram(f"{what} is too far away: {offset}")
    return offset
