"""A QEMU process that runs: its end is seen at once, its monitor can be asked, and it can be ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import Exit, ExitReason
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.procfs import ProcessId, open_pidfd
from pileus.drivers.host.qemu.qmp import Monitor

log = logging.getLogger(__name__)

QUIT_TIMEOUT_S = 5.0
"""QEMU flushes its disks before it quits; a process that takes longer is killed."""

STATUS_TIMEOUT_S = 2.0

_ENDED: Mapping[str, ExitReason] = {"shutdown": "guest-shutdown", "guest-panicked": "guest-panic"}


class Live:
    """One process; ``gone`` is set when it has ended and its end is written down. Make it with ``watch``."""

    def __init__(self, folder: MachineFolder, process: ProcessId, pidfd: int, hint: Callable[[], None]) -> None:
        self.folder = folder
        self.process = process
        self.gone = asyncio.Event()
        self.monitor = Monitor(folder.qmp_socket, self._on_event)
        self.on_released: Callable[[str], None] = lambda device: None
        self._pidfd = pidfd
        self._hint = hint
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    async def status(self) -> Literal["running", "paused", "disk-error", "ended"]:
        """Return what the process is doing now; a guest that ended is cleaned up first.

        A process that does not answer counts as running: it may be, and nobody may start another.
        """
        try:
            status = str((await self.monitor.execute("query-status", timeout_s=STATUS_TIMEOUT_S))["status"])
        except DriverError:
            return "ended" if self.gone.is_set() else "running"
        if status in _ENDED:
            await self.end(_ENDED[status])
            return "ended"
        if status == "io-error":
            return "disk-error"
        return "running" if status in ("running", "suspended") else "paused"

    async def settle(self) -> None:
        """Clean up after a guest that ended."""
        await self.status()

    async def end(self, reason: ExitReason) -> None:
        """End the process and return when it is gone; a reason that was announced earlier stays."""
        if self.gone.is_set():
            return
        if self.folder.record.ending is None:
            self.folder.change(ending=reason)
        if not await self._quit():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self.gone.wait()

    async def wait_gone(self, timeout_s: float) -> bool:
        """Return whether the process ended within ``timeout_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.gone.wait()
        return self.gone.is_set()

    def spawn_task(self, work: Any) -> None:
        """Run ``work`` (a coroutine) beside everything else; it is cancelled by ``close``."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop watching; the process goes on."""
        self._stop_watching()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Not cancelled: the client would leave errors of its own tasks that nobody fetches.
        await (asyncio.shield(self._closing) if self._closing else self.monitor.close())

    async def _quit(self) -> bool:
        """Ask the process to quit; return whether it did."""
        try:
            await self.monitor.execute("quit", timeout_s=STATUS_TIMEOUT_S)
        except DriverError:
            # Gone before it answered, or stuck: then there is nothing to wait for.
            return await self.wait_gone(0.1)
        return await self.wait_gone(QUIT_TIMEOUT_S)

    def _on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name in ("SHUTDOWN", "GUEST_PANICKED"):
            self.spawn_task(self.settle())
        elif name == "DEVICE_DELETED" and "device" in fields:
            self.on_released(str(fields["device"]))
        elif name in ("STOP", "RESUME", "VSERPORT_CHANGE"):
            self._hint()

    def _on_end(self) -> None:
        found = self._exit()
        self._stop_watching()
        self.gone.set()  # who waits for it runs later, when the end is written down
        try:
            self.folder.note_exit(found)
        except OSError as error:
            log.warning("the end of machine %s cannot be written down: %s", self.folder.machine, error.strerror)
        self._closing = asyncio.get_running_loop().create_task(self.monitor.close())
        self._hint()

    def _exit(self) -> Exit:
        words = self.folder.last_words()
        try:
            child = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            child = None  # an earlier agent started it; the kernel does not tell us how it ended
        if child is not None and child.si_code == os.CLD_EXITED and child.si_status != 0:
            return Exit(reason="failed", at=time.time(), message=words or f"QEMU exited with {child.si_status}")
        if child is not None and child.si_code != os.CLD_EXITED:
            return Exit(reason="killed", at=time.time(), message=f"signal {child.si_status}")
        return Exit(reason="killed", at=time.time(), message=words)

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def watch(folder: MachineFolder, process: ProcessId, hint: Callable[[], None]) -> Live | None:
    """Return the process as watched from now on; None when it is gone already."""
    pidfd = open_pidfd(process)
    return None if pidfd is None else Live(folder, process, pidfd, hint)
