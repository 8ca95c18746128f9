"""TLS to a database that somebody else runs: it is who it says, and cannot fill this server's memory or take its time."""

from __future__ import annotations

import re
import ssl
from typing import Any

BYTES_MAX = 4 * 1024 * 1024
"""What one connection may say, in bytes: an honest database says some kilobytes."""
ITERATIONS = re.compile(rb",i=\d{6,}")
"""RFC 5802 5.1: how often the client shall hash its password, which nothing can interrupt; PostgreSQL says 4096."""
ITERATIONS_LENGTH = 9
"""Of its shortest match, in bytes."""


class Guarded(ssl.SSLContext):
    """Verifies the name that the customer wrote, although the connection is made to the address that was checked."""

    name = ""
    complaint = ""
    """Why a conversation was ended."""
    is_in = False
    """Whether the password was taken: the rest is rows, in which anything may stand."""

    @classmethod
    def of(cls, host: str, ca: str) -> Guarded:
        """Return one that trusts the system's authorities and those in ``ca``. Raises: ValueError."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_default_certs()
        context.name = host.rstrip(".")
        context.sslobject_class = _Conversation
        if ca:
            try:
                context.load_verify_locations(cadata=ca)
            except ssl.SSLError as wrong:
                raise ValueError(f"ca cannot be read: {wrong.reason}") from wrong
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Return what the event loop speaks TLS with, for the name."""
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


class _Conversation(ssl.SSLObject):
    """What it hears is counted and looked at before the driver sees it."""

    _heard = 0
    _end = b""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Return what the base class returns. Raises: ConnectionAbortedError for what no honest database says."""
        got: Any = super().read(len, buffer)
        said = bytes(memoryview(buffer)[:got]) if buffer is not None else got
        self._heard += memoryview(said).nbytes
        if self._heard > BYTES_MAX:
            self._refuse(f"it said more than {BYTES_MAX >> 20} MiB")
        if isinstance(self.context, Guarded) and not self.context.is_in:
            seen = self._end + said
            if ITERATIONS.search(seen):
                self._refuse("it wants the password hashed 100000 times or more")
            self._end = seen[1 - ITERATIONS_LENGTH :]
        return got

    def _refuse(self, complaint: str) -> None:
        if isinstance(self.context, Guarded):
            self.context.complaint = complaint
        raise ConnectionAbortedError(complaint)
