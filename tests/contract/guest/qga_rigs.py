"""QEMU's real guest agent without a VM, as a user who may change nothing of this machine; and agents that do harm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pileus.image.packages import candidates, default_cache, fetch, library_packages, unpack
from pileus.image.programs import LIBRARIES, find

LIMIT_S = 120
NOBODY = 65534

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


class RealAgent:
    """An agent at ``socket``; what its guest keeps lies in ``folder``."""

    def __init__(self, program: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "agent"
        self._program = program
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, *, without: Sequence[str] = ()) -> None:
        """Start it; returns when it listens."""
        self.socket.unlink(missing_ok=True)
        argv = [*self._program, "--method=unix-listen", f"--path={self.socket}", f"--statedir={self.folder}"]
        argv += ["-b", ",".join((*HARMFUL, *without))]
        if os.geteuid() == 0:
            drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
            argv = [*drop, "--bounding-set=-all", *argv]
            os.chown(self.folder, NOBODY, NOBODY)
        output = asyncio.subprocess.DEVNULL
        self._child = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=output)
        async with asyncio.timeout(LIMIT_S):
            while not self._listens():
                assert self._child.returncode is None, "the agent ended"
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """End it as a crash does; a command that it started goes on."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    def _listens(self) -> bool:
        if not self.socket.exists():
            return False
        # A connection would be the one that it serves; the kernel's table tells as well.
        lines = Path("/proc/net/unix").read_text().splitlines()
        return any(line.endswith(f" {self.socket}") and line.split()[3] == "00010000" for line in lines)


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


def can_connect(path: Path) -> bool:
    """Tell whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as wire:
        return wire.connect_ex(str(path)) == 0


def has_setpriv() -> bool:
    """Tell whether the agent can be kept from this machine."""
    return os.geteuid() != 0 or shutil.which("setpriv") is not None
