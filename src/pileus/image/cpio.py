"""Writes a tree as an initial RAM file system of Linux: the "newc" cpio format."""

from __future__ import annotations

from collections.abc import Iterable

from pileus.image.tools import EPOCH_S
from pileus.image.tree import Entry

_TYPE_BITS = {"folder": 0o040000, "file": 0o100000, "link": 0o120000}


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return the archive; the same entries give the same bytes.

    Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    out = bytearray()
    for number, entry in enumerate(entries, start=1):
        _append(out, number, entry.path, _TYPE_BITS[entry.kind] | entry.mode, entry.content)
    _append(out, 0, "TRAILER!!!", 0, b"")
    return bytes(out)


def _append(out: bytearray, number: int, path: str, mode: int, content: bytes) -> None:
    name = path.encode() + b"\0"
    links, mtime = 1, EPOCH_S if number else 0
    fields = (number, mode, 0, 0, links, mtime, len(content), 0, 0, 0, 0, len(name), 0)
    out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += content
    out += bytes(-len(out) % 4)
