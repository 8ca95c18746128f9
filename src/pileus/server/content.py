"""Routes that carry what is not JSON: uploads to images; logs, consoles and ports of VMs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from pileus.compute.vm.types import VmDesired
from pileus.kernel.errors import Conflict, Denied, Invalid, NotFound, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call
from pileus.kernel.transaction import Transaction
from pileus.server import bodies, reach, streams, tunnel
from pileus.server.images import UPLOADS, Received
from pileus.server.links import Connection
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, answer_json, call, ident
from pileus.storage.image.types import ImageDesired, ImageObserved

IMAGE, VM, NODE = "storage.image", "compute.vm", "fleet.node"
TAIL_BYTES, TAIL_BYTES_MAX = 65_536, 16_777_216
HOST_ANSWERS_S = 10.0
PORT_MAX = 65_535
OFFSET_DIGITS_MAX = 20


class Content:
    """Routes below ``/v1/storage.image/{ident}`` and ``/v1/compute.vm/{ident}``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def upload(self, request: Request) -> Response:
        """``PUT /v1/storage.image/{ident}/{part}``: the body is the file."""
        part, asked, image = await self._image(request)
        with self._deleted_meanwhile(image):
            received = await self._parts.images.receive(
                image.id,
                part,
                bodies.stream(request, self._limit(part)),
                announced=bodies.length(request),
                digests=_digests(request, image, part),
            )
        return await self._uploaded(asked, image, part, received)

    async def offset(self, request: Request) -> Response:
        """``HEAD /v1/storage.image/{ident}/{part}``: how much of an unfinished upload is here."""
        part, _, image = await self._image(request)
        here = await asyncio.to_thread(self._parts.images.offset, image.id, part)
        return Response(status_code=204, headers={"Upload-Offset": str(here), "Cache-Control": "no-store"})

    async def append(self, request: Request) -> Response:
        """``PATCH /v1/storage.image/{ident}/{part}``: the body goes on at ``Upload-Offset``.

        ``Upload-Complete: ?0`` says that more will come. In the manner of the IETF's resumable uploads.
        """
        part, asked, image = await self._image(request)
        at = _offset(request)
        is_last = request.headers.get("upload-complete", "?1") != "?0"
        with self._deleted_meanwhile(image):
            received = await self._parts.images.append(
                image.id,
                part,
                bodies.stream(request, max(0, self._limit(part) - at)),
                at=at,
                digests=_digests(request, image, part) if is_last else None,
            )
        if received is not None:
            return await self._uploaded(asked, image, part, received)
        here = await asyncio.to_thread(self._parts.images.offset, image.id, part)
        return Response(status_code=204, headers={"Upload-Offset": str(here)})

    async def _image(self, request: Request) -> tuple[str, Call, Resource]:
        """Return the part, the call and the image that the caller may upload to. Raises: NotFound, Denied, Conflict."""
        part = request.path_params["part"]
        if part not in UPLOADS:
            raise NotFound(f"an image has no part {part!r}; it has {', '.join(UPLOADS)}")
        await self._parts.principal(request)
        asked = call(request, Query(request, COMMON))
        image = await self._parts.surface.row(asked, IMAGE, ident(request), "update")
        _may_upload(asked, image, part)
        return part, asked, image

    def _limit(self, part: str) -> int:
        return self._parts.image_bytes_max if part == "disk" else self._parts.boot_bytes_max

    @contextlib.contextmanager
    def _deleted_meanwhile(self, image: Resource) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._gone(image) from error

    def _gone(self, image: Resource) -> NotFound:
        self._parts.images.remove(image.id)
        return NotFound(f"{image} was deleted during the upload")

    async def _uploaded(self, asked: Call, image: Resource, part: str, received: Received) -> Response:
        """Note an upload that is whole and return the image."""
        try:
            image = await self._parts.store.get(image.id)
        except NotFound as error:
            raise self._gone(image) from error
        await self._parts.store.write(lambda tx: note(tx, asked, "upload", image))
        await self._parts.uploaded(image, part, received.sha256, received.size_bytes)
        answer = await self._parts.surface.get(asked, IMAGE, image.id)
        digest = {"X-Content-SHA256": received.sha256}
        return Response(answer.body.encode(), media_type="application/json", headers=digest)

    async def document(self, request: Request) -> Response:
        """``GET /v1/fleet.node/{ident}/document``: what the node shall run, which may hold secrets of its manager's."""
        principal = await self._parts.principal(request)
        node = await self._parts.surface.row(call(request, Query(request, COMMON)), NODE, ident(request))
        if not principal.operator and not principal.manager_id:
            raise Denied(f"the document of {node} is for its manager and the cloud's operators only")
        return Response(answer_json(node.desired.document), media_type="application/json")

    async def log(self, request: Request) -> Response:
        """``GET /v1/compute.vm/{ident}/log``: the end of what the VM wrote to its console."""
        await self._parts.principal(request)
        query = Query(request, (*COMMON, "tail_bytes"))
        vm = await self._vm(call(request, query), ident(request))
        tail_bytes = query.number("tail_bytes", TAIL_BYTES, TAIL_BYTES_MAX)
        answer = self._parts.agents.call(_host(vm), "log", vm.id, {"tail_bytes": tail_bytes})
        try:
            async with asyncio.timeout(HOST_ANSWERS_S):
                first = await anext(answer, b"")  # before the answer begins: a host that is away is an error
        except TimeoutError:
            raise Transient(f"the host of {vm} did not answer within {HOST_ANSWERS_S:.0f} s") from None
        return StreamingResponse(_rest(first, answer), media_type="text/plain; charset=utf-8")

    async def console(self, websocket: WebSocket) -> None:
        """``GET /v1/compute.vm/{ident}/console``: a WebSocket, bytes both ways."""
        principal = await self._parts.principal(websocket)
        asked = call(websocket, Query(websocket, COMMON))
        vm = await self._vm(asked, ident(websocket))
        host = _host(vm)
        reach.check_on(vm)
        with self._parts.streams.one_of(principal.user_id):
            console = await self._parts.agents.console(host, vm.id)
            try:
                await self._parts.store.write(lambda tx: note(tx, asked, "console", vm))
                await websocket.accept()
                await streams.first_of(
                    streams.pump_console(websocket, console),
                    self._parts.auth.until_changed(websocket.headers["authorization"], principal),
                    self._parts.streams.closed(),
                )
            finally:
                await console.close()
        await streams.close(websocket, streams.GOING_AWAY, "the VM ended, or what you may do has changed")

    async def connect(self, websocket: WebSocket) -> None:
        """``GET /v1/compute.vm/{ident}/connect``: a WebSocket to a TCP port of the VM, see ``tunnel``."""
        principal = await self._parts.principal(websocket)
        query = Query(websocket, (*COMMON, "port", "network"))
        asked = call(websocket, query)
        vm = await self._vm(asked, ident(websocket))
        port = query.number("port", 0, PORT_MAX)
        if not port:
            raise Invalid(f"port must be a whole number from 1 to {PORT_MAX}", field="port")
        place = await reach.place(self._parts.store, vm, query.text("network"))
        with self._parts.streams.one_of(principal.user_id):
            connection = await self._connect(vm, place, port)
            try:
                await self._parts.store.write(lambda tx: note(tx, asked, "connect", vm))
                await websocket.accept()
                await streams.first_of(
                    tunnel.serve(websocket, connection),
                    self._parts.auth.until_changed(websocket.headers["authorization"], principal),
                    reach.until_ended(self._parts.store, self._parts.hub, vm),
                    self._parts.streams.closed(),
                )
                code, reason = farewell(connection)
            finally:
                await connection.close()
        await streams.close(websocket, code, reason)

    async def _connect(self, vm: Resource, place: reach.Place, port: int) -> Connection:
        try:
            return await self._parts.agents.connect(place.host, place.appliance, place.address, port)
        except Conflict as error:
            message = f"{vm} does not answer: {error.message}; does something listen on port {port}?"
            raise Conflict(message, code=error.code) from None
        except Transient as error:
            raise Transient(f"no way to {vm} through its router: {error.message}", code=error.code) from None

    async def _vm(self, asked: Call, word: str) -> Resource:
        """Return a VM whose console the caller may use. Raises: NotFound, Denied."""
        vm = await self._parts.surface.row(asked, VM, word, "console")
        desired: VmDesired = vm.desired
        if desired.appliance is not None and not asked.principal.operator:
            raise Denied(f"{vm} is an appliance of the cloud; only its operator may use its console and log")
        return vm


