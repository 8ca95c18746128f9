"""The server process of a lab: a server like any other, furnished from inside with hosts that do not exist."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import sys
from pathlib import Path

import msgspec
import uvloop
from msgspec.structs import replace

from pileus.agent.identity import Identity
from pileus.compute.offering.types import BUILTIN as OFFERINGS
from pileus.kernel.errors import PileusError
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.lab.seats import Opened, Ready, Seat, lifeline, tell
from pileus.lab.simulated import IMAGE
from pileus.local.furnish import SYSTEM, Wanted, ensure, ensure_context
from pileus.server import logs
from pileus.server.parts import Parts
from pileus.server.run import ServerSettings, Started, serve
from pileus.storage.image.types import ImageObserved

NAME = "lab"
HOSTS_PER_POD = 40
AT_ONCE = 256
"""Objects made at the same time: they share commits."""
GIB = 2**30
UNDERLAY = ipaddress.IPv4Network("10.128.0.0/9")
"""Of the tunnels between simulated hosts."""


async def run(settings: ServerSettings, hosts: int) -> None:
    """Serve until standard input ends; say ``Opened`` once all hosts are known. Raises: PileusError."""
    answering: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(settings, answering.set_result), name="server")
    waited: set[asyncio.Future[object]] = {server, answering}  # type: ignore[arg-type]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
        await server  # raises what stopped it
        return
    started = answering.result()
    try:
        tell(Opened(url=started.url, seats=await furnish(started, settings.data / "hosts", hosts)))
        watching = asyncio.create_task(_tell_ready(started, hosts), name="ready")
        end = asyncio.create_task((await lifeline()).read(), name="lifeline")
        await asyncio.wait({server, end}, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        watching.cancel()
    finally:
        started.stop()
        await server


async def furnish(started: Started, identities: Path, hosts: int) -> tuple[Seat, ...]:
    """Make what is missing, and return the hosts; those without a certificate for this server get a join token."""
    parts = started.parts
    await ensure(parts, Wanted("infra.zone", NAME, {}))
    for position in range(-(-hosts // HOSTS_PER_POD)):
        await ensure(parts, Wanted("infra.pod", _pod(position), {"zone": NAME}))
    for name, offering in OFFERINGS.items():
        await ensure(parts, Wanted("compute.offering", name, msgspec.to_builtins(offering)))
    await _ensure_image(parts)
    seats: list[Seat] = []
    for first in range(0, hosts, AT_ONCE):
        batch = range(first, min(first + AT_ONCE, hosts))
        seats += await asyncio.gather(*(_seat(started, identities, position) for position in batch))
    await ensure_context(started, NAME)
    return tuple(seats)


async def _tell_ready(started: Started, hosts: int) -> None:
    """Say ``Ready`` once no host and no pool is unready."""
    store = started.parts.store
    with started.parts.hub.watch(("kind", "infra.host"), ("kind", "storage.pool")) as changes:
        while await _unready(store):
            await changes.wait(1.0)
    tell(Ready(hosts=hosts))


async def _unready(store: Store) -> bool:
    for kind in ("infra.host", "storage.pool"):
        for status in ("false", "unknown"):
            if await store.list_rows(Filter(kind=kind, ready=status), limit=1):
                return True
    return False


def _pod(position: int) -> str:
    return f"pod-{position + 1:03}"


async def _seat(started: Started, identities: Path, position: int) -> Seat:
    name = f"host-{position + 1:05}"
    host = await ensure(started.parts, Wanted("infra.host", name, {"pod": _pod(position // HOSTS_PER_POD)}))
    seat = Seat(host=host.id, name=name, tunnel_address=f"{UNDERLAY[position + 1]}/{UNDERLAY.prefixlen}")
    known = Identity.load(identities / name)
    if known is not None and (known.host, known.server) == (host.id, started.url):
        return seat
    return replace(seat, token=(await started.parts.joining.token(SYSTEM, host, NAME)).token)


async def _ensure_image(parts: Parts) -> None:
    """Have the image tiny with the content that simulated pools know; no file stands behind it."""
    image = await ensure(parts, Wanted("storage.image", "tiny", {"append": "quiet"}))
    if image.observed is not None and image.observed.state == "available":
        return
    digest = hashlib.sha256(IMAGE).hexdigest()
    facts = ImageObserved(
        state="available",
        size_bytes=len(IMAGE),
        virtual_size_bytes=GIB,
        sha256=digest,
        kernel_sha256=digest,
        kernel_size_bytes=len(IMAGE),
        initrd_sha256=digest,
        initrd_size_bytes=len(IMAGE),
    )

    async def write(tx: Transaction) -> Resource:
        return await tx.update(await tx.get(image.id), observed=facts)

    await parts.store.write(write)


def main(arguments: list[str]) -> int:
    """Run the server of a lab: data folder, port, number of hosts, database URL or nothing."""
    data, port, hosts, database = arguments
    logs.set_up()
    settings = ServerSettings(data=Path(data), port=int(port), database=database)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # the terminal's ctrl-c is for who started it
            uvloop.run(run(settings, int(hosts)))
    except PileusError as error:
        tell(Opened(error=error.message))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
