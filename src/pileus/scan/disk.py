"""Scans a disk from outside: a process in a jail reads it, and what that process says is believed only as far as it fits.

Nothing is mounted, no format is guessed, no other file is opened. Whatever goes wrong gives a report that says so:
a scan that crashed, was killed or took too long is ``unknown``, never ``clean``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.disk import command, files
from pileus.drivers.host.disk.base import DiskLayer as Layer
from pileus.drivers.host.errors import DriverError
from pileus.image.jail import JAIL_USER
from pileus.scan.inmate import Ended, Line, Order
from pileus.scan.report import FINDINGS_MAX, PARTS_MAX, Finding, Part, Report, printable

LINE_BYTES_MAX = 16 * 1024
LAST = ("nice", "-n", "10", "ionice", "-c", "2", "-n", "7")
"""Put before a command so that VMs come first: on a busy core it has a tenth of it, and is never starved."""
SAID_BYTES_MAX = LINE_BYTES_MAX * (FINDINGS_MAX + PARTS_MAX)

__all__ = ["DEFAULT_LIMITS", "Layer", "Limits", "scan_disk"]


class Limits(Struct, frozen=True, kw_only=True):
    """What one scan may cost. ``time_s`` ends it in order; ``grace_s`` later it is killed."""

    memory_bytes: int = 1024**3
    """Address space; what is in use at one time is below 200 MB (measured)."""

    time_s: float = 600.0
    grace_s: float = 5.0
    cpu_s: int = 1200


DEFAULT_LIMITS = Limits()


async def scan_disk(
    layers: Sequence[Layer],
    sought: str | Path,
    *,
    scratch: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    files_too: bool = True,
    heard: Callable[[Finding | int], None] = lambda _: None,
) -> Report:
    """Return what is on the disk of these files: its own first, then what it is a copy-on-write child of.

    ``sought``: YARA rules, or the socket of a ClamAV daemon that is asked instead. ``scratch``: a folder of ours for
    what the scan needs meanwhile. ``heard`` gets each finding at once, and about every second how many bytes were
    looked at. The files are only read, after whoever else wants the disk or the CPU; while a machine writes to them, what
    it has not yet flushed is not seen, and what moves meanwhile may be missed or unreadable (``unknown``): a copy, or a
    machine that is paused, is better evidence.
    """
    if os.geteuid() != 0:
        return Report(reason="NoJail", message="disks are scanned in a jail that only root can make")
    folder = Path(await files.in_thread(_prepare, scratch, sought if isinstance(sought, str) else ""))
    said = _Said(heard)
    order = Order(
        root=str(folder / "root"),
        user=JAIL_USER,
        limits={
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "file_bytes": 0,
            "files": 64,
            "core_bytes": 0,
        },
        rules=str(folder / "rules"),
        clamd="" if isinstance(sought, str) else str(sought),
        layers=tuple(layers),
        time_s=limits.time_s,
        files=files_too,
    )
    words = (sys.executable, "-I", "-m", "pileus.scan.inmate", msgspec.json.encode(order).decode())
    try:
        ended = await command.run(
            (*command.DIE_WITH_AGENT, *LAST, *words), timeout_s=limits.time_s + limits.grace_s, on_stdout=said.hear
        )
    except DriverError as exc:
        return said.report(exc.reason if exc.reason == "TimedOut" else "Crashed", "the scan was stopped: " + str(exc))
    finally:
        await files.in_thread(shutil.rmtree, folder, True)
    return said.report("Crashed", f"the scan ended early: {printable(ended.last_words)}")


def _prepare(scratch: Path | None, rules: str) -> str:
    """Return a new folder with the rules and an empty folder for the jail."""
    folder = tempfile.mkdtemp(prefix="pileus-scan-", dir=scratch)
    (Path(folder) / "root").mkdir()
    (Path(folder) / "rules").write_bytes(rules.encode(errors="surrogateescape"))
    return folder


class _Said:
    """What the process said, taken line by line within bounds; it may be in the hands of what it read."""

    def __init__(self, heard: Callable[[Finding | int], None]) -> None:
        self._heard = heard
        self._rest = b""
        self._bytes = 0
        self._findings: list[Finding] = []
        self._parts: list[Part] = []
        self._ended: Ended | None = None
        self._is_nonsense = False

    def hear(self, chunk: bytes) -> None:
        """Take some output."""
        self._bytes += len(chunk)
        if self._is_nonsense or self._bytes > SAID_BYTES_MAX:
            self._is_nonsense = True
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LINE_BYTES_MAX:
            self._is_nonsense = True

    def report(self, reason: str, message: str) -> Report:
        """Return the report; reason and message are for when the process did not say how it ended."""
        ended = self._ended
        if self._is_nonsense:
            ended = Ended(reason="Crashed", message="the scan said what makes no sense")
        ended = ended or Ended(reason=reason, message=message)
        return Report(
            findings=tuple(self._findings),
            left_out=ended.left_out,
            parts=tuple(self._parts),
            size_bytes=ended.size_bytes,
            scanned_bytes=ended.scanned_bytes,
            files=ended.files,
            reason=printable(ended.reason),
            message=printable(ended.message),
        )

    def _take(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line, type=Line, strict=True)
        except msgspec.DecodeError:
            self._is_nonsense = True
            return
        if self._ended is not None:
            self._is_nonsense = True
        elif said.ended is not None:
            self._ended = said.ended
        elif said.part is not None and len(self._parts) < PARTS_MAX:
            self._parts.append(replace(said.part, content=printable(said.part.content)))
        elif said.finding is not None and len(self._findings) < FINDINGS_MAX:
            self._findings.append(_harmless(said.finding))
            self._heard(self._findings[-1])
        elif said.looked_bytes > 0:
            self._heard(said.looked_bytes)


def _harmless(found: Finding) -> Finding:
    return replace(found, rule=printable(found.rule), pattern=printable(found.pattern), path=printable(found.path))
