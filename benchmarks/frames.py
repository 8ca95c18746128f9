"""Frames a second between two guests of one host, with all flows of the switch and with plain flows from port to port.

Raw frames of many UDP flows are written to one tap and read from the other, no more than a window of them under way, so
that hardly one is lost. Turns alternate on one and the same switch, and each is compared with the one after it, because
other work on the machine meets both. The reference has two flows: what comes in at one port goes out at the other.
"""

from __future__ import annotations

import asyncio
import os
import select
import struct
import time
from ipaddress import IPv4Address
from pathlib import Path

from benchmarks.clouds import folder
from benchmarks.report import Report, Result, median, ratio
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs import daemons
from pileus.drivers.host.ovs.base import PortSpec, Uplinks
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

BAR = 0.9
WINDOW = 64
"""What fits into the queue of a tap's packet socket, 208 KiB, at 2,304 bytes for a frame of 1,500."""

FLOWS = 500
SIZES_BYTES = (64, 1500)
WARM_UP_S, TURN_S = 0.2, 0.5
SILENCE_S = 1.0
ONE = PortSpec(id="bench-00000000000a", mac="52:54:00:00:01:0a", addresses=("10.1.1.10",), vlan=101)
TWO = PortSpec(id="bench-00000000000b", mac="52:54:00:00:01:0b", addresses=("10.1.1.11",), vlan=101)


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    turns = 6 if quick else 30
    report.say(f"frames: {turns} turns of {TURN_S:g} s each way and size, {FLOWS} UDP flows, {WINDOW} frames under way")
    with folder("frames") as where:
        try:
            asyncio.run(_measure(report, where, turns))
        except DriverError as exc:
            report.say(f"frames: left out; {exc}")


async def _measure(report: Report, where: Path, turns: int) -> None:
    switch = OpenVSwitch(HostPaths.under(where / "host"), Uplinks())
    try:
        await switch.open()
        taps = [await switch.open_tap((await switch.plug(spec)).tap) for spec in (ONE, TWO)]
        try:
            for size_bytes in SIZES_BYTES:
                await _compare(report, switch, taps, size_bytes, turns)
        finally:
            for tap in taps:
                os.close(tap)
    finally:
        await switch.remove()


async def _compare(report: Report, switch: OpenVSwitch, taps: list[int], size_bytes: int, turns: int) -> None:
    frames = _frames(size_bytes)
    guarded: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for _ in range(turns):
        await _guard(switch)
        guarded.append(_rate(switch, taps, frames))
        await _make_plain(switch)
        plain.append(_rate(switch, taps, frames))
    value, reference = (median([rate for rate, _ in each]) for each in (guarded, plain))
    times = median([one[0] / other[0] for one, other in zip(guarded, plain, strict=True)])
    name = f"frames: of {size_bytes} bytes between two VMs, all flows against plain ones"
    report.add(
        Result(name=name, value=times, unit="times", bar=BAR, at_least=True, ratio=times,
                reference=f"{value:.0f} and {reference:.0f} frames/s")
    )  # fmt: skip
    cpu = median([cpu_us for _, cpu_us in guarded])
    cpu_plain = median([cpu_us for _, cpu_us in plain])
    report.add(
        Result(name=f"frames: switch's CPU for one of {size_bytes} bytes", value=cpu, unit="µs",
               ratio=ratio(cpu, cpu_plain), reference=f"plain flows: {cpu_plain:.2f} µs")
    )  # fmt: skip


async def _guard(switch: OpenVSwitch) -> None:
    """Put the flows of both ports in force, and no others."""
    await switch._bundle(["flow delete"], forget_cache=True)
    switch._prepared = None
    for spec in (ONE, TWO):
        await switch.plug(spec)


async def _make_plain(switch: OpenVSwitch) -> None:
    """Replace all flows by two."""
    rows = await switch._database.ports()
    one, two = rows[ONE.id].ofport, rows[TWO.id].ofport
    plain = [f"flow add in_port={port},actions=output:{other}" for port, other in ((one, two), (two, one))]
    await switch._bundle(["flow delete", *plain], forget_cache=True)


def _frames(size_bytes: int) -> list[bytes]:
    """Return one frame of each flow."""
    head = b"".join(bytes.fromhex(spec.mac.replace(":", "")) for spec in (TWO, ONE)) + b"\x08\x00"
    ends = b"".join(IPv4Address(spec.addresses[0]).packed for spec in (ONE, TWO))
    payload = bytes(size_bytes - 28)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size_bytes, 7, 0, 64, 17, 0) + ends
    return [head + ip + struct.pack("!HHHH", 5000 + n, 4000, size_bytes - 20, 0) + payload for n in range(FLOWS)]


def _rate(switch: OpenVSwitch, taps: list[int], frames: list[bytes]) -> tuple[float, float]:
    """Return frames per second, and microseconds of the switch's CPU for each."""
    _pump(taps, frames, WARM_UP_S)
    pid = daemons.running(switch._files, "ovs-vswitchd")
    before = _cpu_s(pid)
    count, took_s = _pump(taps, frames, TURN_S)
    return count / took_s, (_cpu_s(pid) - before) / count * 1e6


def _pump(taps: list[int], frames: list[bytes], for_s: float) -> tuple[int, float]:
    """Send for some seconds; return how many frames arrived, and the seconds until the last of them."""
    sender, receiver = taps
    began = time.monotonic()
    sent = arrived = 0
    while (is_time := time.monotonic() - began < for_s) or arrived < sent:
        while is_time and sent - arrived < WINDOW:
            os.write(sender, frames[sent % FLOWS])
            sent += 1
        if select.select([receiver], [], [], SILENCE_S)[0]:
            arrived += _drain(receiver)
        else:  # the rest is lost, and the time that it took to notice counts
            sent = arrived
    return arrived, time.monotonic() - began


def _drain(tap: int) -> int:
    count = 0
    try:
        while True:
            os.read(tap, 2048)
            count += 1
    except BlockingIOError:
        return count


def _cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
