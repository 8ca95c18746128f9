"""What a mirror session costs the VM that is watched: its own packets a second with and without one, and their latency.

Between two VMs of one host, as in ``frames``. The copies leave by the host's tunnel, whose device is a tap that nobody
reads: what another host does with them is not the VM's cost. Short turns alternate with turns without a session, because
other work on the machine meets both. Beside it the switch's own mirror to an ERSPAN port; and, because the switch's share
hides the copies', frames into a tap that no switch reads.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from benchmarks.clouds import folder
from benchmarks.frames import FLOWS, ONE, TWO, _drain, _frames, _pump
from benchmarks.report import Report, Result, median, percentile
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.mirror.base import SourceCounts, SourceSpec
from pileus.drivers.host.mirror.real import KernelMirror
from pileus.drivers.host.ovs import daemons, namespace
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.command import run as command
from pileus.drivers.host.ovs.database import BRIDGE, UNDERLAY
from pileus.drivers.host.ovs.flows import tap_name
from pileus.drivers.host.ovs.jsonrpc import call
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths
from pileus.node.mirror.rules import Rule

SIZES_BYTES = (64, 1500)
KEY = 0x1234_5678_9000_0001
HERE, PEER, PEER_MAC = "10.9.0.1", "10.9.0.2", "02:70:0a:09:00:02"
TURN_S = 0.1
RATES = (10_000, 50_000, 100_000, 200_000, 400_000)
"""Frames a second at which losses are looked for."""
SLICE_S = 0.001
ALONE = "bench-00000000000c"
"""A port that no switch has."""

MISSES = tuple(Rule(protocol=6, source=f"192.0.2.{n}/32", destination_ports=(n, n)) for n in range(8))
SWITCH_MIRROR = "the switch's own mirror"


class Case(Struct, frozen=True):
    """A session, and the least share of the VM's own rate that it must leave; None: reported only."""

    name: str
    bar: float | None
    rules: tuple[Rule, ...] = ()
    sample_one_in: int = 1


CASES = (
    Case("full mirror", 0.6),
    Case("sample of 1 in 10", 0.9, sample_one_in=10),
    Case("filter of 8 rules that misses", 0.95, rules=MISSES),
    Case(SWITCH_MIRROR, None),
)


class Turn(Struct, frozen=True):
    """Frames in a second, and the CPU time of sender, receiver and switch for one."""

    rate: float
    cpu_s: float


class Plan(Struct, frozen=True):
    """What is measured how often, and the bar."""

    name: str
    turn: Callable[[], Turn]
    turns: int
    bar: float | None = None


