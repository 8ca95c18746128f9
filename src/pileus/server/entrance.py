"""Routes of agents: joining, the stream, images. An agent is its client certificate and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.websockets import WebSocket

from pileus.kernel.errors import NotFound, Unauthenticated
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.server import bodies, streams
from pileus.server.edge import REQUEST_ID
from pileus.server.images import PARTS
from pileus.server.joining import HOST, JoinRequest, RenewRequest
from pileus.server.parts import Parts, address
from pileus.server.query import COMMON, Query, answer_json, call, ident
from pileus.server.tls import CERTIFICATE
from pileus.storage.volume.types import VolumeAssigned

VOLUME = "storage.volume"
JOIN_BYTES_MAX = 16_384
RECHECK_S = 60.0
"""How late a certificate that was revoked through another server, or whose host was deleted, loses its stream."""


class ImageFile(FileResponse):
    """A part of an image; resumable by Range."""

    chunk_size = 1_048_576


class Entrance:
    """Routes below ``/agent/v1``, and the one that makes join tokens."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._streaming: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def join_token(self, request: Request) -> Response:
        """``POST /v1/infra.host/{ident}/join-token``."""
        principal = await self._parts.principal(request)
        asked = call(request, Query(request, COMMON))
        host = await self._parts.surface.row(asked, HOST, ident(request), "update")
        token = await self._parts.joining.token(principal, host, asked.request_id)
        return Response(answer_json(token), 201, media_type="application/json")

    async def authority(self, request: Request) -> Response:
        """``GET /agent/v1/ca``: the authority's certificate, which a joining agent compares with its token."""
        return PlainTextResponse(self._parts.joining.ca_pem)

    async def join(self, request: Request) -> Response:
        """``POST /agent/v1/join``; whoever had a certificate for this host loses it."""
        body = await bodies.read_json(request, JoinRequest, JOIN_BYTES_MAX)
        joined = await self._parts.joining.join(body, address(request), request.scope[REQUEST_ID])
        for ended in self._streaming.get(joined.host, ()):
            ended.set()
        return Response(answer_json(joined), media_type="application/json")

    async def renew(self, request: Request) -> Response:
        """``POST /agent/v1/renew``: a fresh certificate for who has a good one."""
        host = await self._host(request)
        body = await bodies.read_json(request, RenewRequest, JOIN_BYTES_MAX)
        renewed = await self._parts.joining.renew(host.id, body, address(request), request.scope[REQUEST_ID])
        return Response(answer_json(renewed), media_type="application/json")

    async def stream(self, websocket: WebSocket) -> None:
        """``GET /agent/v1/stream``: the WebSocket of an agent."""
        host = await self._host(websocket)
        await websocket.accept()
        ended = asyncio.Event()
        self._streaming[host.id].add(ended)
        try:
            await streams.first_of(
                self._parts.agents.serve(host.id, streams.AgentChannel(websocket)),
                self._until_revoked(websocket, ended),
                self._parts.streams.closed(),
            )
        finally:
            self._streaming[host.id].discard(ended)
            if not self._streaming[host.id]:
                del self._streaming[host.id]
        await streams.close(websocket, streams.GOING_AWAY, "the stream ended; connect again")

    async def image(self, request: Request) -> Response:
        """``GET /agent/v1/image/{image}/{part}``: only of images that a volume of this host starts from."""
        host = await self._host(request)
        image, part = request.path_params["image"], request.path_params["part"]
        path = self._parts.images.present(image, part) if part in PARTS else None
        if path is None or not await self._needs(host.id, image):
            raise NotFound(f"this host needs no {part!r} of such an image")
        return ImageFile(path, media_type="application/octet-stream")

    async def content(self, request: Request) -> Response:
        """``GET /agent/v1/content/{ident}/{part}``: what is kept of a resource of the host's slice."""
        host = await self._host(request)
        try:
            resource = await self._parts.store.get(ident(request))
        except NotFound:
            resource = None
        body = None
        if resource is not None and resource.host == host.id:
            body = await self._parts.store.content(resource.id, request.path_params["part"])
        if body is None:
            raise NotFound("this host has no such resource, or there is no such part of it")
        return Response(body, media_type="application/octet-stream")

    async def _host(self, connection: HTTPConnection) -> Resource:
        return await self._parts.joining.host(connection.scope.get(CERTIFICATE))

    async def _until_revoked(self, websocket: WebSocket, ended: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await ended.wait()
            try:
                await self._host(websocket)
            except Unauthenticated:
                return
            ended.clear()

    async def _needs(self, host_id: str, image_id: str) -> bool:
        after = ""
        while volumes := await self._parts.store.list(Filter(kind=VOLUME, host=host_id), after=after):
            for volume in volumes:
                assigned: VolumeAssigned | None = volume.assigned
                if assigned is not None and assigned.image is not None and assigned.image.id == image_id:
                    return True
            after = volumes[-1].id
        return False
