"""The server half of an image: an uploaded disk is inspected and converted in a jail before any host sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from pileus.kernel.errors import Conflict, PileusError, Transient
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.storage.image.types import ImageDesired, ImageObserved


class Converted(Protocol):
    """What a conversion says of the clean qcow2 it made."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""

    @property
    def virtual_size_bytes(self) -> int:
        """Size as a guest sees it."""

    @property
    def sha256(self) -> str:
        """Digest of the file."""


class Refused(Exception):
    """The uploaded file is not what it says, with the reason and a sentence for its owner."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Files(Protocol):
    """The images on the server's disk."""

    def present(self, image_id: str, file: str) -> Path | None:
        """Return the path of a file of the image, if it is there."""

    def remove(self, image_id: str) -> None:
        """Remove all files of the image."""


class Convert(Protocol):
    """Makes a clean qcow2 of an untrusted file."""

    async def __call__(self, source: Path, format: str, target: Path) -> Converted:
        """Return the facts of ``target``. Raises: Refused, Transient."""


CONVERSIONS_MAX = 2
"""Conversions at once, each of which keeps a lease and a core; images above wait in their rows, not in the loop."""
QUEUE_RECHECK_S = 3.0


class ImageController(Controller):
    """Turns an upload into something that hosts may use."""

    def __init__(self, files: Files, convert: Convert) -> None:
        self._files = files
        self._convert = convert
        self._conversions = asyncio.Semaphore(CONVERSIONS_MAX)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Inspect and convert what was uploaded; remove the files of a deleted image."""
        if resource.deleting:
            await asyncio.to_thread(self._files.remove, resource.id)
            return Done()
        observed: ImageObserved | None = resource.observed
        source = self._files.present(resource.id, "upload")
        if observed is not None and observed.state == "available" and source is not None:
            await asyncio.to_thread(source.unlink, missing_ok=True)
        if observed is None or observed.state != "inspecting":
            return Done()
        if source is None:
            problem = Problem(reason="UploadLost", message="the uploaded disk is not on this server; upload it again")
            lost = replace(observed, state="awaiting-upload", problem=problem)
            return Done(lambda tx: _write(tx, resource, lost))
        if self._conversions.locked():
            return Wait("Queued", "uploaded; other images are being converted before it", QUEUE_RECHECK_S)
        desired: ImageDesired = resource.desired
        try:
            async with self._conversions:
                made = await self._convert(source, desired.format, source.with_name("disk"))
        except Refused as error:
            problem = Problem(reason=error.reason, message=str(error))
            refused = replace(observed, state="refused", problem=problem)
            await asyncio.to_thread(source.unlink, missing_ok=True)
            return Done(lambda tx: _write(tx, resource, refused))
        except Transient as error:
            return Wait("Retrying", error.message, 15.0)
        available = replace(
            observed,
            state="available",
            size_bytes=made.size_bytes,
            virtual_size_bytes=made.virtual_size_bytes,
            sha256=made.sha256,
            problem=None,
        )

        async def apply(tx: Transaction) -> None:
            await _write(tx, resource, available)
            # The next look removes the upload, only after the fact is written: cut here, the conversion is done again.
            await tx.change(tx.insert.enqueue, id=resource.id, due=tx.now)

        return Done(apply)


async def _write(tx: Transaction, resource: Resource, observed: ImageObserved) -> None:
    await tx.update(resource, observed=observed)


def upload_noted(observed: ImageObserved | None, part: str, sha256: str, size_bytes: int) -> ImageObserved:
    """Return the image's facts after an upload of one part.

    Raises: Conflict (already-uploaded) when another upload came first; PileusError for a part that there is not.
    """
    before = observed or ImageObserved()
    if before.state in ("inspecting", "available"):
        raise Conflict(
            f"another upload of the image came first, it is {before.state}; make another image for another {part}",
            code="already-uploaded",
        )
    match part:
        case "disk":
            return replace(before, state="inspecting", problem=None)
        case "kernel":
            return replace(before, kernel_sha256=sha256, kernel_size_bytes=size_bytes)
        case "initrd":
            return replace(before, initrd_sha256=sha256, initrd_size_bytes=size_bytes)
        case _:
            raise PileusError(f"an image has no part {part!r}")
