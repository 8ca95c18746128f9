"""Lets qemu-img read an untrusted image where a hole in qemu-img leads nowhere.

A program in the jail has its own mount, network, PID, IPC and UTS namespaces, an unprivileged user, no capability and
no way to get one, limits on memory, CPU time and file size, and sees /usr (read-only), /dev/null, /dev/urandom and the
files named in the call. Making the namespaces needs root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.drivers.host.disk import command, files
from pileus.drivers.host.disk.base import ImageFacts, UploadFormat
from pileus.drivers.host.errors import DriverError, ImageRefused
from pileus.image import cell
from pileus.image.inspect import VIRTUAL_SIZE_BYTES_MAX, inspect

JAIL_USER = 61_000
"""User and group id in the jail: in the range that neither Debian policy nor systemd gives to anybody."""

STAGING = ".jail"
"""The end of the folder beside the target that holds what is being made; the next call for that target clears it."""

TABLES_BYTES = 64 * 1024**2
"""What a qcow2 file may have beyond its disk's size, with one part in 1,024 for tables (measured: 1 in 6,500)."""

PROGRESS = re.compile(rb"\(\s*([0-9.]+)/100%\)")

UNSHARE = (
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--net",
    "--pid",
    "--ipc",
    "--uts",
    "--fork",
    "--kill-child",
)


class Limits(Struct, frozen=True, kw_only=True):
    """What one visit to the jail may cost."""

    memory_bytes: int = 2 * 1024**3
    """Address space; 64 threads of qemu-img reserve 512 MiB of it for stacks."""

    cpu_s: int = 3600
    timeout_s: float = 3600.0
    virtual_size_bytes_max: int = VIRTUAL_SIZE_BYTES_MAX


DEFAULT_LIMITS = Limits()


class CheckFacts(Struct, frozen=True, kw_only=True):
    """What qemu-img found in a sound image; leaked clusters only waste room."""

    leaked_clusters: int


class _Report(Struct, rename={"check_errors": "check-errors"}):
    """The part of ``qemu-img check --output=json`` that counts (qapi/block-core.json, ImageCheck)."""

    check_errors: int = 0
    corruptions: int = 0
    leaks: int = 0


async def convert(
    source: Path,
    format: UploadFormat,
    target: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[float], None] | None = None,
) -> ImageFacts:
    """Make ``target`` a clean, flat qcow2 of the inspected ``source`` and return its facts with its SHA-256.

    ``source`` is a file of ours: its group becomes the jail's, so that its folder must keep others out. ``progress``
    hears fractions from 0 to 1. What an interrupted call leaves, the next one for ``target`` clears; one at a time.
    Raises: ImageRefused (those of ``inspect``; ConversionFailed), DiskFull, MissingTool,
    DriverError (NoJail, TimedOut).
    """
    facts = await files.in_thread(inspect, source, format, virtual_size_bytes_max=limits.virtual_size_bytes_max)
    staging = target.with_name(target.name + STAGING)
    try:
        await files.in_thread(_prepare, source, staging)
        await _convert(source, format, staging, limits, facts, progress)
        made = await files.in_thread(_accept, staging / "target", facts)
        await files.in_thread(files.publish, staging / "target", target)
    finally:
        await files.in_thread(files.remove, staging)
    return made


async def check(source: Path, *, limits: Limits = DEFAULT_LIMITS) -> CheckFacts:
    """Return what qemu-img says of the tables of an inspected qcow2 file.

    Raises: ImageRefused (those of ``inspect``; Corrupt), MissingTool, DriverError (NoJail, TimedOut).
    """
    await files.in_thread(inspect, source, "qcow2", virtual_size_bytes_max=limits.virtual_size_bytes_max)
    staging = source.with_name(source.name + STAGING)
    try:
        await files.in_thread(_prepare, source, staging)
        words = ["qemu-img", "check", "-f", "qcow2", "--output=json", "/source"]
        ended = await run_jailed(words, staging / "root", [(source, "source", "ro")], limits=limits)
    finally:
        await files.in_thread(files.remove, staging)
    try:
        report = msgspec.json.decode(ended.stdout, type=_Report)
    except msgspec.DecodeError as exc:
        raise ImageRefused("Corrupt", f"the image could not be checked: {ended.last_words}") from exc
    if report.check_errors or report.corruptions or ended.code not in (0, 3):
        message = f"the image has {report.corruptions} corrupt clusters; repair it with qemu-img check -r all"
        raise ImageRefused("Corrupt", message)
    return CheckFacts(leaked_clusters=report.leaks)