def farewell(connection: Connection) -> tuple[int, str]:
    """Return code and reason with which the caller's WebSocket is closed."""
    if connection.done:
        return streams.NORMAL, ""
    return streams.POLICY, "what you may do has changed; connect again if you may"  # or the caller is gone anyway


def _digests(request: Request, image: Resource, part: str) -> tuple[str, ...]:
    """Return what the SHA-256 of an upload must be."""
    desired: ImageDesired = image.desired
    return request.headers.get("x-content-sha256", ""), desired.sha256 if part == "disk" else ""


def _offset(request: Request) -> int:
    """Return where a piece of an upload begins. Raises: Invalid."""
    text = request.headers.get("upload-offset", "")
    if not (text.isascii() and text.isdigit() and len(text) < OFFSET_DIGITS_MAX):
        raise Invalid("Upload-Offset must say where the piece begins, in bytes")
    return int(text)


def _may_upload(asked: Call, image: Resource, part: str) -> None:
    if not asked.principal.operator and image.account_id != asked.principal.account_id:
        raise Denied(f"{image} is the cloud's own; only its operator may change it")
    if image.deleting:
        raise Conflict(f"{image} is being deleted and cannot be changed", code="deleting")
    observed: ImageObserved | None = image.observed
    if observed is not None and observed.state in ("inspecting", "available"):
        what = "has its content already" if observed.state == "available" else "is being inspected"
        raise Conflict(f"{image} {what}; make another image for another {part}", code="already-uploaded")


def _host(vm: Resource) -> str:
    if not vm.host:
        raise Conflict(f"{vm} is on no host yet; `pileus describe vm {vm.name}` says why", code="no-host")
    return vm.host


async def _rest(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in parts:
        yield part


async def note(tx: Transaction, asked: Call, verb: str, resource: Resource) -> None:
    """Append to the audit log what was done with a resource by another way than its wish."""
    await tx.audit(
        {
            "actor": asked.principal.actor,
            "account_id": resource.account_id,
            "verb": verb,
            "kind": resource.kind,
            "id": resource.id,
            "name": resource.name,
            "outcome": "ok",
            "address": asked.principal.address,
            "request": asked.request_id,
        }
    )
