"""Reads the few facts of ELF files that a build needs: the libraries of a program, what a kernel module needs."""

from __future__ import annotations

import re
import struct

from pileus.image.types import BuildError

_DYNAMIC, _LOAD = 2, 1
_NEEDED, _STRTAB = 1, 5


def needed_libraries(binary: bytes) -> list[str]:
    """Return the sonames that a 64-bit little-endian program or library asks the dynamic linker for.

    Raises: BuildError (BadPackage). Source: elf(5): DT_NEEDED, DT_STRTAB.
    """
    if binary[:6] != b"\x7fELF\x02\x01":
        raise BuildError("BadPackage", "a program in a package is not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", binary, table + n * size) for n in range(count)]
    loads = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in segments if kind == _LOAD]
    names: list[int] = []
    strings = 0
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<QQ", binary[offset : offset + length]))
            names = [value for tag, value in entries if tag == _NEEDED]
            strings = next((value for tag, value in entries if tag == _STRTAB), 0)
    spans = [(address, offset) for address, offset, length in loads if 0 <= strings - address < length]
    start = strings + next((offset - address for address, offset in spans), 0)
    return [_text(binary, start + name) for name in names]


def loaded_part(binary: bytes) -> bytes:
    """Return a program or library without what the dynamic linker never reads: symbols for debuggers, its sections.

    Source: elf(5): the program headers say all that is loaded; e_shoff, e_shnum and e_shstrndx may be 0.
    """
    (table,) = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    segments = [struct.unpack_from("<IIQQQQ", binary, table + n * size) for n in range(count)]
    kept = bytearray(binary[: max(offset + length for _, _, offset, _, _, length in segments)])
    struct.pack_into("<Q", kept, 40, 0)
    struct.pack_into("<HH", kept, 60, 0, 0)
    return bytes(kept)


def module_facts(module: bytes, key: str) -> list[str]:
    """Return the values of ``key`` (``depends``, ``alias``) in the .modinfo section of a kernel module."""
    found = re.findall(rb"\0" + key.encode() + rb"=([^\0]*)(?=\0)", module)
    return [value.decode() for value in found]


def _text(binary: bytes, start: int) -> str:
    return binary[start : binary.index(b"\0", start)].decode()
