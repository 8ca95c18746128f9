"""``python agent.py STATE ADDRESS SPEC``: an agent that puts one leg in force, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from pileus.drivers.host.mirror.base import SourceSpec
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.paths import HostPaths


async def main(state: str, address: str, spec: str) -> None:
    """Work until killed."""
    mirror = KernelMirror(HostPaths.under(Path(state)), Uplinks(tunnel="tunnel0", tunnel_address=f"{address}/24"))
    await mirror.open()
    await mirror.put(msgspec.json.decode(spec, type=SourceSpec))
    print("in force", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
