"""A raw disk as a streamOptimized VMDK, in parts: what is packed is carried away while the next is packed.

A process of its own packs, because threads would share one lock of the interpreter with all that the agent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from pileus.drivers.host.disk.command import DIE_WITH_AGENT
from pileus.drivers.host.errors import DriverError

PART_BYTES = 1 << 20


async def vmdk_parts(raw: Path) -> AsyncGenerator[bytes]:
    """Yield the parts; a caller who stops early ends the packing. Raises: DriverError (DiskToolFailed)."""
    child = await asyncio.create_subprocess_exec(
        *DIE_WITH_AGENT, sys.executable, "-P", "-m", "pileus.ovf.deflating", str(raw), limit=PART_BYTES,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        is_whole = False
        while not is_whole:
            try:
                yield await child.stdout.readexactly(PART_BYTES)
            except asyncio.IncompleteReadError as end:
                is_whole = True
                if end.partial:
                    yield end.partial
        said = (await child.stderr.read()).decode(errors="replace").replace(f"{raw.parent}/", "").strip()
        if await child.wait() != 0:
            last = said.rpartition("\n")[2][-500:]
            raise DriverError("DiskToolFailed", f"a volume was not packed: {last or 'its process was ended'}")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.communicate()
