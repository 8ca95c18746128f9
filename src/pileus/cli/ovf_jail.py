"""Has qemu-img convert a disk of a package, in the jail that images are converted in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pileus.cli.failure import REFUSED, Failure
from pileus.drivers.host.disk import files
from pileus.drivers.host.disk.command import Ended
from pileus.drivers.host.errors import DriverError, ImageRefused
from pileus.image import jail
from pileus.image.inspect import inspect
from pileus.ovf.disks import Form
from pileus.ovf.faults import refusal


def convert(source: Path, source_format: str, target: Path, form: Form) -> None:
    """Make ``target`` of ``source``, whose format is qemu-img's word. Raises: OvfFault, Failure."""
    staging = target.with_name(target.name + jail.STAGING)
    try:
        if source_format == "qcow2":
            inspect(source, "qcow2", virtual_size_bytes_max=jail.DEFAULT_LIMITS.virtual_size_bytes_max)
        made = _prepare(source, staging)
        ended = asyncio.run(_run(source, source_format, made, form))
        if ended.code != 0:
            raise refusal("disk-refused", f"qemu-img cannot convert the disk: {ended.last_words}")
        os.chown(made, os.geteuid(), os.getegid())
        made.rename(target)
    except ImageRefused as exc:
        raise refusal("disk-refused", f"the disk is refused: {exc}") from exc
    except DriverError as exc:
        hint = "run this as root, or package the disk as streamOptimized VMDK, which needs no other program"
        message = f"a disk of format {source_format} is not converted: {exc}"
        raise Failure(message, exit_code=REFUSED, hint=hint) from exc
    finally:
        files.remove(staging)


def _prepare(source: Path, staging: Path) -> Path:
    """Return the file that the jail writes, and let it read ``source``."""
    (staging / "root").mkdir(parents=True)
    staging.chmod(0o700)
    made = staging / "target"
    made.touch(mode=0o600)
    if os.geteuid() == 0:
        os.chown(made, jail.JAIL_USER, jail.JAIL_USER)
        os.chown(source, -1, jail.JAIL_USER)
    source.chmod(0o640)
    return made


async def _run(source: Path, source_format: str, made: Path, form: Form) -> Ended:
    return await jail.run_jailed(
        ["qemu-img", "convert", "-O", form, "-f", source_format, "/source", "/target"],
        made.with_name("root"),
        [(source, "source", "ro"), (made, "target", "rw")],
        limits=jail.DEFAULT_LIMITS,
        file_bytes=jail.DEFAULT_LIMITS.virtual_size_bytes_max,
    )
