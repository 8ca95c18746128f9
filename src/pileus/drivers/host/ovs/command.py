"""Runs a program of Open vSwitch or iproute2 and returns what it printed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from pileus.drivers.host.errors import DriverError, MissingTool, OvsdbError

PACKAGES = {
    "ip": "iproute2",
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovsdb-tool": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-switch",
}
"""Program: Debian package that brings it (openvswitch-switch depends on openvswitch-common)."""

TIMEOUT_S = 30
"""The slowest program measured took 0.1 s; a loaded host may need a hundred times as long."""


def locate(program: str) -> str:
    """Return the program's path; administrators' folders count even when PATH leaves them out. Raises MissingTool."""
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise MissingTool(f"{program} is not installed; run: apt-get install {PACKAGES[program]}")
    return found


async def run(argv: Sequence[str], *, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Return the standard output of ``argv``, ``text`` being its standard input.

    What it prints goes to files, not pipes: a daemon that ``argv`` leaves behind may keep those open for ever.
    Raises: MissingTool; OvsdbError with the program's last words when it fails, DriverError (SwitchSilent) after 30 s.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        child = await asyncio.create_subprocess_exec(
            locate(argv[0]),
            *argv[1:],
            stdin=asyncio.subprocess.PIPE if text else asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            env={**os.environ, **(environment or {})},
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await child.communicate(text.encode() or None)
        except TimeoutError as exc:
            raise DriverError("SwitchSilent", f"{argv[0]} did not end within {TIMEOUT_S} s") from exc
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        out, err = (_content(file) for file in (said, complained))
    if child.returncode != 0:
        raise OvsdbError(f"{os.path.basename(argv[0])} failed: {last_words(err)}")
    return out


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def last_words(text: str) -> str:
    """Return the last line of what a program complained, without paths: errors are shown to users."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return re.sub(r"(?<![\w/])(unix:)?/\S+", "(path)", lines[-1])[-300:]
