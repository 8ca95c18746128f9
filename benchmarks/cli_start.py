"""How long one command takes, from the shell's view: start, imports, TLS, request, table.

Reference, measured in the same run: an interpreter that imports click, msgspec, http.client and ssl and does nothing.
Prints JSON lines {"name","value","unit","bar","ratio","holds"}; values are the fastest of ROUNDS, because other work on
the machine only ever adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pileus.cli import contexts

ROUNDS = 15
ROWS = 100
LIMIT_S = 60.0
BAR_MS = 150.0
PILEUS = (sys.executable, "-m", "pileus.cli.main")
REFERENCE = (sys.executable, "-c", "import click, msgspec, http.client, ssl")

CASES = {
    f"cli: pileus get network -A, {ROWS} rows": ("get", "network", "-A"),
    "cli: pileus get account acme-1 -o json": ("get", "account", "acme-1", "-o", "json"),
    "cli: pileus create vm --help": ("create", "vm", "--help"),
    "cli: pileus --help": ("--help",),
}


def fastest_ms(command: tuple[str, ...]) -> float:
    """Return the wall time of the fastest run in ms."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Return a server on a free port and its address."""
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*PILEUS, "server", "--data", str(folder / "data"), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        if line.startswith("server ready at "):
            url = line.removeprefix("server ready at ").strip()
        elif "pileus login" in line:  # comes last, once the key's file is written
            return server, url
    raise RuntimeError((folder / "log").read_text())


def furnish(folder: Path, url: str) -> None:
    """Sign in and make a zone and accounts, each of which brings a network."""
    data = folder / "data"
    key = (data / "operator-key").read_text().strip()
    contexts.put("bench", contexts.Context(server=url, ca=(data / "tls" / "ca.crt").read_text(), key=key))
    accounts = [f"kind: account\nname: acme-{number}\n" for number in range(ROWS)]
    documents = "---\n".join(["kind: zone\nname: local\n", *accounts])
    subprocess.run([*PILEUS, "apply", "-f", "-"], input=documents, text=True, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="pileus-cli-start-") as name:
        folder = Path(name)
        os.environ["PILEUS_CONFIG"] = str(folder / "config.json")
        server, url = start_server(folder)
        try:
            furnish(folder, url)
            reference = fastest_ms(REFERENCE)
            for case, arguments in CASES.items():
                value = fastest_ms((*PILEUS, *arguments))
                line = {
                    "name": case,
                    "value": round(value, 1),
                    "unit": "ms",
                    "bar": BAR_MS,
                    "ratio": round(value / reference, 2),
                    "holds": value <= BAR_MS,
                }
                print(json.dumps(line), flush=True)
        finally:
            server.terminate()
            server.wait(LIMIT_S)


if __name__ == "__main__":
    main()
