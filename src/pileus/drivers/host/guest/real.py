"""The way into real guests: seeds as ISO files, consoles over QEMU's unix sockets, logs in the machines' folders."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest import logs
from pileus.drivers.host.guest.base import (
    ChannelForm,
    Console,
    Document,
    GuestAnswer,
    GuestRequest,
    NodeFact,
    Seed,
    Stream,
)
from pileus.drivers.host.guest.carriers import Exchange
from pileus.drivers.host.guest.channels import Channels, TcpStream, kept_key
from pileus.drivers.host.guest.console import SocketConsole, open_console
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.iso import make_iso
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.drivers.host.guest.seed import seed_files
from pileus.drivers.host.paths import HostPaths
from pileus.node.nics import Nic
from pileus.node.seed import SEED_FILE, seed_text
from pileus.node.seed import Seed as ChannelSeed

SEED_MODE = 0o640
"""Not for everybody: user data may hold secrets. The hypervisor hands the file to the machine's own user."""

SECRET_MODE = 0o600
"""A seed with the key of a backchannel."""

_MACHINE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class GuestChannel:
    """Guests of the host whose files lie under ``paths``; one process at a time owns it."""

    def __init__(self, paths: HostPaths, exchange: Exchange | None = None, limits: Limits | None = None) -> None:
        """``exchange`` opens the control path of a switch port; without it there are no channels of form ``nic``."""
        self._paths = paths
        self._channels = Channels(paths, exchange, limits or Limits())
        self._consoles: dict[str, SocketConsole] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def write_seed(self, machine: str, seed: Seed) -> str:
        """Write the machine's NoCloud ISO and return its path.

        Raises: DriverError (BadSeed, SeedFailed), MissingTool.
        """
        files = seed_files(seed)
        _check(machine)
        if seed.channel:
            files |= await asyncio.to_thread(self._channel_file, machine, seed)
        image = self._paths.seed(machine)
        async with self._lock(machine):
            folder = image.with_name("seed.new.d")
            fresh = image.with_name("seed.new.iso")
            try:
                await asyncio.to_thread(_lay_out, folder, files)
                await make_iso(folder, "cidata", fresh)
                await asyncio.to_thread(_put, fresh, image, SECRET_MODE if seed.channel else SEED_MODE)
            finally:
                await asyncio.to_thread(_clear, folder, fresh)
        return str(image)

    async def log(self, machine: str, tail_bytes: int) -> bytes:
        """Return the end of the console's log, over rotations."""
        _check(machine)
        return await asyncio.to_thread(logs.tail, self._paths.console_log(machine), tail_bytes)

    async def rotate(self, limit_bytes: int) -> None:
        """Keep each console log, with its older part, within twice ``limit_bytes``."""
        await asyncio.to_thread(self._rotate, limit_bytes)

    async def console(self, machine: str) -> Console:
        """Open the serial console; who had it reads its end. Raises DriverError (NoConsole)."""
        _check(machine)
        async with self._lock(machine):
            await self._close_console(machine)
            # QEMU serves one client and leaves the next one waiting, so the former must be gone first.
            console = await open_console(self._paths.console_socket(machine), machine)
            self._consoles[machine] = console
            return console

    async def remove(self, machine: str) -> None:
        """Remove seed and logs, and the machine's folder when nothing else is in it."""
        _check(machine)
        await self._channels.detach(machine)
        async with self._lock(machine):
            await self._close_console(machine)
            await asyncio.to_thread(self._remove, machine)

    async def attach(self, machine: str, form: ChannelForm, port: str = "", allowed: Allowed | None = None) -> None:
        """Hold the machine's backchannel from now on. Raises DriverError (NoKey: its seed had no channel)."""
        _check(machine)
        await self._channels.attach(machine, form, port, allowed)

    async def detach(self, machine: str) -> None:
        """Let go of the machine's backchannel."""
        await self._channels.detach(machine)

    async def nodes(self) -> dict[str, NodeFact]:
        """Return what is known of every attached machine's node."""
        return self._channels.facts()

    async def configure(self, machine: str, document: Document) -> None:
        """Let the node run ``document``. Raises: DriverError (NodeSilent, NodeRefused)."""
        await self._channels.get(machine).configure(document)

    async def request(self, machine: str, request: GuestRequest) -> GuestAnswer:
        """Let the node do ``request`` once. Raises: DriverError (NodeSilent, BadRequest)."""
        return await self._channels.get(machine).request(request)

    async def poll(self, machine: str, timeout_s: float) -> NodeFact:
        """Let the node look at its role now, and return what it says then. Raises: DriverError (NodeSilent)."""
        return await self._channels.get(machine).poll(timeout_s)

    def heard_s(self, machine: str) -> float:
        """Return for how many seconds nothing of the node was heard; -1.0: never anything."""
        return self._channels.heard_s(machine)

    async def connect(self, machine: str, address: str, port: int, timeout_s: float = 10.0) -> Stream:
        """Let the node open a TCP connection. Raises: DriverError (NodeSilent, ConnectRefused)."""
        return TcpStream(await self._channels.get(machine).connect(address, port, timeout_s))

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with a machine's id whenever its NodeFact changed."""
        self._channels.listeners.append(listener)

    def hint(self, machine: str) -> None:
        """The machine may have started, ended or booted: look at its backchannel now."""
        self._channels.hint(machine)

    async def _close_console(self, machine: str) -> None:
        former = self._consoles.pop(machine, None)
        if former is not None:
            await former.close()

    def _lock(self, machine: str) -> asyncio.Lock:
        return self._locks.setdefault(machine, asyncio.Lock())

    def _channel_file(self, machine: str, seed: Seed) -> dict[str, bytes]:
        key = kept_key(self._paths.channel_key(machine))
        mac = seed.nics[0].mac if seed.nics else ""
        nics = tuple(Nic(nic.mac, nic.addresses, nic.gateway or "", nic.dns) for nic in seed.nics)
        return {SEED_FILE: seed_text(ChannelSeed(machine, key, seed.channel, seed.role, mac, nics))}

    def _rotate(self, limit_bytes: int) -> None:
        for folder in self._paths.machine("x").parent.glob("*"):
            if _MACHINE.fullmatch(folder.name):
                logs.rotate(self._paths.console_log(folder.name), limit_bytes)

    def _remove(self, machine: str) -> None:
        log = self._paths.console_log(machine)
        for file in (self._paths.seed(machine), self._paths.channel_key(machine), log, *logs.parts(log)):
            file.unlink(missing_ok=True)
        folder = self._paths.machine(machine)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _check(machine: str) -> None:
    if _MACHINE.fullmatch(machine) is None:
        raise DriverError("BadName", f"{machine[:80]!r} is no machine id")


def _lay_out(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _put(fresh: Path, image: Path, mode: int) -> None:
    os.chmod(fresh, mode)
    descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(image)


def _clear(folder: Path, fresh: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    fresh.unlink(missing_ok=True)
