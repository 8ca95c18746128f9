"""Runs the benchmarks one after the other; prints their JSON lines as they come, and a table at the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from tools.code import ROOT

FOLDER = ROOT / "benchmarks"


class Result(Struct, frozen=True, kw_only=True):
    """One figure. ``ratio`` is the value against the reference of the same run; ``bar`` what it must keep."""

    name: str
    value: float
    unit: str
    bar: float | str | None = None
    ratio: float | None = None
    holds: bool | None = None


def run(script: Path) -> Iterator[Result | None]:
    """Yield the results of a benchmark, and None at the end if it failed."""
    command = [sys.executable, "-m", f"benchmarks.{script.stem}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.startswith("{"):
                yield msgspec.json.decode(line, type=Result)
    if child.returncode != 0:
        yield None


def table(results: Sequence[Result]) -> str:
    """Return the results for people."""
    head = ("benchmark", "value", "unit", "bar", "ratio", "holds")
    rows = [
        head,
        *(tuple(_cell(getattr(one, name if name != "benchmark" else "name")) for name in head) for one in results),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(names: Sequence[str]) -> int:
    """Run all benchmarks, or those named, and return the exit code: 1 when a bar was missed or one failed."""
    scripts = [one for one in sorted(FOLDER.glob("[a-z]*.py")) if "__main__" in one.read_text()]
    results: list[Result] = []
    failed = []
    for script in scripts:
        if not names or script.stem in names:
            for result in run(script):
                results += [result] if result else []
                failed += [] if result else [script.stem]
    sys.stdout.write("\n" + table(results))
    missed = [one.name for one in results if one.holds is False]
    print(
        f"benchmarks: {len(results)} figures, {len(missed)} below their bar" + "".join(f", {n} FAILED" for n in failed)
    )
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