async def run_jailed(
    words: list[str],
    root: Path,
    visible: list[tuple[Path, str, str]],
    *,
    limits: Limits,
    file_bytes: int = 0,
    on_stdout: Callable[[bytes], None] | None = None,
) -> command.Ended:
    """Return how the command ended; the code of one that a signal killed is 128 more than the signal.

    ``root``: an empty folder. ``visible``: path outside, name under / inside, "ro" or "rw".
    ``file_bytes``: the longest file it may write.
    Raises: MissingTool, DriverError (NoJail, TimedOut).
    """
    _check_root()
    if shutil.which("qemu-img") is None:
        raise command.missing("qemu-img")
    plan = _plan(words, root, visible, limits, file_bytes)
    python = (sys.executable, "-I", "-S", cell.__file__, msgspec.json.encode(plan).decode())
    jailed = (*command.DIE_WITH_AGENT, *python)
    return await command.run(jailed, timeout_s=limits.timeout_s, on_stdout=on_stdout)


def _plan(
    words: list[str], root: Path, visible: list[tuple[Path, str, str]], limits: Limits, file_bytes: int
) -> cell.Plan:
    """Return what the program inside is told."""
    return {
        "root": str(root.absolute()),
        "files": [(str(path.absolute()), name, mode) for path, name, mode in visible],
        "limits": {
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "file_bytes": file_bytes,
            "files": 64,
            "core_bytes": 0,
        },
        "user": JAIL_USER,
        "command": words,
    }


async def _convert(
    source: Path,
    format: UploadFormat,
    staging: Path,
    limits: Limits,
    facts: ImageFacts,
    progress: Callable[[float], None] | None,
) -> None:
    """Run the conversion. Raises: ImageRefused (ConversionFailed), DiskFull and what ``run_jailed`` does."""

    def hear(chunk: bytes) -> None:
        found = PROGRESS.findall(chunk)
        if progress is not None and found:
            progress(float(found[-1]) / 100)

    ended = await run_jailed(
        _words(format),
        staging / "root",
        [(source, "source", "ro"), (staging / "target", "target", "rw")],
        limits=limits,
        file_bytes=facts.virtual_size_bytes + facts.virtual_size_bytes // 1024 + TABLES_BYTES,
        on_stdout=hear,
    )
    if ended.disk_full:
        raise files.full("image store", staging, "the converted image", facts.size_bytes)
    if ended.code != 0:
        raise ImageRefused("ConversionFailed", f"the image could not be converted: {ended.last_words}")


def _words(format: UploadFormat) -> list[str]:
    """Return the conversion's command; nothing is probed.

    A VHD says its size twice; QEMU believes the older geometry unless told otherwise, and cuts the disk's end off.
    """
    if format == "vhd":
        opened = "driver=vpc,force_size_calc=current_size,file.driver=file,file.filename=/source"
        return ["qemu-img", "convert", "-p", "-O", "qcow2", "--image-opts", opened, "/target"]
    return ["qemu-img", "convert", "-p", "-O", "qcow2", "-f", format, "/source", "/target"]


def _prepare(source: Path, staging: Path) -> None:
    """Make the staging folder, with a target for the jail to write, and let the jail read ``source``.

    Raises: DriverError (NoJail).
    """
    _check_root()
    files.remove(staging)
    (staging / "root").mkdir(parents=True)
    staging.chmod(0o700)
    target = staging / "target"
    target.touch(mode=0o600)
    os.chown(target, JAIL_USER, JAIL_USER)
    os.chown(source, -1, JAIL_USER, follow_symlinks=False)
    source.chmod(0o640)


def _check_root() -> None:
    """Raises: DriverError (NoJail)."""
    if os.geteuid() != 0:
        raise DriverError("NoJail", "images are converted in a jail that only root can make; run the agent as root")


def _accept(target: Path, facts: ImageFacts) -> ImageFacts:
    """Take the file back from the jail and return its facts: what comes out is untrusted too until inspected."""
    os.chown(target, os.geteuid(), os.getegid())
    made = inspect(target, "qcow2")
    if made.virtual_size_bytes != facts.virtual_size_bytes:
        raise ImageRefused("ConversionFailed", "the converted image has another size than its source")
    with target.open("rb") as file:
        return replace(made, sha256=hashlib.file_digest(file, "sha256").hexdigest())
