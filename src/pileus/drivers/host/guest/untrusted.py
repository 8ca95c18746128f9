"""What a node says, read with suspicion: it is another's machine, and may say anything. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

STATUS_BYTES_MAX = 64 << 10
STATUS_DEPTH_MAX = 16
WORDS_MAX = 2000
MESSAGE_BYTES_MAX = 128 << 10

_HASH = re.compile(r"([0-9a-f]{32})?")
_TOKEN = re.compile(r"[A-Za-z0-9._+-]{0,64}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a1-\u024f]+")


class Hostile(Exception):
    """A message that no node of ours sends."""


class Report(Struct, frozen=True, kw_only=True):
    """How a node says it is."""

    hash: str = ""
    refused: str = ""
    version: str = ""
    boot_id: str = ""
    status: dict[str, Any] = {}


class Message(Struct, frozen=True, kw_only=True):
    """A message: ``id`` is of the request that it answers, None when it answers none."""

    id: int | None = None
    stale: bool = False
    report: Report | None = None


def read_message(body: bytes) -> Message:
    """Return the message. Raises Hostile."""
    try:
        message = msgspec.json.decode(body, type=Message)
    except (ValueError, RecursionError) as wrong:
        raise Hostile("a message that is not understood") from wrong
    if message.report is not None:
        _check(message.report)
    return message


def readable(words: str) -> str:
    """Return a node's words as a line that can be shown to people and written to logs."""
    return _UNPRINTABLE.sub(" ", words)[:WORDS_MAX].strip()


def _check(report: Report) -> None:
    if not _HASH.fullmatch(report.hash) or not _TOKEN.fullmatch(report.version) or not _TOKEN.fullmatch(report.boot_id):
        raise Hostile("a report without a usable hash, version or boot id")
    if _depth_exceeds(report.status, STATUS_DEPTH_MAX):
        raise Hostile("a status that is nested too deeply")
    try:
        length = len(msgspec.json.encode(report.status))
    except (ValueError, OverflowError) as wrong:
        raise Hostile("a status that cannot be written down") from wrong
    if length > STATUS_BYTES_MAX:
        raise Hostile("a status that is too long")


def _depth_exceeds(value: object, limit: int) -> bool:
    """Walk level by level: never deeper than ``limit``, whatever the value."""
    level: list[object] = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
