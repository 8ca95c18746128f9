"""Copies a disk of a live machine as it is at one moment, while the guest goes on (QMP blockdev-backup).

What the guest overwrites is copied before it is overwritten. A copy whose agent was killed is ended by the next one:
its file is nobody's by then. Source: QEMU, docs/interop/live-block-operations.rst, qapi/job.json.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

from pileus.drivers.host.errors import DriverError, QmpRefused
from pileus.drivers.host.qemu.base import DiskAttachment
from pileus.drivers.host.qemu.command import QmpArguments, copy_nodes, disk_device, disk_node
from pileus.drivers.host.qemu.live import Live

PREFIX = "copy-"
"""Of the ids of jobs, block nodes and descriptor sets; nothing else of a machine has it."""

_POLL_S = 0.02
_POLL_MAX_S = 0.5
END_TIMEOUT_S = 10.0
"""For a job that was told to end."""


async def copy(live: Live, disk: DiskAttachment, target: str, bytes_per_s: int) -> float:
    """Write the disk into the empty qcow2 ``target`` and return the moment that it shows (Unix seconds).

    ``bytes_per_s``: 0 for as fast as it goes. What the guest overwrites is copied at once all the same.

    Raises: QmpRefused, DriverError (CopyFailed, NoAnswer).
    """
    job = PREFIX + disk_device(disk.id)
    await clear(live)
    try:
        node = await _open(live, disk, job, target)
        at = time.time()
        arguments = {
            "job-id": job, "device": disk_node(disk.id), "target": node, "sync": "full", "auto-dismiss": False,
            "speed": bytes_per_s,
        }  # fmt: skip
        await live.monitor.execute("blockdev-backup", arguments)
        await _finished(live, job, disk)
    finally:
        with suppress(DriverError):
            await clear(live)
    return at


async def settle(live: Live) -> None:
    """End what an agent before this one was copying, if QEMU answers."""
    with suppress(DriverError):
        await clear(live)


async def clear(live: Live) -> None:
    """Leave no copy, done or not: no job, no open target. Raises: QmpRefused, DriverError (NoAnswer, CopyFailed)."""
    for job in await _jobs(live):
        await _end(live, str(job["id"]))
    # With the nodes above first: nobody may delete what is used.
    nodes = await live.monitor.execute("query-named-block-nodes", {"flat": True})
    ours = sorted(str(node["node-name"]) for node in nodes if str(node["node-name"]).startswith(PREFIX))
    for name in ours:
        await live.monitor.execute("blockdev-del", {"node-name": name})
    for fdset in await live.monitor.execute("query-fdsets"):
        if any(str(fd.get("opaque", "")).startswith(PREFIX) for fd in fdset["fds"]):
            with suppress(QmpRefused):  # QEMU closes it by itself when its last user goes
                await live.monitor.execute("remove-fd", {"fdset-id": fdset["fdset-id"]})


async def _open(live: Live, disk: DiskAttachment, job: str, target: str) -> str:
    """Let QEMU have the target, and return its node."""
    try:
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise DriverError("CopyFailed", f"the copy of disk {disk.id} cannot be opened: {error.strerror}") from error
    try:
        answer = await live.monitor.execute_with_fd(fd, "add-fd", {"opaque": job})
    finally:
        os.close(fd)
    nodes: list[QmpArguments] = copy_nodes(job, int(answer["fdset-id"]))
    for node in nodes:
        await live.monitor.execute("blockdev-add", node)
    return str(nodes[-1]["node-name"])


async def _finished(live: Live, job: str, disk: DiskAttachment) -> None:
    """Return when the whole disk is in the copy. Raises: DriverError (CopyFailed)."""
    pause_s = _POLL_S
    while True:
        found = next((each for each in await _jobs(live) if each["id"] == job), None)
        if found is None or (found["status"] == "concluded" and "error" in found):
            why = found["error"] if found is not None else "it was ended"
            raise DriverError("CopyFailed", f"disk {disk.id} was not copied: {why}")
        if found["status"] == "concluded":
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _POLL_MAX_S)


async def _end(live: Live, job: str) -> None:
    deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
    while (found := next((each for each in await _jobs(live) if each["id"] == job), None)) is not None:
        if asyncio.get_running_loop().time() > deadline:
            raise DriverError("CopyFailed", "QEMU did not end a copy; try again, or power the machine off")
        with suppress(QmpRefused):  # it came to its end by itself
            await live.monitor.execute("job-dismiss" if found["status"] == "concluded" else "job-cancel", {"id": job})
        await asyncio.sleep(_POLL_S)


async def _jobs(live: Live) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = await live.monitor.execute("query-jobs")
    return [job for job in jobs if str(job["id"]).startswith(PREFIX)]
