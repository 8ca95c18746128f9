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
    """Measure hosts that join, and the same hosts when server and agents start again."""
    for hosts in (100,) if quick else (1_000,):
        report.say(f"attach: {hosts} simulated hosts, each with a key, a certificate and a TLS stream of its own")
        with folder("attach") as where:
            with lab(where, hosts) as it:
                port = it.context.server.rpartition(":")[2]
                _joined(report, it, hosts)
            with lab(where, hosts, "--port", port) as it:
                _attached(report, it, hosts)
                _idle(report, it, hosts)


def _joined(report: Report, it: Lab, hosts: int) -> None:
    joined_s = it.ready_s - it.answering_s
    report.add(Result(name=f"attach: {hosts} new hosts made, server's start included", value=it.answering_s, unit="s"))
    report.add(Result(name=f"attach: {hosts} new hosts joined, attached and ready", value=joined_s, unit="s"))
    used_ms = cpu_s(it.server_pid) / hosts * 1000
    report.add(Result(name=f"attach: server's CPU per new host, of {hosts}", value=used_ms, unit="ms"))


def _attached(report: Report, it: Lab, hosts: int) -> None:
    attached_s = it.ready_s - it.answering_s
    report.add(Result(name=f"attach: {hosts} known hosts attached, agents' start included", value=attached_s, unit="s"))
    name = f"attach: known hosts per second, of {hosts}"
    bar = round(BAR_PER_S, 1) if hosts >= 1_000 else None  # with few, the start of the processes is what takes time
    report.add(Result(name=name, value=hosts / attached_s, unit="hosts/s", bar=bar, at_least=True))


def _idle(report: Report, it: Lab, hosts: int) -> None:
    time.sleep(SETTLE_S)
    before, began = cpu_s(it.server_pid), time.monotonic()
    time.sleep(WATCH_S)
    percent = (cpu_s(it.server_pid) - before) / (time.monotonic() - began) * 100
    name = f"attach: idle server with {hosts} hosts, of one core"
    report.add(Result(name=name, value=percent, unit="%", bar=IDLE_BAR_PERCENT))
    report.add(Result(name=f"attach: server's memory with {hosts} hosts", value=memory_mib(it.server_pid), unit="MiB"))
