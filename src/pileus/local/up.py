"""``pileus up``: the server and this machine's agent in one process, until told to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pileus.agent import run as agent
from pileus.drivers.host.qemu.procfs import identify, read_stat
from pileus.local.furnish import furnish
from pileus.server.run import ServerSettings, Started, serve


class UpSettings(Struct, frozen=True, kw_only=True):
    """Where the cloud keeps its state and listens."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 7443
    database: str = ""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"

    @property
    def agent(self) -> agent.AgentSettings:
        """The settings of this machine's agent."""
        return agent.AgentSettings(data=self.data, accelerator=self.accelerator)


class Running(Struct, frozen=True, kw_only=True):
    """A cloud that runs here, as noted in its data folder.

    ``start_ticks`` tells its process from a later one with the same number: a killed cloud leaves its note behind.
    """

    pid: int
    url: str
    start_ticks: int

    @staticmethod
    def load(data: Path) -> Running | None:
        """Return what is noted, if the process is alive."""
        try:
            noted = msgspec.json.decode((data / "running.json").read_bytes(), type=Running)
        except (OSError, msgspec.DecodeError):
            return None
        stat = read_stat(noted.pid)
        return noted if stat is not None and stat.identity.start_ticks == noted.start_ticks else None

    def save(self, data: Path) -> None:
        """Note it."""
        temporary = data / "running.json.tmp"
        temporary.write_bytes(msgspec.json.encode(self))
        temporary.replace(data / "running.json")


async def up(settings: UpSettings, say: Callable[[str], None], ready: Callable[[Started], None]) -> None:
    """Run the cloud until SIGTERM; ``ready`` is called when VMs can be made."""
    answering: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    server_settings = ServerSettings(
        data=settings.data, host=settings.host, port=settings.port, database=settings.database
    )
    server = asyncio.create_task(serve(server_settings, answering.set_result), name="server")
    waited: set[asyncio.Future[Any]] = {server, answering}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
        await server  # raises what stopped it
        return
    started = answering.result()
    try:
        say(f"server answers at {started.url}")
        await furnish(started, settings.agent.identity, say)
        say("starting the agent: Open vSwitch, accelerator probe")
        joined = asyncio.Event()
        host = asyncio.create_task(agent.run(settings.agent, joined.set), name="agent")
        waiting = asyncio.create_task(_ready(joined, started, settings, ready))
        done, _ = await asyncio.wait({server, host, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            await waiting
            await asyncio.wait({server, host}, return_when=asyncio.FIRST_COMPLETED)
        await _end(host, waiting)
    finally:
        started.stop()
        await server
        (settings.data / "running.json").unlink(missing_ok=True)


async def _ready(
    joined: asyncio.Event, started: Started, settings: UpSettings, ready: Callable[[Started], None]
) -> None:
    """Say that the cloud is ready once host, pool and image are."""
    await joined.wait()
    store = started.parts.store
    with started.parts.hub.watch(("all", "")) as changes:
        while True:
            rows = [
                await store.find(kind, "", name)
                for kind, name in (("infra.host", "local"), ("storage.pool", "local"), ("storage.image", "tiny"))
            ]
            if all(row is None or (row.ready is not None and row.ready.status == "true") for row in rows):
                break
            await changes.wait(1.0)
    own = identify(os.getpid())
    assert own is not None  # we run
    Running(pid=own.pid, url=started.url, start_ticks=own.start_ticks).save(settings.data)
    ready(started)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """End the tasks; what one of them failed with is raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
