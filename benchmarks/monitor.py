"""A monitor in a server (``monitor_cloud``), and before its engine alone, by CPU time: appliances polled per second, what
10,000 idle ones cost, and how long it takes from a report to the action that follows; there the reference is a bare loop
over json.loads of the same reports."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from benchmarks import monitor_cloud
from benchmarks.report import Report, Result, percentile, ratio
from pileus.node.monitor.engine import Engine

APPLIANCES = 10_000
POLL_S = 10.0
SEED = 6
START = 1_700_000_000.0


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    seconds = 20 if quick else 60
    report.say(f"monitor: {APPLIANCES} appliances of three applications, two policies, poll_s {POLL_S:g}, seed {SEED}")
    world = _World()
    _idle(report, world, seconds)
    _busy(report, world, seconds)
    _latency(report, world, 500 if quick else 5_000)
    monitor_cloud.run(report, quick=quick)


class _World:
    """An engine, and what its appliances answer; virtual time, real work."""

    def __init__(self) -> None:
        self.chance = random.Random(SEED)
        self.vms = [f"vm-{number:05}" for number in range(APPLIANCES)]
        self.engine = Engine()
        self.engine.configure(_document(self.vms))
        self.now = START
        self.bytes = 0

    def answer(self, vm: str, *, is_busy: bool, state: str = "running", exits: int = 0) -> bytes:
        """Return a report as it arrives."""
        if is_busy:
            self.bytes += 4096
        running = {"state": "running", "version": "2.1.0", "exits": 0, "code": "", "since": START}
        applications = {"web": {**running, "state": state, "exits": exits}, "cache": running, "worker": running}
        vitals = {
            "vm": vm, "process": "running", "boots": 1, "disk_bytes": self.bytes, "disk_operations": 7,
            "net_bytes": self.bytes, "node": "ready", "heard_s": 0.01, "boot_id": "7f3c1d52-9a44-4a0e-b7a5-2a7c1f5f9d11",
            "hash": "0123456789abcdef0123456789abcdef", "version": "1.4.0",
            "status": {"role": "applications", "applications": applications, "users": ["ann"], "registrations": {}},
        }  # fmt: skip
        return json.dumps({"vm": vm, "origin": "poll", "at": self.now, "vitals": vitals}).encode()

    def poll(self, until: float, *, is_busy: bool) -> tuple[int, int, float, float]:
        """Answer the polls until then; return how many there were, rows told, and seconds of CPU of engine and reference."""
        polls = rows = 0
        engine_s = reference_s = 0.0
        while self.now < until:
            began = time.process_time()
            work = self.engine.work(self.now)
            engine_s += time.process_time() - began
            answers = [self.answer(vm, is_busy=is_busy) for vm in work.polls]
            began = time.process_time()
            for answer in answers:
                json.loads(answer)
            between = time.process_time()
            for answer in answers:
                self.engine.hear(json.loads(answer), self.now)
            reference_s += between - began
            engine_s += time.process_time() - between
            polls += len(answers)
            rows += len(work.states)
            # What is due within a fiftieth of a second is done at once, as a runner does.
            self.now = max(work.next_at, self.now + 0.02)
        return polls, rows, engine_s, reference_s


def _idle(report: Report, world: _World, seconds: int) -> None:
    world.poll(world.now + 2 * POLL_S, is_busy=False)
    polls, rows, engine_s, reference_s = world.poll(world.now + seconds, is_busy=False)
    report.say(f"monitor: idle: {polls} polls in {seconds} s of virtual time, {rows} rows told")
    _add(report, "CPU of an engine with 10,000 idle appliances", 100 * engine_s / seconds, "%", engine_s, reference_s)
    _add(report, "appliances polled, nothing changes", polls / engine_s, "/s", polls / engine_s, polls / reference_s)


def _busy(report: Report, world: _World, seconds: int) -> None:
    polls, rows, engine_s, reference_s = world.poll(world.now + seconds, is_busy=True)
    report.say(f"monitor: with I/O: {polls} polls, {rows} rows told")
    _add(report, "appliances polled, all with I/O", polls / engine_s, "/s", polls / engine_s, polls / reference_s)


def _latency(report: Report, world: _World, count: int) -> None:
    times_s, reference_s = [], []
    for number, vm in enumerate(world.chance.sample(world.vms, count)):
        world.now += 0.05
        world.engine.work(world.now)
        body = world.answer(vm, is_busy=False, state="failed", exits=number + 1)
        began = time.process_time()
        json.loads(body)
        between = time.process_time()
        world.engine.hear(json.loads(body), world.now)
        actions = world.engine.work(world.now).actions
        if actions:
            times_s.append(time.process_time() - between)
            reference_s.append(between - began)
    if len(times_s) < count:
        raise RuntimeError(f"{len(times_s)} of {count} failures were acted on")
    for percent in (50, 99):
        value, reference = percentile(times_s, percent), percentile(reference_s, percent)
        _add(report, f"from a report to its action, p{percent}", value * 1000, "ms", value, reference)


def _add(report: Report, name: str, value: float, unit: str, measured: float, reference: float) -> None:
    bare = "json.loads of the same reports"
    found = ratio(measured, reference)
    report.add(Result(name=f"monitor: {name}", value=value, unit=unit, ratio=found, reference=bare))


def _document(vms: list[str]) -> dict[str, Any]:
    failed = {"field": "applications.*.state", "operator": "is", "value": "failed"}
    hung = {"field": "execution.state", "operator": "is", "value": "hung"}
    shared = {"match": "all", "mode": "enforce"}
    return {
        "settings": {"poll_s": POLL_S, "seed": SEED},
        "appliances": {vm: {"name": vm, "epoch": 1, "labels": {"tier": "web"}} for vm in vms},
        "policies": {
            "keep": {**shared, "name": "keep", "when": [failed], "do": [{"do": "restart-application"}]},
            "reset": {**shared, "name": "reset", "when": [hung], "do": [{"do": "restart"}]},
        },
    }
