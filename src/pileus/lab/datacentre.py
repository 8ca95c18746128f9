"""A data centre in a box: the server in this process, the fabric, and hosts with real drivers, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pileus.agent.identity import Identity
from pileus.agent.run import test_guest
from pileus.compute.offering.types import BUILTIN as OFFERINGS
from pileus.drivers.host.qemu.probe import probe_kvm
from pileus.drivers.host.qemu.procfs import identify
from pileus.image.recipes import STANDARD
from pileus.kernel.errors import Rejected
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.lab.run import NAME, last_words, signals
from pileus.lab.site import SERVER_URL, Child, Record, Say, Site
from pileus.lab.topology import INTERNET, SERVER_ADDRESS, Host, Layout
from pileus.local.furnish import SYSTEM, Wanted, ensure, ensure_built, ensure_context, ensure_images
from pileus.local.up import Running
from pileus.server.run import ServerSettings, Started, serve

GRACE_S = 10.0
"""Guests get this long to power off when the lab stops."""
HOST_MEMORY_MIB = 768
"""Agent and switch of a host, its routers and a few tiny VMs: below it a machine is too small for a lab."""
HOSTS_PER_CPU = 4
LOOK_EVERY_S = 0.5


class SiteSettings(Struct, frozen=True, kw_only=True):
    """What a lab shall be."""

    data: Path
    layout: Layout
    port: int = 7443
    database: str = ""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"


async def run(settings: SiteSettings, say: Say, ready: Callable[[str], None]) -> None:
    """Run the lab until SIGTERM or SIGINT; ``ready`` gets its address once every host is.

    Raises: Rejected, Conflict before anything is changed, or when a part of it ends by itself; DriverError.
    """
    settings.layout.check()
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = asyncio.current_task()
    assert own is not None  # we are one
    with _sole_lab(settings.data), signals(own.cancel):
        site = await _site(settings, say)
        if await site.stop(0.0, say):
            say("removed what was left of a lab that was killed")
        _note(settings.data, "")
        try:
            await _run(settings, site, say, ready)
        except asyncio.CancelledError:
            own.uncancel()
        finally:
            say("stopping")
            await site.stop(GRACE_S, say)
            (settings.data / "running.json").unlink(missing_ok=True)


async def _site(settings: SiteSettings, say: Say) -> Site:
    """Return the lab of the folder, made now if there is none; says when it is much for this machine."""
    layout, accelerator = settings.layout, settings.accelerator
    Site(settings.data, Record(layout=layout)).check()
    cpus, memory_mib = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    if layout.hosts > cpus * HOSTS_PER_CPU or layout.hosts * HOST_MEMORY_MIB > memory_mib:
        say(f"warning: {layout.hosts} hosts are many for {cpus} CPUs and {memory_mib} MiB; expect it to be slow")
    await ensure_built("tiny", say)
    if accelerator == "auto":
        accelerator = (await probe_kvm(test_guest())).name
    site = Site(settings.data, Record(layout=layout, accelerator=accelerator))
    site.save()
    return site


async def _run(settings: SiteSettings, site: Site, say: Say, ready: Callable[[str], None]) -> None:
    say(f"building the network: {settings.layout}")
    await site.fabric.build()
    async with _server(settings, site) as (server, started):
        say(f"server answers at {started.url}")
        hosts = await _furnish(started, site, say)
        say(f"starting {len(hosts)} hosts: Open vSwitch, agents; VMs run under {site.record.accelerator}")
        began = started.parts.store.clock()
        children = {INTERNET: site.start_internet()}
        for host, row in hosts:
            children[host.name] = await site.start_host(host, await _token(started, site, host, row))
        everyone = asyncio.Event()
        tasks = (
            asyncio.create_task(_until_ready(started, [row for _, row in hosts], began, say), name="ready"),
            asyncio.create_task(_look_after(site, children, everyone), name="children"),
        )
        try:
            done, _ = await asyncio.wait({server, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
            if server not in done:
                everyone.set()
                _note(settings.data, started.url)
                ready(started.url)
                await asyncio.wait({server})
        finally:
            for task in tasks:
                task.cancel()


@contextlib.asynccontextmanager
async def _server(settings: SiteSettings, site: Site) -> AsyncIterator[tuple[asyncio.Task[None], Started]]:
    """Give a server that answers users on this machine and agents in the management network."""
    answering: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    server_settings = ServerSettings(
        data=settings.data, port=settings.port, database=settings.database, tls_names=(SERVER_ADDRESS,)
    )
    listener = await site.fabric.listen()
    server = asyncio.create_task(serve(server_settings, answering.set_result, also=[listener]), name="server")
    try:
        waited: set[asyncio.Future[Any]] = {server, answering}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await server  # raises what stopped it
            raise asyncio.CancelledError  # it was asked to end before it answered
        yield server, answering.result()
    finally:
        if answering.done():
            answering.result().stop()
        else:
            server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server
        listener.close()


async def _furnish(started: Started, site: Site, say: Say) -> list[tuple[Host, Resource]]:
    """Make what is missing; what is there stays as its operator left it."""
    parts = started.parts
    for zone in site.topology.zones:
        await ensure(parts, Wanted("infra.zone", zone.name, zone.desired))
    for pod in site.topology.pods:
        await ensure(parts, Wanted("infra.pod", pod.name, {"zone": pod.zone.name}))
    for name, offering in OFFERINGS.items():
        await ensure(parts, Wanted("compute.offering", name, msgspec.to_builtins(offering)))
    hosts = [
        (host, await ensure(parts, Wanted("infra.host", host.name, {"pod": host.pod.name})))
        for host in site.topology.hosts
    ]
    await ensure_images(parts, say)
    await ensure_context(started, NAME)
    return hosts


async def _token(started: Started, site: Site, host: Host, row: Resource) -> str:
    """Return a join token for a host's agent; empty when it has joined this cloud already."""
    known = Identity.load(site.settings(host).identity)
    if known is not None and (known.host, known.server) == (row.id, SERVER_URL):
        return ""
    return (await started.parts.joining.token(SYSTEM, row, NAME)).token


