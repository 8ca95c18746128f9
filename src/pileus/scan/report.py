"""What a scan says. It is ``clean`` only when everything was looked at; whatever ends a scan early makes it ``unknown``.

Texts of a report come from what was scanned (names of files) or from its owner (names of rules), and are untrusted:
``printable`` makes them harmless to look at.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

State = Literal["clean", "found", "unknown"]

FINDINGS_MAX = 1000
"""Findings that a report keeps; the rest is counted."""

PARTS_MAX = 256
TEXT_LENGTH_MAX = 1024


class Finding(Struct, frozen=True, kw_only=True):
    """One place where one rule matched. Offsets and lengths in bytes; ``offset`` from the start of what ``where`` names.

    ``path``: of the file, from the root of its file system. ``partition``: its number, 0 for a disk without partitions.
    """

    rule: str
    where: Literal["disk", "file", "stream"]
    pattern: str = ""
    offset: int = 0
    length: int = 0
    path: str = ""
    partition: int = 0


class Part(Struct, frozen=True, kw_only=True):
    """A part of a disk, and whether its files were looked at one by one; its bytes were in any case.

    ``content``: ext4, or what else begins there as far as that is known. ``files``: how many were read.
    """

    partition: int
    start_bytes: int
    size_bytes: int
    content: str
    read: Literal["files", "bytes"]
    files: int = 0


class Report(Struct, frozen=True, kw_only=True):
    """What is known after a scan. With ``reason`` (CamelCase) it did not come to its end, and ``message`` says why.

    What was found before that counts: such a report is ``found``, and still has its reason.
    """

    findings: tuple[Finding, ...] = ()
    left_out: int = 0
    """Findings beyond ``FINDINGS_MAX``."""
    parts: tuple[Part, ...] = ()
    size_bytes: int = 0
    scanned_bytes: int = 0
    files: int = 0
    reason: str = ""
    message: str = ""

    @property
    def state(self) -> State:
        """What to think of it."""
        if self.findings:
            return "found"
        return "unknown" if self.reason else "clean"


def printable(text: str) -> str:
    """Return the text with everything escaped that a terminal or a log could take for more than text, cut to length."""
    return "".join(mark if mark.isprintable() else _escaped(ord(mark)) for mark in text[:TEXT_LENGTH_MAX])


def _escaped(code: int) -> str:
    """Return the mark as Python writes it. No codec does that here: where there are no files none can be loaded."""
    if code < 0x100:
        return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"