class Bench:
    """A host with a real switch, two VMs, a mirror, and a peer on its tunnel."""

    def __init__(self, where: Path) -> None:
        self.paths = HostPaths.under(where / "host")
        self.uplinks = Uplinks(tunnel="tunnel0", tunnel_address=f"{HERE}/24")
        self.switch = OpenVSwitch(self.paths, self.uplinks)
        self.mirror = KernelMirror(self.paths, self.uplinks)
        self.taps: list[int] = []
        self.alone = self.tunnel = -1

    async def build(self) -> None:
        """Make everything."""
        place = self.paths.namespace
        await command(["ip", "netns", "add", place])
        await namespace.make_tap(place, "tunnel0")
        await command(["ip", "-n", place, "link", "set", "tunnel0", "mtu", "1600"])
        self.tunnel = await namespace.open_tap(place, "tunnel0")
        await self.switch.open()
        neighbour = ["neigh", "replace", PEER, "lladdr", PEER_MAC, "dev", UNDERLAY, "nud", "permanent"]
        await command(["ip", "-n", place, *neighbour])
        control = daemons.SwitchFiles.of(self.paths).control_socket("ovs-vswitchd")
        await call(control, "tnl/neigh/set", [UNDERLAY, PEER, PEER_MAC])
        self.taps = [await self.switch.open_tap((await self.switch.plug(spec)).tap) for spec in (ONE, TWO)]
        await namespace.make_tap(self.paths.namespace, tap_name(ALONE))
        self.alone = await namespace.open_tap(self.paths.namespace, tap_name(ALONE))
        await self.mirror.open()
        if self.mirror.problem():
            raise DriverError("MirrorUnsupported", self.mirror.problem())
        # One session stays all the time, at a VM that says nothing: what begins and ends is the one at the watched VM.
        await self.mirror.put(SourceSpec(id="idle", port=TWO.id, key=KEY + 1, target=PEER, direction="egress"))

    async def begin(self, case: Case, port: str) -> None:
        """Let the session be in force."""
        if case.name == SWITCH_MIRROR:
            await self._vsctl(
                "--", "--id=@in", "get", "port", tap_name(port), "--", "--id=@out", "create", "port", "name=erspan0",
                "interfaces=@i", "--", "--id=@i", "create", "interface", "name=erspan0", "type=erspan",
                f"options:remote_ip={PEER}", "options:key=1", "options:erspan_ver=1", "options:erspan_idx=1",
                "--", "add", "bridge", BRIDGE, "ports", "@out",
                "--", "--id=@m", "create", "mirror", "name=m", "select-src-port=@in", "select-dst-port=@in",
                "output-port=@out", "--", "set", "bridge", BRIDGE, "mirrors=@m",
            )  # fmt: skip
            return
        await self.mirror.put(
            SourceSpec(id="s", port=port, key=KEY, target=PEER, rules=case.rules, sample_one_in=case.sample_one_in)
        )

    async def end(self, case: Case) -> None:
        """End it."""
        if case.name == SWITCH_MIRROR:
            await self._vsctl("--", "clear", "bridge", BRIDGE, "mirrors", "--", "del-port", BRIDGE, "erspan0")
            return
        counts = (await self.mirror.observe())["s"].counts
        await self.mirror.remove("s")
        if not isinstance(counts, SourceCounts) or not counts.seen or bool(counts.sent) != (case.rules == ()):
            raise RuntimeError(f"{case.name} did not do what is measured: {counts}")

    async def remove(self) -> None:
        """Take everything down."""
        for descriptor in (*self.taps, self.alone, self.tunnel):
            if descriptor >= 0:
                os.close(descriptor)
        await self.mirror.tear_down()
        await self.switch.remove()

    async def _vsctl(self, *arguments: str) -> None:
        socket_ = daemons.SwitchFiles.of(self.paths).database_socket
        await command(["ovs-vsctl", f"--db=unix:{socket_}", "--timeout=10", *arguments])


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    turns = 15 if quick else 100
    report.say(
        f"mirror_source: {turns} turns of {TURN_S:g} s for each session, each with one without; {FLOWS} UDP flows"
    )
    with folder("mirror-source") as where:
        try:
            asyncio.run(_measure(report, where, turns))
        except DriverError as exc:
            report.say(f"mirror_source: left out; {exc}")


async def _measure(report: Report, where: Path, turns: int) -> None:
    if os.geteuid() != 0:
        raise DriverError("NotRoot", "it needs root")
    bench = Bench(where)
    try:
        await bench.build()
        for size_bytes in SIZES_BYTES:
            for case in CASES:
                await _compare(report, bench, case, size_bytes, turns)
        for case in CASES[:3]:
            await _compare_alone(report, bench, case, turns)
        await _compare_latency(report, bench, 500 if turns < 100 else 3000)
        for rate in RATES:
            await _lose(report, bench, rate)
    finally:
        await bench.remove()


async def _compare(report: Report, bench: Bench, case: Case, size_bytes: int, turns: int) -> None:
    frames = _frames(size_bytes)
    pid = daemons.running(daemons.SwitchFiles.of(bench.paths), "ovs-vswitchd")

    def turn() -> Turn:
        before_s = time.thread_time() + _cpu_s(pid)
        count, took_s = _pump(bench.taps, frames, TURN_S)
        return Turn(count / took_s, (time.thread_time() + _cpu_s(pid) - before_s) / count)

    name = f"mirror: a VM's own frames of {size_bytes} bytes through the switch, {case.name}"
    await _report_shares(report, bench, case, ONE.id, Plan(name, turn, turns, case.bar))


