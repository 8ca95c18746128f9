"""The process that reads an untrusted disk: opens what it is told, goes where there are no files, then looks.

Started with one JSON argument (``Order``); says JSON lines (``Line``), the last of which has ``ended``: without that
line nothing is known. It compiles the rules in there too.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from pileus.drivers.host.disk.base import DiskLayer as Layer
from pileus.image import cell
from pileus.scan.base import NO_CLAMD
from pileus.scan.disks import RawDisk, Readable, Unreadable
from pileus.scan.engines import Engine, Session, Stopped, Yara
from pileus.scan.hunt import Hunt
from pileus.scan.qcow2 import Qcow2Disk
from pileus.scan.report import Finding, Part
from pileus.scan.rules import RulesRefused, compile_rules

PROGRESS_S = 1.0
CONNECT_S = 10.0


class Order(Struct, frozen=True, kw_only=True):
    """What the process is told. ``layers``: the disk's own file first, then what lies below it.

    ``rules``: a file of them. ``clamd``: the socket of a daemon that is asked instead; empty: the rules are used.
    """

    root: str
    user: int
    limits: dict[str, int]
    rules: str
    clamd: str
    layers: tuple[Layer, ...]
    time_s: float
    files: bool = True


class Ended(Struct, frozen=True, kw_only=True):
    """How the scan ended; with a ``reason`` not at its end."""

    size_bytes: int = 0
    scanned_bytes: int = 0
    files: int = 0
    left_out: int = 0
    reason: str = ""
    message: str = ""


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of what it says: one of these."""

    finding: Finding | None = None
    part: Part | None = None
    looked_bytes: int = 0
    """How much was looked at so far."""
    ended: Ended | None = None


def main() -> int:
    """Return 0 when the last line was said, or 128 and the signal that killed what is confined."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    files = [_opened(layer.path) for layer in order.layers]
    with open(order.rules, encoding="utf-8", errors="surrogateescape") as file:
        rules = file.read()
    daemon = None
    if order.clamd:
        daemon = socket.socket(socket.AF_UNIX)
        daemon.settimeout(CONNECT_S)
        try:
            daemon.connect(order.clamd)
        except OSError as exc:
            message = f"clamd at {order.clamd} cannot be asked: {exc.strerror}"
            _say(Line(ended=Ended(reason=NO_CLAMD, message=message)))
            return 0
    return cell.confine(order.root, order.user, order.limits, lambda: _work(order, files, daemon or rules))


def _opened(path: str) -> int:
    """Return a descriptor of a plain file; a link must not lead elsewhere, nor a FIFO keep us. Raises: OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(f"{path} is not a plain file")
    return file


def _work(order: Order, files: list[int], sought: str | socket.socket) -> int:
    try:
        ended = _scan(order, files, Yara(compile_rules(sought)) if isinstance(sought, str) else Session(sought))
    except (Stopped, Unreadable) as exc:
        ended = Ended(reason=exc.reason, message=exc.message)
    except RulesRefused as exc:
        ended = Ended(reason="RulesRefused", message=f"line {exc.line}: {exc.message}" if exc.line else exc.message)
    except MemoryError:
        ended = Ended(reason="OutOfMemory", message="the scan needed more memory than it may have")
    _say(Line(ended=ended))
    return 0


def _scan(order: Order, files: list[int], engine: Engine) -> Ended:
    """Return how it ended. Raises: Unreadable."""
    until = time.monotonic() + order.time_s
    hunt = Hunt(engine, lambda finding: _say(Line(finding=finding)), time.monotonic, until)
    hunt.looked = _progress(hunt)
    disk = _disk(order, files)
    stopped = None
    try:
        if engine.looks_at == "bytes":
            hunt.bytes_of(disk)
        if order.files:
            for part in hunt.files_of(disk):
                _say(Line(part=part))
    except (Stopped, Unreadable) as exc:
        stopped = exc
    problem = stopped or (hunt.problems[0] if hunt.problems else None)
    return Ended(
        size_bytes=disk.size_bytes,
        scanned_bytes=hunt.scanned_bytes,
        files=hunt.files,
        left_out=hunt.left_out,
        reason=problem.reason if problem else "",
        message=problem.message if problem else "",
    )


def _progress(hunt: Hunt) -> Callable[[], None]:
    """Return what says now and then how far the hunt is."""
    said_at = -PROGRESS_S

    def looked() -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= PROGRESS_S:
            said_at = now
            _say(Line(looked_bytes=hunt.scanned_bytes))

    return looked


def _disk(order: Order, files: list[int]) -> Readable:
    """Return the disk that the layers make. Raises: Unreadable."""
    disk: Readable | None = None
    for layer, file in zip(reversed(order.layers), reversed(files), strict=True):
        disk = RawDisk(file) if layer.format == "raw" else Qcow2Disk(file, disk)
    assert disk is not None
    return disk


def _say(line: Line) -> None:
    text = msgspec.json.encode(line) + b"\n"
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    sys.exit(main())
