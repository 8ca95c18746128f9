"""Identifiers that sort by the time they were made (RFC 9562, UUID version 7)."""

from __future__ import annotations

import os
import re
import uuid

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class IdSource:
    """Makes ids that never go back within one source, even when the clock does."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._sequence = 0

    def next(self, now_s: float) -> str:
        """Return a new id. Layout: 48 bits of milliseconds, version, 12 bits of sequence, 62 random bits."""
        ms = max(int(now_s * 1000), self._last_ms)
        self._sequence = self._sequence + 1 if ms == self._last_ms else 0
        if self._sequence > 0xFFF:
            ms, self._sequence = ms + 1, 0
        self._last_ms = ms
        random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
        return str(uuid.UUID(int=ms << 80 | 0x7 << 76 | self._sequence << 64 | 0b10 << 62 | random))


def is_id(text: str) -> bool:
    """Tell whether ``text`` has the form of an id (names never have it)."""
    return _UUID.fullmatch(text) is not None
