"""Routes of what requests to nodes carry: payloads too long to be said inline, and answers."""

from __future__ import annotations

import asyncio
import hashlib

from starlette.requests import Request
from starlette.responses import Response

from pileus.fleet.request.api import upload
from pileus.fleet.request.controller import answer_of
from pileus.fleet.request.types import ANSWER, PAYLOAD, PAYLOAD_BYTES_MAX, RequestDesired, is_settled
from pileus.kernel.errors import Conflict, Invalid, NotFound
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.server import bodies
from pileus.server.content import note
from pileus.server.parts import Parts
from pileus.server.problems import TooMany, TooSlow
from pileus.server.query import COMMON, Query, call, ident

REQUEST = "fleet.request"
UPLOADS_MAX = 16
"""At once, each of them in memory."""
UPLOAD_S = 120.0


class Payloads:
    """Routes below ``/v1/fleet.request/{ident}``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._uploads = 0

    async def upload(self, request: Request) -> Response:
        """``PUT /v1/fleet.request/{ident}/payload``: the body is the payload; the same again is no mistake."""
        await self._parts.principal(request)
        asked = call(request, Query(request, COMMON))
        found = await self._parts.surface.row(asked, REQUEST, ident(request), "update")
        body = await self._receive(request)
        digest = hashlib.sha256(body).hexdigest()
        wanted = request.headers.get("x-content-sha256", "").lower()
        if wanted not in ("", digest):
            raise Invalid(f"the upload's SHA-256 is {digest}, not {wanted}; upload it again", code="digest-mismatch")

        async def write(tx: Transaction) -> None:
            await upload(tx, found.id, body)
            await note(tx, asked, "upload", found)

        await self._parts.store.write(write)
        answer = await self._parts.surface.get(asked, REQUEST, found.id)
        return Response(answer.body.encode(), media_type="application/json", headers={"X-Content-SHA256": digest})

    async def _receive(self, request: Request) -> bytes:
        if self._uploads >= UPLOADS_MAX:
            raise TooMany(f"{UPLOADS_MAX} payloads are being uploaded; try again")
        self._uploads += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                return b"".join([part async for part in bodies.stream(request, PAYLOAD_BYTES_MAX)])
        except TimeoutError:
            raise TooSlow(f"the payload did not arrive within {UPLOAD_S:.0f} s") from None
        finally:
            self._uploads -= 1

    async def payload(self, request: Request) -> Response:
        """``GET /v1/fleet.request/{ident}/payload``: what the node is asked; an uploaded one goes once it is settled."""
        found = await self._found(request)
        desired: RequestDesired = found.desired
        if desired.upload == "no":
            return _bytes(desired.payload.encode())
        body = await self._parts.store.content(found.id, PAYLOAD)
        if body is None:
            why = "is not kept, for it is settled" if is_settled(found) else "is not uploaded yet"
            raise NotFound(f"the payload of {found} {why}", code="no-payload")
        return _bytes(body)

    async def answer(self, request: Request) -> Response:
        """``GET /v1/fleet.request/{ident}/answer``: what the node answered, byte for byte."""
        found = await self._found(request)
        if not is_settled(found):
            raise Conflict(f"{found} is not settled yet", code="not-settled")
        body = await self._parts.store.content(found.id, ANSWER)
        return _bytes(answer_of(found.observed) if body is None else body)

    async def _found(self, request: Request) -> Resource:
        await self._parts.principal(request)
        asked = call(request, Query(request, COMMON))
        return await self._parts.surface.row(asked, REQUEST, ident(request))


def _bytes(body: bytes) -> Response:
    digest = hashlib.sha256(body).hexdigest()
    headers = {"X-Content-SHA256": digest, "X-Content-Type-Options": "nosniff"}
    return Response(body, media_type="application/octet-stream", headers=headers)
