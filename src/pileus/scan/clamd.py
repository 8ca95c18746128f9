"""Asks a ClamAV daemon, where one is installed, what it is; what it says of content, ``engines.Session`` asks.

The daemon reads what tenants have, so its answers are taken within bounds. Source: clamd(8), "COMMANDS"; the form with
``z`` ends each command and answer with a zero byte.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from pileus.scan.report import printable

STREAM_BYTES_MAX = 25 * 1024**2
"""What is sent at most: clamd's own default of ``StreamMaxLength``. Larger content it may pass over and call clean."""

CHUNK_BYTES = 128 * 1024
ANSWER_BYTES_MAX = 4096


class NoClamd(Exception):
    """There is no daemon at that socket that answers as one."""


async def version(path: Path, timeout_s: float) -> str:
    """Return the version of the daemon at a socket, with that of its signatures when it has the usual ones.

    Raises: NoClamd.
    """
    loop = asyncio.get_running_loop()
    said = b""
    try:
        async with asyncio.timeout(timeout_s):
            with socket.socket(socket.AF_UNIX) as asked:
                asked.setblocking(False)
                await loop.sock_connect(asked, str(path))
                await loop.sock_sendall(asked, b"zVERSION\0")
                while (
                    b"\0" not in said
                    and len(said) < ANSWER_BYTES_MAX
                    and (more := await loop.sock_recv(asked, ANSWER_BYTES_MAX))
                ):
                    said += more
    except TimeoutError:
        raise NoClamd(f"clamd at {path} did not answer within {timeout_s:g} s") from None
    except OSError as exc:
        raise NoClamd(f"clamd at {path} cannot be asked: {exc}") from exc
    answer, end, _ = said.partition(b"\0")
    text = printable(answer.decode(errors="backslashreplace").strip())
    if not end or not text.startswith("ClamAV "):
        raise NoClamd(f"what answers at {path} is not clamd: {text!r}")
    return text
