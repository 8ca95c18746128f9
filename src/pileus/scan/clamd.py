"""Asks a ClamAV daemon, where one is installed, over its socket: whether it lives, what it knows, what is in a stream.

The daemon reads what a tenant has, so its answers are taken within bounds; whatever is not the answer that was asked
for gives ``unknown``. Source: clamd(8), "COMMANDS"; the form with ``z`` ends each command and answer with a zero byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from pileus.scan.report import Finding, Report, printable

STREAM_BYTES_MAX = 25 * 1024**2
"""What is sent at most: clamd's own default of ``StreamMaxLength``. Larger content it may pass over and call clean."""

CHUNK_BYTES = 128 * 1024
ANSWER_BYTES_MAX = 4096
TIMEOUT_S = 60.0

_FOUND = re.compile(r"stream: (.{1,512}) FOUND")
_CLEAN = "stream: OK"


class NoClamd(Exception):
    """There is no daemon at that socket that answers as one."""


class Clamd:
    """A daemon at a socket. ``timeout_s``: for one call in all."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def ping(self) -> None:
        """Return when the daemon lives. Raises: NoClamd."""
        answer = await self._ask(b"zPING\0", None)
        if answer != "PONG":
            raise NoClamd(f"clamd at {self._path} answers {answer!r} to a ping")

    async def version(self) -> str:
        """Return its version, with that of its signatures when it has the usual ones. Raises: NoClamd."""
        answer = await self._ask(b"zVERSION\0", None)
        if not answer.startswith("ClamAV "):
            raise NoClamd(f"what answers at {self._path} is not clamd: {answer!r}")
        return answer

    async def scan(self, content: AsyncIterator[bytes]) -> Report:
        """Return what the daemon says of a stream; ``unknown`` with words when it does not."""
        stream = _Stream(content)
        try:
            answer = await self._ask(b"zINSTREAM\0", stream)
        except NoClamd as exc:
            return Report(scanned_bytes=stream.sent_bytes, reason="NoAnswer", message=str(exc))
        size = stream.sent_bytes
        found = _FOUND.fullmatch(answer)
        findings = (Finding(rule=found[1], where="stream"),) if found is not None else ()
        if stream.is_too_large or "size limit exceeded" in answer:
            message = (
                f"clamd is sent at most {STREAM_BYTES_MAX} bytes, or less by its own limit; nothing is known of more"
            )
            return Report(findings=findings, scanned_bytes=size, reason="TooLarge", message=message)
        if findings or answer == _CLEAN:
            return Report(findings=findings, size_bytes=size, scanned_bytes=size)
        return Report(scanned_bytes=size, reason="NoAnswer", message=f"clamd says {answer!r}")

    async def _ask(self, command: bytes, stream: _Stream | None) -> str:
        """Return the answer, harmless to show. Raises: NoClamd."""
        try:
            async with asyncio.timeout(self._timeout_s):
                # No asyncio streams: theirs forget what was answered when it is still being sent.
                with socket.socket(socket.AF_UNIX) as asked:
                    asked.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(asked, str(self._path))
                    return await _talk(asked, command, stream)
        except TimeoutError:
            raise NoClamd(f"clamd at {self._path} did not answer within {self._timeout_s:g} s") from None
        except OSError as exc:
            raise NoClamd(f"clamd at {self._path} cannot be asked: {exc}") from exc


class _Stream:
    """What is sent, counted and bounded."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content
        self.sent_bytes = 0
        self.is_too_large = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield it in clamd's form: each piece after its length, a length of zero last."""
        async for content in self._content:
            for at in range(0, len(content), CHUNK_BYTES):
                piece = content[at : at + CHUNK_BYTES]
                if self.sent_bytes + len(piece) > STREAM_BYTES_MAX:
                    self.is_too_large = True
                    yield struct.pack(">I", 0)
                    return
                self.sent_bytes += len(piece)
                yield struct.pack(">I", len(piece)) + piece
        yield struct.pack(">I", 0)


async def _talk(asked: socket.socket, command: bytes, stream: _Stream | None) -> str:
    """Return the answer. A daemon that has enough of a stream hangs up while it is sent; what it said before counts."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(asked, command)
        if stream is not None:
            async for piece in stream.chunks():
                await loop.sock_sendall(asked, piece)
    said = b""
    while (
        b"\0" not in said and len(said) < ANSWER_BYTES_MAX and (more := await loop.sock_recv(asked, ANSWER_BYTES_MAX))
    ):
        said += more
    answer, end, _ = said.partition(b"\0")
    if not end:
        return "nothing that ends"
    return printable(answer.decode(errors="backslashreplace").strip())
