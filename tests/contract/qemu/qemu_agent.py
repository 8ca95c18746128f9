"""An agent in a process of its own, to be killed: starts the machines named by argument and then waits.

Usage: qemu_agent.py STATE RUN CUT SPEC...; CUT is ``none``, or dies ``before`` or ``after`` the spawn of QEMU.
Or: qemu_agent.py STATE RUN copy TARGET SPEC: copies the first disk of the machine, slowly, and says when it does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu import launch
from pileus.drivers.host.qemu.base import MachineSpec
from pileus.drivers.host.qemu.jail import spawn
from pileus.drivers.host.qemu.qmp import Monitor
from pileus.drivers.host.qemu.real import QemuHypervisor


def cut_at(where: str) -> None:
    def dying(argv: Sequence[str], fds: Sequence[int], pid_file: Path, log: Path) -> int:
        if where == "after":
            spawn(argv, fds, pid_file, log)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    vars(launch)["spawn"] = dying


async def no_tap(tap: str) -> int:
    raise AssertionError(tap)


async def copy(state: str, run: str, target: str, text: str) -> None:
    """Copy at 1 MiB in a second, so that there is a middle."""
    spec = msgspec.json.decode(text, type=MachineSpec)
    agent = QemuHypervisor(HostPaths(state=Path(state), run=Path(run)), no_tap, "tcg")
    await agent.open()
    await agent.start(spec)
    execute = Monitor.execute

    async def slowly(monitor: Monitor, name: str, arguments: Any = None, timeout_s: float | None = None) -> Any:
        slow = {**arguments, "speed": 1 << 20} if name == "blockdev-backup" else arguments
        answer = await execute(monitor, name, slow, timeout_s)
        if name == "blockdev-backup":
            print("COPYING", flush=True)
        return answer

    Monitor.execute = slowly  # type: ignore[method-assign, assignment]
    await agent.copy_disk(spec.id, spec.disks[0].id, target)


async def main(state: str, run: str, cut: str, *specs: str) -> None:
    if cut == "copy":
        await copy(state, run, *specs)
    if cut != "none":
        cut_at(cut)
    agent = QemuHypervisor(HostPaths(state=Path(state), run=Path(run)), no_tap, "tcg")
    await agent.open()
    await asyncio.gather(*(agent.start(msgspec.json.decode(spec, type=MachineSpec)) for spec in specs))
    print("READY", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
