"""Digests of what passes by, computed in a thread so that reading and unpacking go on."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Collection

ALGORITHMS = {"SHA1": 40, "SHA256": 64, "SHA512": 128}
"""What manifests may use, with the length of its digest in hexadecimal digits."""

_INLINE_BYTES = 4 << 20
_WAITING_MAX = 8


class Digests:
    """The digests of one file by some algorithms. Feed it with ``update``, then ask ``finish``, or ``close`` it."""

    def __init__(self, algorithms: Collection[str]) -> None:
        self._hashes = {name: hashlib.new(name.lower(), usedforsecurity=False) for name in algorithms}
        self._fed = 0
        self._chunks: queue.Queue[bytes] | None = None
        self._thread: threading.Thread | None = None

    def update(self, chunk: bytes) -> None:
        """Add bytes. Waits when the thread is more than some chunks behind."""
        self._fed += len(chunk)
        if self._fed <= _INLINE_BYTES or not self._hashes:
            self._hash(chunk)
            return
        if self._chunks is None:
            self._chunks = queue.Queue(_WAITING_MAX)
            self._thread = threading.Thread(target=self._run, args=(self._chunks,), name="ovf-digest", daemon=True)
            self._thread.start()
        if chunk:
            self._chunks.put(chunk)

    def finish(self) -> dict[str, str]:
        """Return algorithm → digest in lower-case hexadecimal digits."""
        self.close()
        return {name: hashed.hexdigest() for name, hashed in self._hashes.items()}

    def close(self) -> None:
        """End the thread."""
        if self._chunks is not None and self._thread is not None:
            self._chunks.put(b"")
            self._thread.join()
            self._chunks = self._thread = None

    def _hash(self, chunk: bytes) -> None:
        for hashed in self._hashes.values():
            hashed.update(chunk)

    def _run(self, chunks: queue.Queue[bytes]) -> None:
        while chunk := chunks.get():
            self._hash(chunk)
