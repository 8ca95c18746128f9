"""Hosts with guests, simulated and real; the real one's QEMU is a stand-in that behaves as its socket chardev does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pileus.drivers.host.guest.base import Guest
from pileus.drivers.host.guest.fake import FakeGuest, GuestWorld
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.paths import HostPaths

MACHINE = "0197a1b2-vm"


class Rig(Protocol):
    """A host on which one machine may run, and the agents that come and go."""

    def guest(self) -> Guest:
        """A new agent's channel."""

    async def start(self) -> None:
        """Run the machine."""

    async def stop(self) -> None:
        """End its process."""

    async def print(self, text: bytes) -> None:
        """Let the guest print; returns when the text is in the log."""

    def typed(self) -> bytes:
        """What reached the guest so far."""

    async def until_typed(self, enough: Callable[[bytes], bool]) -> None:
        """Return when what reached the guest is ``enough``."""

    def log_bytes(self) -> int:
        """How much the host keeps of the console, in all parts."""


class FakeRig:
    def __init__(self) -> None:
        self.on = False
        self.world = GuestWorld(running=lambda machine: self.on and machine == MACHINE)

    def guest(self) -> Guest:
        return FakeGuest(self.world)

    async def start(self) -> None:
        self.on = True

    async def stop(self) -> None:
        self.on = False
        self.world.end(MACHINE)

    async def print(self, text: bytes) -> None:
        self.world.print(MACHINE, text)

    def typed(self) -> bytes:
        return self.world.typed.get(MACHINE, b"")

    async def until_typed(self, enough: Callable[[bytes], bool]) -> None:
        assert enough(self.typed())

    def log_bytes(self) -> int:
        return len(self.world.logs.get(MACHINE, b"")) + len(self.world.older.get(MACHINE, b""))


class SocketChardev:
    """As QEMU's ``-chardev socket,server=on,wait=off,logfile=…,logappend=on``: one client, the next one waits."""

    def __init__(self, socket: Path, log: Path) -> None:
        self.typed = b""
        self.heard = asyncio.Condition()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._socket = socket
        self._client: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        if self._client is not None:
            self._client.close()
        self._socket.unlink()
        os.close(self._log)

    def print(self, text: bytes) -> None:
        os.write(self._log, text)
        if self._client is not None:
            self._client.write(text)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._turn:
            self._client = writer
            with contextlib.suppress(ConnectionError):
                while text := await reader.read(4096):
                    async with self.heard:
                        self.typed += text
                        self.heard.notify_all()
            self._client = None
            writer.close()


class RealRig:
    def __init__(self, paths: HostPaths) -> None:
        self.paths = paths
        self.chardev: SocketChardev | None = None
        self._typed = b""
        paths.machine(MACHINE).mkdir(parents=True)
        paths.machine_run(MACHINE).mkdir(parents=True)

    def guest(self) -> Guest:
        return GuestChannel(self.paths)

    async def start(self) -> None:
        self.chardev = SocketChardev(self.paths.console_socket(MACHINE), self.paths.console_log(MACHINE))
        await self.chardev.open()

    async def stop(self) -> None:
        if self.chardev is not None:
            self._typed += self.chardev.typed
            await self.chardev.close()
            self.chardev = None

    async def print(self, text: bytes) -> None:
        assert self.chardev is not None
        self.chardev.print(text)

    def typed(self) -> bytes:
        return self._typed + (self.chardev.typed if self.chardev else b"")

    async def until_typed(self, enough: Callable[[bytes], bool]) -> None:
        assert self.chardev is not None
        async with asyncio.timeout(20), self.chardev.heard:
            await self.chardev.heard.wait_for(lambda: enough(self.typed()))

    def log_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.paths.machine(MACHINE).glob("console.log*"))


def read_iso(image: str, folder: Path) -> dict[str, bytes]:
    """Return the files of an ISO by their Rock Ridge names."""
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", str(folder)], check=True, capture_output=True
    )
    return {file.name: file.read_bytes() for file in folder.iterdir()}
