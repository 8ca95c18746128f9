"""Console logs as files that QEMU appends to: their end over rotations, and rotation in place. Blocking.

What is in a log is the guest's; the files are opened without following links.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def older(log: Path) -> Path:
    """Return where the older part of ``log`` is kept."""
    return log.with_name(log.name + ".1")


def parts(log: Path) -> tuple[Path, ...]:
    """Return every file that rotation may leave beside ``log``."""
    return older(log), _fresh(log)


def tail(log: Path, length: int) -> bytes:
    """Return the last ``length`` bytes of the older part and the log together; empty when there is neither."""
    found = _end(log, length)
    if len(found) < length:
        found = _end(older(log), length - len(found)) + found
    return found


def rotate(log: Path, limit: int) -> None:
    """Move the last ``limit`` bytes of the log to its older part when the log has more than ``limit``.

    QEMU keeps the file open, so it is copied and truncated; what it prints in the microseconds between is lost.
    Without room for a copy the log is truncated all the same.
    """
    try:
        source = os.open(log, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.fstat(source).st_size > limit:
            with contextlib.suppress(OSError):
                _keep_end(source, log, limit)
            os.ftruncate(source, 0)
    finally:
        os.close(source)


def _keep_end(source: int, log: Path, limit: int) -> None:
    fresh = _fresh(log)
    fresh.unlink(missing_ok=True)
    target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        at = os.fstat(source).st_size - limit
        while chunk := os.pread(source, _CHUNK_BYTES, at):
            at += os.write(target, chunk)
        fresh.replace(older(log))
    finally:
        os.close(target)
        fresh.unlink(missing_ok=True)


def _fresh(log: Path) -> Path:
    return log.with_name(log.name + ".new")


def _end(file: Path, length: int) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, length, max(0, size - length))
    finally:
        os.close(descriptor)
