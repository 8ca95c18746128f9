"""How long simulated hosts take to join and attach through the real agent API, and what they cost an idle server."""

from __future__ import annotations

import time

from benchmarks.clouds import Lab, cpu_s, folder, lab, memory_mib
from benchmarks.report import Report, Result

BAR_PER_S = 25_000 / 300
"""The blueprint's bar: 25,000 hosts within 5 minutes."""
IDLE_BAR_PERCENT = 30.0
SETTLE_S, WATCH_S = 15.0, 30.0
"""Longer than every period of an agent (report, sample, sweep: at most 30 s, spread over the hosts by chance)."""


def run(report: Report, *, quick: bool) -> None:
    """Measure at one or more sizes."""
    for hosts in (100,) if quick else (1_000, 5_000):
        report.say(f"attach: {hosts} simulated hosts, each with a key, a join token and a TLS stream of its own")
        with folder("attach") as where, lab(where, hosts) as it:
            _tell(report, it, hosts)


def _tell(report: Report, it: Lab, hosts: int) -> None:
    attach_s = it.ready_s - it.answering_s
    report.add(Result(name=f"attach: {hosts} hosts made and known to the server", value=it.answering_s, unit="s"))
    report.add(Result(name=f"attach: {hosts} hosts joined, attached and ready", value=attach_s, unit="s"))
    report.add(
        Result(name=f"attach: hosts per second of {hosts}", value=hosts / attach_s, unit="hosts/s",
               bar=round(BAR_PER_S, 1), at_least=True)
    )  # fmt: skip
    report.add(
        Result(name=f"attach: server CPU per host of {hosts}", value=cpu_s(it.server_pid) / hosts * 1000, unit="ms")
    )
    time.sleep(SETTLE_S)
    before, began = cpu_s(it.server_pid), time.monotonic()
    time.sleep(WATCH_S)
    percent = (cpu_s(it.server_pid) - before) / (time.monotonic() - began) * 100
    report.add(
        Result(
            name=f"attach: idle server with {hosts} hosts, of one core", value=percent, unit="%", bar=IDLE_BAR_PERCENT
        )
    )
    report.add(Result(name=f"attach: server's memory with {hosts} hosts", value=memory_mib(it.server_pid), unit="MiB"))
