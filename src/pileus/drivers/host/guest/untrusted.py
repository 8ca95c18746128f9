"""What a node says, read with suspicion: it is another's machine, and may say anything. Pure."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.guest.base import ANSWER_BYTES_MAX

STATUS_BYTES_MAX = 64 << 10
STATUS_DEPTH_MAX = 16
WORDS_MAX = 2000
HEAD_BYTES_MAX = 128 << 10
MESSAGE_BYTES_MAX = ANSWER_BYTES_MAX + (4 << 10)
"""A head is short where an answer is long."""

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


class Answer(Struct, frozen=True, kw_only=True):
    """How a node says that a request ended."""

    state: Literal["applied", "refused", "expired", "withdrawn", "unknown"]


class Message(Struct, frozen=True, kw_only=True):
    """A message: ``id`` is of the one that it answers, None when it answers none."""

    id: int | None = None
    stale: bool = False
    report: Report | None = None
    answer: Answer | None = None
    failed: str = ""


def read_message(body: bytes) -> tuple[Message, bytes]:
    """Return the message, and the bytes that follow it. Raises Hostile."""
    head, _, rest = body.partition(b"\n")
    if len(head) > HEAD_BYTES_MAX or len(rest) > ANSWER_BYTES_MAX:
        raise Hostile("a message that is too long")
    try:
        message = msgspec.json.decode(head, type=Message)
    except (ValueError, RecursionError) as wrong:
        raise Hostile("a message that is not understood") from wrong
    if rest and message.answer is None:
        raise Hostile("a message with bytes that belong to nothing")
    if message.report is not None:
        _check(message.report)
    return message, rest


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
