"""What applications print: one file each, cut when it is long, with one older part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pileus.node.applications.kept import put

LOG_BYTES_MAX = 1 << 20
"""Of the newer part; the older one is as long at most. What is printed within the second until the next look comes on top."""

TOLD_BYTES_MAX = 32 << 10
LINES_MAX = 1000


def cut(log: Path, limit: int = LOG_BYTES_MAX) -> None:
    """Keep the log within its limit. Its writer appends, and goes on at the new end."""
    if not log.exists() or log.stat().st_size <= limit:
        return
    # A disk that is full keeps no older part.
    with contextlib.suppress(OSError):
        put(log.with_name(f"{log.name}.1"), _end(log, limit), 0o600)
    os.truncate(log, 0)


def tail(log: Path, lines: int) -> str:
    """Return the last lines, over both parts, at most 32 KiB of them."""
    text = b"".join(_end(file, TOLD_BYTES_MAX) for file in (log.with_name(f"{log.name}.1"), log))
    found = text[-TOLD_BYTES_MAX:].decode(errors="replace").splitlines(keepends=True)
    return "".join(found[-lines:])


def _end(file: Path, length: int) -> bytes:
    try:
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - length))
            return text.read(length)
    except FileNotFoundError:
        return b""
