"""Wall-clock time as an argument, and how it is written. Nothing else in Pileus asks the system for the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""Returns Unix seconds. Tests pass one that follows their event loop's virtual time."""


def system_clock() -> float:
    """Return the system's time in Unix seconds."""
    return time.time()


def iso(unix_s: float) -> str:
    """Return RFC 3339 in UTC with milliseconds: it sorts as text."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix(text: str) -> float:
    """Return Unix seconds of an RFC 3339 time. Raises: ValueError."""
    return datetime.fromisoformat(text).timestamp()
