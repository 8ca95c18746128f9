"""One QEMU process that boots the tiny image under TCG, driven by its serial console and QMP. No network of the host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from pileus.drivers.host.guest.base import Console, Seed
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.paths import HostPaths

LIMIT_S = 180
"""Boots take 3 s on an idle machine; this is for one where much else runs."""

MAC = "52:54:00:12:34:56"
NAME = "tiny-1"


class TinyMachine:
    """A machine with a volume of 1 GiB over the image, and a seed; it may be started many times."""

    def __init__(self, image: Path, paths: HostPaths, *, prefix: Sequence[str] = ()) -> None:
        self.image = image
        self.record: dict[str, Any] = json.loads((image / "image.json").read_bytes())
        self.paths = paths
        self.guest = GuestChannel(paths)
        self.disk = paths.state / "root.qcow2"
        self.prefix = list(prefix)
        self.said = ""
        """What the console printed since the last start."""
        self.seconds_to: dict[str, float] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._console: Console | None = None
        self._qmp = QMPClient(NAME)
        self._started = 0.0
        paths.machine(NAME).mkdir(parents=True)
        paths.machine_run(NAME).mkdir(parents=True)
        backing = str(image / self.record["disk"])
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, str(self.disk), "1G"]
        subprocess.run(make, check=True)

    async def write_seed(self, seed: Seed) -> None:
        """Put the seed where the next start finds it."""
        await self.guest.write_seed(NAME, seed)

    async def start(self, *extra: str, direct: bool = True, machine: str = "q35", memory_mib: int = 128) -> None:
        """Start QEMU with the seed, if there is one, as a virtio disk; ``extra`` are more words of its command line."""
        seed = self.paths.seed(NAME)
        sockets = [self._listen(self.paths.console_socket(NAME)), self._listen(self._qmp_path)]
        fds = [one.fileno() for one in sockets]
        log = self.paths.console_log(NAME)
        argv = [*self.prefix, "qemu-system-x86_64", "-M", machine, "-accel", "tcg,tb-size=64", "-cpu", "max"]
        argv += ["-m", str(memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", "on"]
        # wait=on: the machine starts once the console is watched, so that nothing it prints is missed.
        argv += ["-chardev", f"socket,id=con,fd={fds[0]},server=on,wait=on,logfile={log},logappend=on"]
        argv += ["-serial", "chardev:con", "-chardev", f"socket,id=qmp,fd={fds[1]},server=on,wait=off"]
        argv += ["-mon", "chardev=qmp,mode=control"]
        argv += ["-drive", f"if=none,id=root,file={self.disk},format=qcow2", "-device", "virtio-blk-pci,drive=root"]
        if seed.exists() and "no-seed" not in extra:
            argv += ["-drive", f"if=none,id=seed,file={seed},format=raw,readonly=on"]
            argv += ["-device", "virtio-blk-pci,drive=seed"]
        if direct:
            argv += ["-kernel", str(self.image / self.record["kernel"]), "-initrd"]
            argv += [str(self.image / self.record["initrd"]), "-append", self.record["append"]]
        argv += [word for word in extra if word != "no-seed"]
        self.said = ""
        self._process = await asyncio.create_subprocess_exec(*argv, pass_fds=fds)
        for one in sockets:
            one.close()
        self._started = asyncio.get_running_loop().time()
        self._console = await self.guest.console(NAME)
        self._qmp = QMPClient(NAME)
        await self._qmp.connect(str(self._qmp_path))

    async def until(self, wanted: str) -> re.Match[str]:
        """Return the match of the pattern in what the console printed, as soon as there is one."""
        assert self._console is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                while (match := re.search(wanted, self.said, re.MULTILINE)) is None:
                    part = await self._console.read()
                    assert part, f"the machine ended without {wanted!r}:\n{self.said[-3000:]}"
                    self.said += part.decode(errors="replace").replace("\r", "")
        except TimeoutError:
            raise AssertionError(f"no {wanted!r} within {LIMIT_S} s:\n{self.said[-3000:]}") from None
        self.seconds_to[wanted] = asyncio.get_running_loop().time() - self._started
        return match

    async def ready(self) -> str:
        """Return the host name in the line that says the machine is up."""
        return (await self.until(r"^PILEUS-READY (\S+) [0-9.]+$"))[1]

    async def shell(self, command: str) -> str:
        """Return what a command typed at the console's prompt printed."""
        assert self._console is not None
        # The shell asks the terminal for the cursor's place (ESC [6n) after its prompt.
        await self.until(r"^root@\S+:\S+# (\x1b\[6n)?$")
        # The marks are not in the echo of the line that was typed, only in what the line prints.
        await self._console.write(f"echo mark-''start; {command}; echo mark-''end\n".encode())
        await self.until(r"mark-end")
        printed = self.said.partition("mark-start\n")[2].partition("mark-end")[0]
        self.said = self.said.partition("mark-end")[2]
        return printed

    async def qmp(self, command: str, **arguments: object) -> object:
        """Return QEMU's answer."""
        return await self._qmp.execute(command, arguments or None)

    async def press_power(self) -> float:
        """Press the power button; return the seconds until QEMU has ended, with exit code 0."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.qmp("system_powerdown")
        assert self._process is not None
        async with asyncio.timeout(LIMIT_S):
            assert await self._process.wait() == 0
        ended = loop.time()
        await self.stop()
        return ended - began

    async def stop(self) -> None:
        """End QEMU as a power cut does."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None
            # QMP says that the other side is gone, which is what was wanted.
            with contextlib.suppress(EOFError, ConnectionError):
                await self._qmp.disconnect()
        if self._console is not None:
            await self._console.close()
            self._console = None

    @property
    def _qmp_path(self) -> Path:
        return self.paths.machine_run(NAME) / "qmp"

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(2)
        return listener