async def _until_ready(started: Started, hosts: list[Resource], began: float, say: Say) -> None:
    """Return once every host has reported since ``began``, and hosts, pools and images are ready."""
    store, told = started.parts.store, 0
    with started.parts.hub.watch(
        ("kind", "infra.host"), ("kind", "storage.pool"), ("kind", "storage.image")
    ) as changes:
        while True:
            ready = 0
            for host in hosts:
                seen = await store.fetch(sql.PRESENCE, host=host.id)
                condition = (await store.get(host.id)).ready
                heard = bool(seen) and seen[0][0] >= began
                ready += heard and condition is not None and condition.status == "true"
            if ready > told:
                told = ready
                say(f"{ready} of {len(hosts)} hosts ready")
            if ready == len(hosts) and not await _waits(started):
                return
            await changes.wait(1.0)


async def _waits(started: Started) -> bool:
    """Tell whether a pool, or an image of the project, is not ready."""
    store = started.parts.store
    for status in ("false", "unknown"):
        if await store.list_rows(Filter(kind="storage.pool", ready=status), limit=1):
            return True
    images = [await store.find("storage.image", "", name) for name in STANDARD]
    return any(image is None or image.ready is None or image.ready.status != "true" for image in images)


async def _look_after(site: Site, children: dict[str, Child], everyone: asyncio.Event) -> None:
    """Let what ended go; its user may have killed it. Raises: Rejected when that is before ``everyone`` is ready."""
    while True:
        for name in [name for name, child in children.items() if child.poll() is not None]:
            del children[name]
            if not everyone.is_set():
                words = last_words(site.log(name))
                raise Rejected(f"{name} ended while the lab was starting; its log {site.log(name)} says: {words}")
        await asyncio.sleep(LOOK_EVERY_S)


def _note(data: Path, url: str) -> None:
    own = identify(os.getpid())
    assert own is not None  # we run
    Running(pid=own.pid, url=url, start_ticks=own.start_ticks).save(data)


@contextlib.contextmanager
def _sole_lab(data: Path) -> Iterator[None]:
    """Hold the lab's folder for the block. Raises: Rejected when another process has it."""
    descriptor = os.open(data / "lab.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Rejected(f"another lab runs from {data}; stop it with `pileus lab stop`", code="in-use") from None
    finally:
        os.close(descriptor)
