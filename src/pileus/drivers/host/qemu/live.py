"""A QEMU process that runs: its end is seen at once, its monitor can be asked, and it can be ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Literal

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.qemu.base import HUNG_S, Exit, ExitReason
from pileus.drivers.host.qemu.folder import MachineFolder
from pileus.drivers.host.qemu.procfs import ProcessId, open_pidfd
from pileus.drivers.host.qemu.qmp import Monitor

log = logging.getLogger(__name__)

QUIT_TIMEOUT_S = 5.0
"""QEMU flushes its disks before it quits; a process that takes longer is killed."""

KILL_TIMEOUT_S = 10.0
"""A process that a signal does not end by then is stuck in the kernel, on a disk that does not answer."""

GRACE_S = 0.05

UNANSWERED_S = 3600.0
"""One question waits this long for a process that is stopped: so its going on is heard at once, and costs nothing."""

Status = Literal["running", "paused", "disk-error", "ended", "hung", "unknown"]
"""``hung``: it has not answered for ``HUNG_S``. ``unknown``: it has not answered yet."""

Totals = tuple[int, int, int, int]
"""Of all disks: bytes read, bytes written, operations that read, operations that wrote."""
_TOTALS = ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations")

_ENDED: Mapping[str, ExitReason] = {"shutdown": "guest-shutdown", "guest-panicked": "guest-panic"}


class Live:
    """One process; ``gone`` is set when it has ended and its end is written down. Make it with ``watch``."""

    def __init__(self, folder: MachineFolder, process: ProcessId, pidfd: int, hint: Callable[[], None]) -> None:
        self.folder = folder
        self.process = process
        self.gone = asyncio.Event()
        self.monitor = Monitor(folder.qmp_socket, self._on_event)
        self.on_released: Callable[[str], None] = lambda device: None
        self.starts_until = 0.0
        """Until then (by the loop's clock) its silence is no sign: it is coming up."""
        self.disk_totals: Totals = (0, 0, 0, 0)
        """As counted last."""
        self._said = ""
        self._is_signalled = False
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._pidfd = pidfd
        self._hint = hint
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @property
    def known(self) -> Literal["running", "paused", "disk-error", "ended"]:
        """What the process said last; one that never said anything counts as running: nobody may start another."""
        if self.gone.is_set() or self._said in _ENDED:
            return "ended"
        if self._said == "io-error":
            return "disk-error"
        return "running" if self._said in ("", "running", "suspended") else "paused"

    @property
    def is_hung(self) -> bool:
        """Whether it has not answered for ``HUNG_S``."""
        return self.owes_s >= HUNG_S and asyncio.get_running_loop().time() >= self.starts_until

    @property
    def owes_s(self) -> float:
        """For how long an answer has been missing; 0.0 when none is."""
        is_asked = self._asking is not None and not self._asking.done()
        return asyncio.get_running_loop().time() - self._asked_at if is_asked else 0.0

    async def look(self, timeout_s: float = HUNG_S) -> Status:
        """Return what the process is doing now; whoever asks while an answer is missing waits for the same one."""
        loop = asyncio.get_running_loop()
        if self.gone.is_set():
            return "ended"
        if self._asking is None or self._asking.done():
            self._asked_at = loop.time()
            self._asking = self.spawn_task(self._ask())
        asking = self._asking
        left_s = min(timeout_s, self._asked_at + HUNG_S - loop.time())
        # The second wait is for an answer that is here already, and has not been read because our process was slow.
        for wait_s in (left_s, GRACE_S) if left_s > 0 else ():
            await asyncio.wait([asking], timeout=wait_s)
        if asking.done() or self.gone.is_set():
            return self.known
        return "hung" if self.is_hung else "unknown"

    async def status(self, timeout_s: float = HUNG_S) -> Status:
        """Return what the process is doing now; a guest that ended is cleaned up first."""
        status = await self.look(timeout_s)
        if self._said in _ENDED and not self.gone.is_set():
            await self.end("killed" if self._is_signalled else _ENDED[self._said])
        return status

    async def settle(self) -> None:
        """Clean up after a guest that ended."""
        # The first answer may be to a question of before.
        if await self.status() != "ended":
            await self.status()

    async def count(self, timeout_s: float) -> Totals:
        """Return what the guest read and wrote since the process started. Raises: DriverError (NoAnswer)."""
        totals = [0, 0, 0, 0]
        for device in await self.monitor.execute("query-blockstats", timeout_s=timeout_s):
            for index, key in enumerate(_TOTALS):
                totals[index] += int(device["stats"][key])
        self.disk_totals = (totals[0], totals[1], totals[2], totals[3])
        return self.disk_totals

    async def end(self, reason: ExitReason) -> None:
        """End the process and return when it is gone; a reason that was announced earlier stays.

        Raises: DriverError (NotGone).
        """
        if self.gone.is_set():
            return
        if self.folder.record.ending is None:
            self.folder.change(ending=reason)
        if not await self._quit():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if not await self.wait_gone(KILL_TIMEOUT_S):
                message = f"the process of machine {self.folder.machine} was killed and does not end: it is stuck"
                raise DriverError("NotGone", message)

    async def wait_gone(self, timeout_s: float) -> bool:
        """Return whether the process ended within ``timeout_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.gone.wait()
        return self.gone.is_set()

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside everything else; it is cancelled by ``close``."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
        if self.is_hung:
            return False
        try:
            await self.monitor.execute("quit", timeout_s=HUNG_S)
        except DriverError:
            # Gone before it answered, or stuck: then there is nothing to wait for.
            return await self.wait_gone(0.1)
        return await self.wait_gone(QUIT_TIMEOUT_S)

    async def _ask(self) -> None:
        """Ask what it does, and wait for as long as the answer takes; tell who was told less."""
        loop = asyncio.get_running_loop()
        before = self._said
        found_hung = loop.call_later(HUNG_S, self._hint)
        try:
            answer = await self.monitor.execute("query-status", timeout_s=UNANSWERED_S)
            self._said, self.starts_until = str(answer["status"]), 0.0
        except DriverError:
            return  # the connection broke: it counts as what it was
        finally:
            found_hung.cancel()
        if self._said != before or loop.time() >= self._asked_at + HUNG_S:
            self._hint()

    def _on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name in ("SHUTDOWN", "GUEST_PANICKED"):
            self._is_signalled = fields.get("reason") == "host-signal"  # said before its status says "shutdown"
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
