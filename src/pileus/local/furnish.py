"""What a one-machine cloud has from the start: zone, pod, host, offerings, the images, and the context ``local``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pileus.agent.identity import Identity, join, renewal_due
from pileus.cli import contexts
from pileus.compute.offering.types import BUILTIN as OFFERINGS
from pileus.image.recipes import STANDARD, current_image, ensure_image
from pileus.image.types import BuiltImage
from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Unauthenticated
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call
from pileus.server.auth import replace_operator_key
from pileus.server.parts import Parts
from pileus.server.run import Started
from pileus.tenancy.role.types import VERBS

NAME = "local"
ZONE = {
    "router": "single",
    "public_range": "203.0.113.0/24",
    "public_gateway": "203.0.113.1",
    "public_first": "203.0.113.16",
    "public_last": "203.0.113.254",
}
"""Networks have routers; the public segment of a cloud that was given none has addresses for documentation (RFC 5737),
inside its switch."""
PIECE_BYTES = 2**20
Say = Callable[[str], None]

SYSTEM = Principal(
    user_id="system",
    user="pileus up",
    account_id="",
    account="",
    role="operator",
    rules=(Rule(kinds=("*",), verbs=VERBS),),
)


class Wanted(Struct, frozen=True):
    """An object that shall be there, and its wish."""

    kind: str
    name: str
    desired: dict[str, Any]


def wanted() -> list[Wanted]:
    """Return the objects of a fresh one-machine cloud, in the order they are made."""
    return [
        Wanted("infra.zone", NAME, ZONE),
        Wanted("infra.pod", NAME, {"zone": NAME}),
        Wanted("infra.host", NAME, {"pod": NAME}),
        *(Wanted("compute.offering", name, msgspec.to_builtins(each)) for name, each in OFFERINGS.items()),
    ]


async def furnish(started: Started, identity: Path, say: Say) -> None:
    """Make what is missing; what is there stays as its operator left it."""
    parts = started.parts
    for each in wanted():
        await ensure(parts, each)
    await ensure_images(parts, say)
    await _ensure_joined(started, identity)
    await ensure_context(started, NAME)


async def ensure(parts: Parts, each: Wanted) -> Resource:
    """Return the object, made now if it is missing."""
    found = await parts.store.find(each.kind, "", each.name)
    if found is None:
        body = msgspec.json.encode({"name": each.name, "desired": each.desired})
        await parts.surface.create(Call(principal=SYSTEM, request_id="up"), each.kind, body)
        found = await parts.store.find(each.kind, "", each.name)
    assert found is not None
    return found


async def ensure_images(parts: Parts, say: Say) -> None:
    """Have all images that the project builds as the cluster's."""
    for name in STANDARD:
        await _ensure_image(parts, name, say)


async def _ensure_image(parts: Parts, name: str, say: Say) -> None:
    """Have the image as one of the cluster's, built from Debian packages when it is not in the cache."""
    found = await parts.store.find("storage.image", "", name)
    if found is not None and found.observed is not None and found.observed.state in ("inspecting", "available"):
        return
    built = await ensure_built(name, say)
    image = await ensure(parts, Wanted("storage.image", name, {"format": "qcow2", "append": built.append}))
    say(f"registering the image {name}")
    for part, file in _files(built).items():
        received = await parts.images.receive(image.id, part, _read(file), announced=file.stat().st_size, digests=())
        await parts.uploaded(image, part, received.sha256, received.size_bytes)


async def ensure_built(name: str, say: Say) -> BuiltImage:
    """Return an image of the project, built now when it is not in the cache."""
    if await asyncio.to_thread(current_image, name) is None:
        say(f"building the image {name} from Debian packages (once, about half a minute)")
    return await asyncio.to_thread(ensure_image, name, lambda line: say(f"  {line}"))


def _files(built: BuiltImage) -> dict[str, Path]:
    """Return the parts in the order of upload: the disk comes last, because it makes the image ready."""
    return {"kernel": built.kernel, "initrd": built.initrd, "disk": built.disk}


async def _read(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while piece := await asyncio.to_thread(opened.read, PIECE_BYTES):
            yield piece


async def _ensure_joined(started: Started, folder: Path) -> None:
    """Have an identity for the agent of this machine, for this server at its present address."""
    known = Identity.load(folder)
    host = await started.parts.store.find("infra.host", "", NAME)
    assert host is not None
    if known is not None and known.host == host.id and known.server == started.url:
        try:
            if renewal_due(folder) > started.parts.store.clock():
                return
        except (OSError, ValueError):  # no certificate, or half of one: join again
            pass
    token = await started.parts.joining.token(SYSTEM, host, "up")
    await join(started.url, token.token, folder)


async def ensure_context(started: Started, name: str) -> None:
    """Have the context ``name`` with an operator's key that works, and make it the current one."""
    known = contexts.load().contexts.get(name)
    if known is not None and started.operator_key is None and known.server == started.url and known.ca == started.ca:
        try:
            await started.parts.auth.principal(f"Bearer {known.key}", "local")
            return
        except Unauthenticated:
            pass
    key = started.operator_key or await replace_operator_key(started.parts.store)
    contexts.put(name, contexts.Context(server=started.url, ca=started.ca, key=key))
