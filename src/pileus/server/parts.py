"""What the routes work with, made by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from pileus.kernel.access import Principal
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.store.store import Store
from pileus.kernel.surface import Surface
from pileus.server.auth import Auth
from pileus.server.edge import PRINCIPAL
from pileus.server.images import ImageStore
from pileus.server.joining import Joining
from pileus.server.links import AgentLinks
from pileus.server.streams import Streams

Uploaded = Callable[[Resource, str, str, int], Awaitable[None]]
"""Called with the image, the part (disk, kernel, initrd), its SHA-256 in hex and its size once it is on disk."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything behind the routes."""

    store: Store
    hub: Hub
    registry: Registry
    surface: Surface
    auth: Auth
    joining: Joining
    images: ImageStore
    agents: AgentLinks
    uploaded: Uploaded
    streams: Streams = field(default_factory=Streams)
    image_bytes_max: int = 1 << 40
    """The largest disk that may be uploaded: 1 TiB."""
    boot_bytes_max: int = 1 << 29
    """The largest kernel or initrd: 512 MiB."""

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Return who calls, and note it for the log. Raises: Unauthenticated."""
        authorization = connection.headers.get("authorization", "")
        principal = await self.auth.principal(authorization, address(connection))
        connection.scope[PRINCIPAL] = principal
        return principal


def address(connection: HTTPConnection) -> str:
    """Return the peer's socket address; headers that claim another are never read."""
    return connection.client.host if connection.client else ""
