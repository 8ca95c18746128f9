"""QEMU's real guest agent without a VM, as a user who may change nothing of this machine; and agents that do harm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tty
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from pileus.image.packages import candidates, default_cache, fetch, library_packages, unpack
from pileus.image.programs import LIBRARIES, find

LIMIT_S = 120
NOBODY = 65534
PORT_BYTES = 4096

HARMFUL = (
    *("guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid", "guest-set-time"),
    *("guest-set-user-password", "guest-set-vcpus", "guest-set-memory-blocks", "guest-fsfreeze-freeze", "guest-fstrim"),
    *("guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys"),
)


def unpacked_agent(folder: Path) -> list[str]:
    """Return how to start Debian's agent, taken out of its package; nothing is installed. Raises: BuildError."""
    packages = candidates(["qemu-guest-agent", *library_packages(["qemu-guest-agent"])])
    unpack(fetch(packages, default_cache(), print), folder)
    libraries = f"{folder / LIBRARIES}:{folder / 'usr' / LIBRARIES}"
    linker = find(folder, f"{LIBRARIES}/ld-linux-x86-64.so.2")
    return [str(linker), "--library-path", libraries, str(find(folder, "usr/sbin/qemu-ga"))]


class Port:
    """The port of a machine as QEMU keeps it: open whoever comes and goes at its ends, for one client at a time.

    The agent's own ``unix-listen`` is no stand-in for it: a client that goes without reading an answer leaves it an
    error to read there, and the agent then ends itself (QEMU, qga/main.c: channel_event_cb). A guest's port has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = ""
        """The guest's end of it."""
        self._host = self._guest = -1
        self._serving: asyncio.Task[None] | None = None

    async def open(self, owner: int) -> None:
        """Listen at ``path``; the user ``owner`` may open the guest's end."""
        # The guest's end stays open here too: what is said while no agent runs waits for the next one.
        self._host, self._guest = os.openpty()
        tty.setraw(self._guest)
        os.fchown(self._guest, owner, -1)
        os.set_blocking(self._host, False)
        self.device = os.ttyname(self._guest)
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(self.path))
        listener.listen()
        self._serving = asyncio.create_task(self._serve(listener))

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            os.close(self._host)
            os.close(self._guest)

    async def _serve(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await asyncio.get_running_loop().sock_accept(listener)
                with client:
                    await _until_one_ends(self._carry_calls(client), self._carry_answers(client))

    async def _carry_calls(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while call := await loop.sock_recv(client, PORT_BYTES):
            while call:
                try:
                    call = call[os.write(self._host, call) :]
                except BlockingIOError:
                    await _event(self._host, loop.add_writer, loop.remove_writer)

    async def _carry_answers(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                answer = os.read(self._host, PORT_BYTES)
            except BlockingIOError:
                await _event(self._host, loop.add_reader, loop.remove_reader)
            else:
                await loop.sock_sendall(client, answer)


async def _until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _event(end: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]) -> None:
    """Return when the end of a port can be read, or be written to."""
    came = asyncio.Event()
    add(end, came.set)
    try:
        await came.wait()
    finally:
        remove(end)


class RealAgent:
    """An agent behind a port at ``folder/agent``; what its guest keeps lies in ``folder`` too."""

    def __init__(self, program: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self._port = Port(folder / "agent")
        self._program = program
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, *, without: Sequence[str] = ()) -> None:
        """Start it; it takes what was said at its port before."""
        is_root = os.geteuid() == 0
        if not self._port.device:
            await self._port.open(NOBODY if is_root else os.geteuid())
        argv = [*self._program, "--method=virtio-serial", f"--path={self._port.device}", f"--statedir={self.folder}"]
        argv += ["-b", ",".join((*HARMFUL, *without))]
        if is_root:
            drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
            argv = [*drop, "--bounding-set=-all", *argv]
            os.chown(self.folder, NOBODY, NOBODY)
        output = asyncio.subprocess.DEVNULL
        self._child = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=output)

    async def kill(self) -> None:
        """End it as a crash does; a command that it started goes on, and its port stays."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    async def close(self) -> None:
        """End it and its port."""
        await self.kill()
        await self._port.close()

    @property
    def runs(self) -> bool:
        """Whether it did not end."""
        return self._child is not None and self._child.returncode is None


Answers = Callable[[dict[str, Any]], bytes]
"""What an agent says to a call."""


class FalseAgent:
    """A program that listens at ``socket`` and answers as ``answers`` says."""

    def __init__(self, folder: Path, answers: Answers) -> None:
        self.socket = folder / "agent"
        self.connections = 0
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while line := await reader.readline():
                writer.write(self._answers(json.loads(line.lstrip(b"\xff"))))
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()


def honest(call: dict[str, Any], **special: object) -> bytes:
    """Answer as an agent does, but for the calls in ``special`` (``guest_exec=…``)."""
    name = call["execute"].replace("-", "_")
    usual: dict[str, object] = {
        "guest_sync_delimited": call.get("arguments", {}).get("id"),
        "guest_ping": {},
        "guest_info": {
            "version": "7.2",
            "supported_commands": [
                {"name": f"guest-{name}", "enabled": True, "success-response": True}
                for name in ("file-open", "file-read", "file-write", "file-close", "exec", "exec-status")
            ],
        },
        "guest_file_open": 1000,
        "guest_file_close": {},
        "guest_file_read": {"count": 0, "buf-b64": "", "eof": True},
        "guest_file_write": {"count": 0, "eof": False},
        "guest_exec": {"pid": 7},
        "guest_exec_status": {"exited": True, "exitcode": 0},
    }
    said = {"return": (usual | special)[name], "id": call["id"]}
    return (b"\xff" if name == "guest_sync_delimited" else b"") + json.dumps(said).encode() + b"\n"


async def leave_unread(path: Path) -> None:
    """Ask whoever is behind the port something, and go when the answer is there, without reading it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(path))
        wire.sendall(b'{"execute":"guest-ping"}\n')
        async with asyncio.timeout(LIMIT_S):
            await _event(wire.fileno(), loop.add_reader, loop.remove_reader)


def has_setpriv() -> bool:
    """Tell whether the agent can be kept from this machine."""
    return os.geteuid() != 0 or shutil.which("setpriv") is not None
