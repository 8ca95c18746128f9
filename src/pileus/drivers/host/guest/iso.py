"""Makes ISO 9660 images with a program of the host. It knows no seed."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from pileus.drivers.host.errors import DriverError, MissingTool

TIMEOUT_S = 30
"""Making a small image takes 20 ms; a host out of memory or disk may take long."""

_PROGRAMS = (("xorriso", ("-as", "mkisofs")), ("genisoimage", ()))


async def make_iso(folder: Path, label: str, image: Path) -> None:
    """Write ``folder`` as an image with Joliet and Rock Ridge names.

    Raises: MissingTool, DriverError (SeedFailed with the program's last words).
    """
    argv = [*_program(), "-quiet", "-V", label, "-J", "-r", "-o", str(image), str(folder)]
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        umask=0o077,
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await child.communicate()
    except TimeoutError as exc:
        raise DriverError(
            "SeedFailed", f"{argv[0]} did not end within {TIMEOUT_S} s; is the host's disk full?"
        ) from exc
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise DriverError("SeedFailed", f"{argv[0]} ended with code {child.returncode}: {words[0][-300:]}")


def _program() -> list[str]:
    for name, options in _PROGRAMS:
        if shutil.which(name) is not None:
            return [name, *options]
    raise MissingTool("seeds need xorriso: run 'apt-get install xorriso' on this host")