async def _compare_alone(report: Report, bench: Bench, case: Case, turns: int) -> None:
    frame = _frames(64)[0]

    def turn() -> Turn:
        began, began_cpu, count = time.monotonic(), time.thread_time(), 0
        while time.monotonic() - began < TURN_S:
            for _ in range(200):
                os.write(bench.alone, frame)
            count += 200
        return Turn(count / (time.monotonic() - began), (time.thread_time() - began_cpu) / count)

    name = f"mirror: frames into a tap without switch, {case.name}"
    await _report_shares(report, bench, case, ALONE, Plan(name, turn, turns))


async def _report_shares(report: Report, bench: Bench, case: Case, port: str, plan: Plan) -> None:
    """Report the median share that a session leaves of the rate without one, and the same of frames in a second of CPU."""
    pairs: list[tuple[Turn, Turn]] = []
    for number in range(plan.turns + 1):
        await bench.begin(case, port)
        try:
            one = plan.turn()
        finally:
            await bench.end(case)
        other = plan.turn()
        if number > 0:  # the first turn warms up
            pairs.append((one, other))
    share = median([one.rate / other.rate for one, other in pairs])
    rates = (
        f"{median([one.rate for one, _ in pairs]):.0f} and {median([other.rate for _, other in pairs]):.0f} frames/s"
    )
    report.add(
        Result(name=plan.name, value=share, unit="times", bar=plan.bar, at_least=True, ratio=share, reference=rates)
    )  # fmt: skip
    one_us, other_us = (1e6 * median([turns[place].cpu_s for turns in pairs]) for place in (0, 1))
    report.add(
        Result(name=f"{plan.name}, by CPU time", value=other_us / one_us, unit="times", ratio=other_us / one_us,
               reference=f"{one_us:.2f} and {other_us:.2f} µs a frame")
    )  # fmt: skip


def _cpu_s(pid: int | None) -> float:
    """Return the CPU time that a process has had, from the scheduler's own account."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def _compare_latency(report: Report, bench: Bench, count: int) -> None:
    """Frames one at a time, from tap to tap, in turn with and without a full mirror."""
    took_us: dict[bool, list[float]] = {True: [], False: []}
    frame = _frames(64)[0]
    for turn in range(10):
        has_session = turn % 2 == 0
        if has_session:
            await bench.begin(CASES[0], ONE.id)
        try:
            took_us[has_session] += [_one_us(bench.taps, frame) for _ in range(count // 5)]
        finally:
            if has_session:
                await bench.end(CASES[0])
    for percent in (50, 99):
        one, other = percentile(took_us[True], percent), percentile(took_us[False], percent)
        report.add(
            Result(name=f"mirror: latency that a full mirror adds, p{percent}", value=one - other, unit="µs",
                   ratio=one / other, reference=f"{one:.0f} and {other:.0f} µs")
        )  # fmt: skip


async def _lose(report: Report, bench: Bench, rate: int) -> None:
    """Frames at a rate into a tap without switch, for a second; their copies are read from the tunnel in between."""
    frame = _frames(64)[0]
    await bench.begin(CASES[0], ALONE)
    try:
        began, arrived, written = time.monotonic(), 0, 0
        _drain(bench.tunnel)
        while (passed_s := time.monotonic() - began) < 1.0:
            for _ in range(int(passed_s * rate) - written):
                os.write(bench.alone, frame)
                written += 1
                if written % int(rate * SLICE_S) == 0:
                    arrived += _drain(bench.tunnel)
        arrived += _drain(bench.tunnel)
        counts = (await bench.mirror.observe())["s"].counts
    finally:
        await bench.end(CASES[0])
    assert isinstance(counts, SourceCounts)  # a source is asked
    lost = 1 - min(arrived, counts.matched) / counts.matched
    report.add(
        Result(name=f"mirror: copies lost between VM and tunnel at {rate} frames/s", value=100 * lost, unit="%",
               reference=f"{written} frames written, {counts.sent} copies sent, {arrived} on the tunnel")
    )  # fmt: skip


def _one_us(taps: list[int], frame: bytes) -> float:
    began = time.perf_counter()
    os.write(taps[0], frame)
    while not _drain(taps[1]):
        select.select([taps[1]], [], [], 1.0)
    return (time.perf_counter() - began) * 1e6
