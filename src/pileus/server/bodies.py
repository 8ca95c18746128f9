"""Reading what callers send: bounded in size and time before anything looks at it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from pileus.kernel.errors import Invalid
from pileus.server.problems import TooLarge, TooSlow

T = TypeVar("T")

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL (RFC 8259 7), not a backslash that is itself escaped: PostgreSQL cannot hold it, argv ends at it."""

JSON_BYTES_MAX = 1_048_576
JSON_S = 30.0
"""For a whole JSON body: a megabyte at 35 kB/s."""
SILENCE_S = 30.0
"""An upload in which nothing arrives for this long is given up."""
RATE_MIN = 4096
"""Bytes per second that an upload must reach on average after its first SILENCE_S."""


async def read(request: Request, limit: int = JSON_BYTES_MAX) -> bytes:
    """Return a whole JSON body. Raises: TooLarge, TooSlow, Invalid; ClientDisconnect when the caller is gone."""
    _check_length(request, limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(JSON_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise TooSlow(f"the request's body did not arrive within {JSON_S:.0f} s") from None
    content = b"".join(parts)
    if b"\\u0000" in content and _NUL.search(content):
        raise Invalid("the request holds a NUL character, which no text here may")
    return content


async def read_json(request: Request, type: type[T], limit: int = JSON_BYTES_MAX) -> T:
    """Return the body decoded. Raises: as ``read``; Invalid."""
    text = await read(request, limit)
    try:
        return msgspec.json.decode(text or b"{}", type=type)
    except UnicodeDecodeError:
        raise Invalid("the request is not UTF-8", code="not-json") from None


async def stream(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the parts of a large body. Raises: TooLarge, TooSlow; ClientDisconnect when the caller is gone."""
    _check_length(request, limit)
    loop = asyncio.get_running_loop()
    started, size = loop.time(), 0
    parts = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                part = await anext(parts, None)
        except TimeoutError:
            raise TooSlow(f"nothing of the upload arrived for {SILENCE_S:.0f} s") from None
        if part is None:
            return
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        took_s = loop.time() - started
        if took_s > SILENCE_S and size / took_s < RATE_MIN:
            raise TooSlow(f"the upload is slower than {RATE_MIN} bytes per second")
        if part:
            yield part


def length(request: Request) -> int | None:
    """Return the size that the caller announced, in bytes. Raises: Invalid."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Invalid("Content-Length is not a number")
    return int(text)


def _check_length(request: Request, limit: int) -> None:
    announced = length(request)
    if announced is not None and announced > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request's body is larger than {limit} bytes, the most that this path takes")
