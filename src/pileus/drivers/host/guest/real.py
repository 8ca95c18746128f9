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
from pileus.drivers.host.guest.base import Console, NodeFact, Seed
from pileus.drivers.host.guest.console import SocketConsole, open_console
from pileus.drivers.host.guest.iso import make_iso
from pileus.drivers.host.guest.seed import seed_files
from pileus.drivers.host.paths import HostPaths

SEED_MODE = 0o640
"""Not for everybody: user data may hold secrets. The hypervisor hands the file to the machine's own user."""

_MACHINE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class GuestChannel:
    """Guests of the host whose files lie under ``paths``; one process at a time owns it."""

    def __init__(self, paths: HostPaths) -> None:
        self._paths = paths
        self._consoles: dict[str, SocketConsole] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with a machine's id whenever its NodeFact changed."""
        self._listeners.append(listener)

    async def nodes(self) -> dict[str, NodeFact]:
        """Return what is known of every attached machine's node."""
        return {}

    async def write_seed(self, machine: str, seed: Seed) -> str:
        """Write the machine's NoCloud ISO and return its path.

        Raises: DriverError (BadSeed, SeedFailed), MissingTool.
        """
        files = seed_files(seed)
        _check(machine)
        image = self._paths.seed(machine)
        async with self._lock(machine):
            folder = image.with_name("seed.new.d")
            fresh = image.with_name("seed.new.iso")
            try:
                await asyncio.to_thread(_lay_out, folder, files)
                await make_iso(folder, "cidata", fresh)
                await asyncio.to_thread(_put, fresh, image)
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
        async with self._lock(machine):
            await self._close_console(machine)
            await asyncio.to_thread(self._remove, machine)

    async def _close_console(self, machine: str) -> None:
        former = self._consoles.pop(machine, None)
        if former is not None:
            await former.close()

    def _lock(self, machine: str) -> asyncio.Lock:
        return self._locks.setdefault(machine, asyncio.Lock())

    def _rotate(self, limit_bytes: int) -> None:
        for folder in self._paths.machine("x").parent.glob("*"):
            if _MACHINE.fullmatch(folder.name):
                logs.rotate(self._paths.console_log(folder.name), limit_bytes)

    def _remove(self, machine: str) -> None:
        log = self._paths.console_log(machine)
        for file in (self._paths.seed(machine), log, *logs.parts(log)):
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


def _put(fresh: Path, image: Path) -> None:
    os.chmod(fresh, SEED_MODE)
    descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(image)


def _clear(folder: Path, fresh: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    fresh.unlink(missing_ok=True)
