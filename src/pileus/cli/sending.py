"""Uploads that go on: a file is sent in pieces, each at its place, also after a server or connection that broke down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from pileus.cli.client import Client, Query, Response
from pileus.cli.failure import REFUSED, UNREACHABLE, Failure

PIECE_BYTES = 16 << 20
"""Kept in memory until the server has it."""
RETRY_S = 1.0
RESUME_S = 300.0
"""How long a server may be away before the command gives up; a later one goes on where this one stopped."""
_MAY_PASS = ("upload-offset", "uploading")


class Sent(Struct, frozen=True, kw_only=True):
    """A file that is on the server."""

    answer: Response | None
    """None: the answer to the last piece was lost, and the server has all of it."""
    sha256: str


def send(client: Client, path: str, query: Query, chunks: Iterable[bytes]) -> Sent:
    """Send the file that ``chunks`` are, without what the server has of it already. Raises: Failure, and what chunks do.

    The last piece goes when ``chunks`` has ended, with the digest of all: until then the server has nothing whole.
    """
    digest = hashlib.sha256()
    upload = _Upload(client, path, query)
    at = 0
    answer: Response | None = None
    for piece, is_last in _pieces(chunks):
        for part in piece:
            digest.update(part)
        answer = upload.put(
            piece, at, {"X-Content-SHA256": digest.hexdigest()} if is_last else {"Upload-Complete": "?0"}
        )
        at += sum(map(len, piece))
    return Sent(answer=answer, sha256=digest.hexdigest())


class _Upload:
    """One upload, and how much of it the server has."""

    def __init__(self, client: Client, path: str, query: Query) -> None:
        self._client = client
        self._path = path
        self._query = query
        self._here = self._offset()

    def put(self, piece: Sequence[bytes], at: int, headers: dict[str, str]) -> Response | None:
        """Send what the server lacks of a piece that begins ``at``. Raises: Failure."""
        end = at + sum(map(len, piece))
        is_last = "Upload-Complete" not in headers
        until = time.monotonic() + RESUME_S
        while self._here < end or is_last:
            try:
                answer = self._client.append(
                    self._path,
                    self._query,
                    _from(piece, self._here - at),
                    {"Upload-Offset": str(self._here), **headers},
                )
            except Failure as failure:
                if failure.code not in _MAY_PASS and failure.exit_code != UNREACHABLE:
                    raise
                if not self._find(until, failure) and is_last:
                    return None
            else:
                self._here = max(self._here, end)
                return answer
        return None

    def _find(self, until: float, failure: Failure) -> bool:
        """Ask how much the server has, once it answers again; False when it takes no more. Raises: Failure."""
        while time.monotonic() < until:
            time.sleep(RETRY_S)
            try:
                self._here = self._offset()
                return True
            except Failure as again:
                if again.exit_code == REFUSED:
                    return False
                if again.exit_code != UNREACHABLE:
                    raise
        raise failure

    def _offset(self) -> int:
        text = self._client.request("HEAD", self._path, self._query).headers.get("Upload-Offset", "0")
        return int(text) if text.isdigit() else 0


def _pieces(chunks: Iterable[bytes]) -> Iterator[tuple[Sequence[bytes], bool]]:
    """Yield the chunks in pieces, each with whether it is the last, which is known when all chunks came."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        if held and size + len(chunk) > PIECE_BYTES:
            yield held, False
            held, size = [], 0
        held.append(chunk)
        size += len(chunk)
    yield held, True


def _from(piece: Sequence[bytes], skipped: int) -> list[bytes]:
    """Return the piece without its first bytes."""
    left: list[bytes] = []
    for part in piece:
        if skipped < len(part):
            left.append(part[max(0, skipped) :])
        skipped -= len(part)
    return left
