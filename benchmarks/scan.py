"""Scanning a disk against plain YARA-X on the same bytes, in turns; with 1,000 rules.

Plain is ``yara_x`` on the raw file as a whole, which it maps, or (``pieces``) reads in pieces of 8 MiB: the rules
compiled, no windows that lie over each other, no jail, no qcow2. Ours is everything: an interpreter's start, the rules
compiled, the jail, every window, but not the files one by one; it reads ahead with a second thread. Each value is the
best turn, because other work on the machine only ever adds; plain and ours follow each other. The bar is by CPU,
against the better of the plain ones: ours runs after whoever else wants the machine, so that time says less.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.clouds import folder
from benchmarks.report import Report, Result
from pileus.scan.disk import Layer, Limits, scan_disk
from pileus.scan.hunt import WINDOW_BYTES
from pileus.scan.rules import compile_rules, eicar

BAR = 0.8
MEMORY_MIB_MAX = 200
SEED = 6
MIB = 1024**2
RULES = 1000


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    filled_mib, turns = (256, 3) if quick else (1024, 5)
    if shutil.which("qemu-img") is None or os.geteuid() != 0:
        report.say("scan: left out; it needs qemu-img, and root for the jail")
        return
    report.say(f"scan: {filled_mib} MiB of random bytes and text, {RULES} rules, seed {SEED}; {turns} turns")
    with folder("scan") as where:
        fill(where / "disk.raw", filled_mib)
        convert = ("qemu-img", "convert", "-O", "qcow2", "-f", "raw")
        subprocess.run((*convert, where / "disk.raw", where / "disk.qcow2"), check=True)
        rules = eicar() + "".join(_rule(number) for number in range(RULES - 1))
        taken = [_turn(where, rules) for _ in range(turns)]
    best = {name: min(turn[name] for turn in taken) for name in taken[0]}
    fastest, cheapest = (min(best[f"plain{end}"], best[f"pieces{end}"]) for end in ("", " CPU"))
    for name in ("raw", "qcow2"):
        words = f"plain YARA-X: {filled_mib / fastest:.0f} MiB/s"
        report.add(Result(name=f"scan: {name}", value=filled_mib / best[name], unit="MiB/s",
                          ratio=fastest / best[name], reference=words))  # fmt: skip
        rate, words = filled_mib / best[f"{name} CPU"], f"plain YARA-X: {filled_mib / cheapest:.0f} MiB/s"
        report.add(Result(name=f"scan: {name}: by CPU", value=rate, unit="MiB/s", reference=words))
        share = cheapest / best[f"{name} CPU"]
        report.add(Result(name=f"scan: {name}: by CPU, part of plain", value=share, unit="", bar=BAR, at_least=True))
    peak = max(turn["MiB"] for turn in taken)
    report.add(Result(name="scan: memory at its peak", value=peak, unit="MiB", bar=MEMORY_MIB_MAX))


def fill(disk: Path, filled_mib: int) -> None:
    """Write a disk of which half is random, and half is text."""
    chance = random.Random(SEED)
    words = [f"{chance.choice(('alpha', 'begin', 'return', 'static', 'error'))}{number}" for number in range(1000)]
    with disk.open("wb") as file:
        for number in range(filled_mib):
            file.write(
                chance.randbytes(MIB) if number % 2 else " ".join(chance.choices(words, k=160_000)).encode()[:MIB]
            )


def _rule(number: int) -> str:
    """Return a rule as they are written for malware: a text, and bytes with gaps; none is found."""
    chance = random.Random(SEED * 10_000 + number)
    code = chance.randbytes(8).hex(" ").upper()
    text = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=14))
    return (
        f'rule r{number} {{ strings: $text = "{text}" ascii wide nocase $code = {{ {code} ?? ?? 0F {code[:2]} }}'
        " condition: any of them }\n"
    )


def _turn(where: Path, rules: str) -> dict[str, float]:
    """Return the seconds of everything, and the peak of memory."""
    taken: dict[str, float] = {}
    for name in ("plain", "pieces"):
        words = (sys.executable, "-m", "benchmarks.scan", name, where / "disk.raw")
        done = subprocess.run(words, input=rules.encode(), check=True, stdout=subprocess.PIPE)
        taken[name], taken[f"{name} CPU"] = map(float, done.stdout.split())
    for name, format in (("raw", "raw"), ("qcow2", "qcow2")):
        began, used = time.perf_counter(), _cpu_s()
        layer = Layer(str(where / f"disk.{format}"), "raw" if format == "raw" else "qcow2")
        found = asyncio.run(scan_disk([layer], rules, limits=Limits(), files_too=False))
        assert found.state == "clean", found
        taken[name] = time.perf_counter() - began
        taken[f"{name} CPU"] = _cpu_s() - used
    taken["MiB"] = _peak_mib(where, rules)
    return taken


def _peak_mib(where: Path, rules: str) -> float:
    """Return the most memory that a process of a scan has, told by the kernel while it runs."""

    async def watched() -> float:
        layer = Layer(str(where / "disk.qcow2"), "qcow2")
        scan = asyncio.create_task(scan_disk([layer], rules, scratch=where, limits=Limits(), files_too=True))
        peak = 0.0
        while not scan.done():
            peak = max([peak, *map(_high_mib, await asyncio.to_thread(_scanning, where))])
            await asyncio.sleep(0.01)
        assert (await scan).state == "clean"
        return peak

    return asyncio.run(watched())


def _scanning(where: Path) -> list[Path]:
    """Return /proc's folders of the processes that scan in ``where``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"pileus.scan.inmate" in line and str(where).encode() in line:
                found.append(entry)
    return found


def _high_mib(entry: Path) -> float:
    """Return the most memory that a process had; nothing for one that is gone."""
    try:
        lines = (entry / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def _cpu_s() -> float:
    """Return what all ended children used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Scan one file with plain YARA-X, in this interpreter, and print the seconds and CPU of it and of the rules."""
    import yara_x

    rules = sys.stdin.read()
    form, path = sys.argv[1:]
    began, used = time.perf_counter(), time.process_time()
    scanner = yara_x.Scanner(compile_rules(rules))
    if form == "plain":
        assert not scanner.scan_file(path).matching_rules
    else:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(WINDOW_BYTES):
                assert not scanner.scan(piece).matching_rules
    print(time.perf_counter() - began, time.process_time() - used)


if __name__ == "__main__":
    main()
