"""Placement decisions per second at 5,000 hosts: the pure function that ranks hosts for a VM, each with room taken."""

from __future__ import annotations

import random
import time

from msgspec.structs import replace

from benchmarks.report import Report, Result, percentile
from pileus.compute.vm.placement import Candidate, Need, rank

HOSTS = 5_000
SEED = 30
ZONES = ("east", "west")


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    decisions = 200 if quick else 2_000
    chance = random.Random(SEED)
    report.say(f"placement: {decisions} decisions over {HOSTS} hosts, seed {SEED}")
    hosts = {f"host-{number:05}": _host(chance, number) for number in range(HOSTS)}
    times_s, placed = [], 0
    for _ in range(decisions):
        need = Need(zone=chance.choice(ZONES), vcpus=chance.choice((1, 2, 4, 8)),
                    memory_mib=chance.choice((512, 2048, 8192, 32_768)), disk_gib=20)  # fmt: skip
        began = time.perf_counter()
        ranked = rank(hosts.values(), need)
        times_s.append(time.perf_counter() - began)
        if ranked:
            placed += 1
            best = ranked[0]
            hosts[best.host] = replace(
                best,
                vcpus=best.vcpus - need.vcpus,
                memory_mib=best.memory_mib - need.memory_mib,
                disk_gib=best.disk_gib - 20,
            )
    if placed != decisions:
        raise RuntimeError(f"{placed} of {decisions} VMs found a host")
    name = f"placement: decisions per second at {HOSTS} hosts"
    report.add(Result(name=name, value=decisions / sum(times_s), unit="decisions/s"))
    report.add(Result(name="placement: one decision, p95", value=percentile(times_s, 95) * 1000, unit="ms"))


def _host(chance: random.Random, number: int) -> Candidate:
    name = f"host-{number:05}"
    return Candidate(
        host=name,
        name=name,
        zone=ZONES[number % 2],
        vcpus=chance.randrange(64, 1024),
        memory_mib=chance.randrange(65_536, 524_288),
        disk_gib=chance.randrange(1000, 10_000),
        refuses="Cordoned" if chance.random() < 0.02 else "",
    )
