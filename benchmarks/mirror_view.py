"""Packets a second that ``pileus mirror watch`` shows: read from pcapng and printed as lines, or written as pcapng again.

By CPU time, as other work on the machine meets it too; in turn with ``tcpdump`` printing the same packets from a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import struct
import subprocess
import time
from pathlib import Path

from benchmarks.clouds import folder
from benchmarks.report import Report, Result, median, ratio
from pileus.cli.commands.mirror_watch import NOWHERE, View
from pileus.node.mirror import pcapng

PACKETS = 20_000
PIECE_BYTES = 65_536
SEED = 20
MACS = bytes.fromhex("020000000002 020000000001")


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    turns = 3 if quick else 9
    report.say(f"mirror_view: {turns} turns of {PACKETS} packets, seed {SEED}: 70 % TCP, 15 % UDP, 10 % DNS, 5 % ICMP")
    capture = _capture()
    with folder("mirror-view") as where:
        file = where / "packets.pcapng"
        file.write_bytes(capture)
        lines, written, others = list[float](), list[float](), list[float]()
        for _ in range(turns):
            lines.append(_rate(capture, lines=True, file=None))
            written.append(_rate(capture, lines=False, file=where / "written.pcapng"))
            others += [_tcpdump(file)] if shutil.which("tcpdump") else []
    reference = median(others) if others else 0.0
    told = f"tcpdump: {reference:.0f} packets/s" if others else ""
    report.add(
        Result(name="mirror_view: packets as lines, of one core", value=median(lines), unit="packets/s",
               ratio=ratio(median(lines), reference), reference=told)
    )  # fmt: skip
    report.add(Result(name="mirror_view: packets as pcapng, of one core", value=median(written), unit="packets/s"))


def _rate(capture: bytes, *, lines: bool, file: Path | None) -> float:
    """Return packets per second of CPU time."""
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if file is not None else NOWHERE
    pieces = [capture[start : start + PIECE_BYTES] for start in range(0, len(capture), PIECE_BYTES)]

    async def take() -> None:
        with View(0, lines=lines, target=target) as view:
            for piece in pieces:
                await view.take(piece)
            assert view.shown == PACKETS

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        began = time.process_time()
        asyncio.run(take())
        return PACKETS / (time.process_time() - began)


def _tcpdump(file: Path) -> float:
    """Return packets per second of CPU time, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["tcpdump", "-nn", "-S", "-r", str(file)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return PACKETS / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _capture() -> bytes:
    dice = random.Random(SEED)
    parts = [pcapng.section("benchmark"), pcapng.interface("benchmark")]
    for number in range(PACKETS):
        frame = _frame(dice)
        parts.append(pcapng.packet(1_700_000_000_000_000_000 + number * 1000, frame, len(frame), 1 + number % 2))
    return b"".join(parts)


def _frame(dice: random.Random) -> bytes:
    kind, size = dice.random(), dice.choice((0, 0, 100, 1400))
    ports = dice.randrange(40_000, 40_500), 55_555
    if kind < 0.7:
        numbers = dice.randrange(1 << 32), dice.randrange(1 << 32)
        return _ipv4(dice, 6, struct.pack(">HHIIBBHHH", *ports, *numbers, 0x50, 0x18, 512, 0, 0) + bytes(size))
    if kind < 0.85:
        return _ipv4(dice, 17, struct.pack(">HHHH", *ports, 8 + size, 0) + bytes(size))
    if kind < 0.95:
        query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\x03www\x07example\x03com\x00\x00\x01\x00\x01"
        return _ipv4(dice, 17, struct.pack(">HHHH", ports[0], 53, 8 + len(query), 0) + query)
    return _ipv4(dice, 1, struct.pack(">BBHHH", 8, 0, 0, 7, dice.randrange(1 << 16)) + bytes(56))


def _ipv4(dice: random.Random, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0)
    ends = bytes((10, 1, 0, dice.randrange(200))), bytes((10, 1, 1, dice.randrange(200)))
    return MACS + b"\x08\x00" + head + b"".join(ends) + payload
