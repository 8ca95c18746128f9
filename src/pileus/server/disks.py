"""The route of what a volume holds: its host packs it as VMDK, and it goes to the caller as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from pileus.compute.vm.types import VmDesired, VmObserved
from pileus.kernel.errors import Conflict, Denied, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call
from pileus.server.content import note
from pileus.server.links import Connection
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, call, ident
from pileus.server.streams import SEND_S
from pileus.storage.volume.types import VolumeObserved, attachment_space

VOLUME = "storage.volume"
MEDIA_TYPE = "application/octet-stream"


class Disks:
    """Routes below ``/v1/storage.volume/{ident}``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def content(self, request: Request) -> Response:
        """``GET /v1/storage.volume/{ident}/content``: a streamOptimized VMDK of a volume whose VM is stopped."""
        principal = await self._parts.principal(request)
        asked = call(request, Query(request, COMMON))
        volume = await self._parts.surface.row(asked, VOLUME, ident(request), "update")
        await self._check_vm(asked, volume)
        observed: VolumeObserved | None = volume.observed
        if not volume.host or observed is None or observed.state != "present":
            raise Conflict(
                f"{volume} is not made yet; it is when the first VM that uses it has a host", code="not-made"
            )
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE)
        with self._parts.streams.one_of(principal.user_id):
            disk = await self._parts.agents.disk(volume.host, volume.id)
            first = await _first(disk)
        await self._parts.store.write(lambda tx: note(tx, asked, "download", volume))
        return _Download(first, disk)

    async def _check_vm(self, asked: Call, volume: Resource) -> None:
        """Raises: Conflict (in-use) while a VM may write to it, Denied for an appliance's."""
        vm = await self._vm_of(volume)
        if vm is None:
            return
        desired: VmDesired = vm.desired
        observed: VmObserved | None = vm.observed
        if desired.appliance is not None and not asked.principal.operator:
            raise Denied(f"{vm} is an appliance; only the cloud's operator may read its disks")
        if desired.power != "stopped" or (observed is not None and observed.power not in ("stopped", "absent")):
            raise Conflict(
                f"{vm} is not stopped, so that its disks change while they are read; `pileus stop vm {vm.name} --wait`",
                code="in-use",
            )

    async def _vm_of(self, volume: Resource) -> Resource | None:
        if volume.owner != volume.account_id:
            return await self._parts.store.get(volume.owner)
        holder = await self._parts.store.holder(attachment_space(volume.id), "vm")
        return await self._parts.store.get(holder) if holder else None


class _Download(StreamingResponse):
    """All of a disk, whose host is let go of however this ends.

    When it breaks, the caller's download ends without its end.
    """

    def __init__(self, first: bytes, disk: Connection) -> None:
        super().__init__(_all(first, disk), media_type=MEDIA_TYPE)
        self._disk = disk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_soon)
        finally:
            await self._disk.close()


async def _all(first: bytes, disk: Connection) -> AsyncIterator[bytes]:
    while first:
        yield first
        first = await disk.read()


async def _first(disk: Connection) -> bytes:
    """Return the first bytes, which come when the disk is packed. Raises: Transient when its host refuses."""
    try:
        first = await disk.read()
        if not first:
            raise Transient("the volume's host sent nothing; try again", code="host-refused")
        return first
    except BaseException:
        await disk.close()
        raise
