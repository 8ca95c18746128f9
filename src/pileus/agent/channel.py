"""A connection to a server: whole binary frames both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol


class Channel(Protocol):
    """One connection. It ends when either side closes it."""

    async def receive(self) -> bytes | None:
        """Return the next frame; None once the connection is closed."""

    async def send(self, message: bytes) -> None:
        """Send a frame. Raises: Transient when the connection is closed."""

    async def close(self) -> None:
        """Close it."""


Connect = Callable[[], Awaitable[Channel]]
"""Opens a connection. Raises: Transient, Rejected."""

Fetch = Callable[[str, str], AsyncIterator[bytes]]
"""Yields a part of a resource: disk, kernel, initrd of an image; payload of a request. Raises: Transient."""
