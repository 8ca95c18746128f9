"""Logs: one JSON object per line on stderr, whatever a caller put into it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from pileus.kernel.clock import Clock, iso, system_clock

TEXT_MAX = 2_000
"""Longer texts are cut: a record says what happened, it does not carry what was sent."""


def set_up(stream: TextIO | None = None, clock: Clock = system_clock) -> None:
    """Send structlog's and the standard library's records to ``stream`` (stderr) as JSON lines."""

    def stamp(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["at"] = iso(clock())
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(logging.WARNING)
    # Uvicorn warns once per malformed request: a peer without identity could fill the disk with that.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return the record as one line of ASCII JSON, so that no text in it can move a cursor or start a record."""
    line = msgspec.json.encode({key: _cut(value) for key, value in event.items()}, enc_hook=str)
    if line.isascii() and b"\x7f" not in line:
        return line.decode()
    return json.dumps(msgspec.json.decode(line)).replace("\x7f", "\\u007f")


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        # A lone surrogate (from a file name or a header) is no Unicode text and could not be encoded.
        value = value.encode(errors="replace").decode() if not value.isascii() else value
        return value if len(value) <= TEXT_MAX else f"{value[:TEXT_MAX]}... ({len(value)} characters)"
    return value


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        method = "error" if record.levelno >= logging.ERROR else "warning"
        structlog.get_logger(record.name).log(
            logging.ERROR if method == "error" else logging.WARNING,
            record.getMessage(),
            logger=record.name,
            exc_info=record.exc_info or None,
        )
