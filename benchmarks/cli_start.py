"""How long one command takes, from the shell's view: start, imports, TLS, request, table.

Reference, measured in the same run: an interpreter that imports click, msgspec, http.client and ssl and does nothing.
Values are the fastest of ROUNDS, because other work on the machine only ever adds.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.clouds import PILEUS, folder, server
from benchmarks.report import Report, Result, ratio
from pileus.cli import contexts

ROUNDS = 15
ROWS = 100
BAR_MS = 150.0
REFERENCE = (sys.executable, "-c", "import click, msgspec, http.client, ssl")

CASES = {
    f"cli: pileus get network -A, {ROWS} rows": ("get", "network", "-A"),
    "cli: pileus get account acme-1 -o json": ("get", "account", "acme-1", "-o", "json"),
    "cli: pileus create vm --help": ("create", "vm", "--help"),
    "cli: pileus --help": ("--help",),
}


def fastest_ms(command: tuple[str, ...], rounds: int) -> float:
    """Return the wall time of the fastest run in ms."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)


def furnish(context: contexts.Context) -> None:
    """Sign in and make a zone and accounts, each of which brings a network."""
    contexts.put("bench", context)
    accounts = [f"kind: account\nname: acme-{number}\n" for number in range(ROWS)]
    documents = "---\n".join(["kind: zone\nname: local\n", *accounts])
    subprocess.run([*PILEUS, "apply", "-f", "-"], input=documents, text=True, check=True, stdout=subprocess.DEVNULL)


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    rounds = 5 if quick else ROUNDS
    report.say(f"cli: the fastest of {rounds} runs of each command")
    with folder("cli") as where:
        (where / "data").mkdir(mode=0o700)
        with server(where / "data") as (context, _):
            furnish(context)
            reference = fastest_ms(REFERENCE, rounds)
            for case, arguments in CASES.items():
                value = fastest_ms((*PILEUS, *arguments), rounds)
                report.add(
                    Result(name=case, value=value, unit="ms", bar=BAR_MS, ratio=ratio(value, reference),
                           reference=f"an interpreter that imports the same libraries: {reference:.0f} ms")
                )  # fmt: skip
