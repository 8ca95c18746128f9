"""Results: JSON lines as they are measured, and one table at the end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct


class Result(Struct, frozen=True, kw_only=True):
    """One number. ``ratio`` is to ``reference``, measured in the same run; ``bar`` None: reported only.

    ``at_least``: the bar is the least that is good enough, else the most.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    ratio: float | None = None
    reference: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar is kept; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> str:
        """Return the result as JSON."""
        fields = {"name": self.name, "value": _short(self.value), "unit": self.unit, "bar": self.bar}
        return json.dumps({**fields, "ratio": None if self.ratio is None else _short(self.ratio), "holds": self.holds})


def _short(value: float) -> float:
    return round(value, 3 if abs(value) < 10 else 1)


def ratio(value: float, reference: float) -> float | None:
    """Return value over reference, where there is one."""
    return value / reference if reference else None


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value below which ``percent`` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(values)


class Report:
    """Prints results as they come, and keeps them for the table and, if wanted, a file."""

    def __init__(self, file: Path | None = None) -> None:
        self.results: list[Result] = []
        self._file = file

    def add(self, result: Result) -> None:
        """Take a result."""
        self.results.append(result)
        print(result.line(), flush=True)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{result.line()}\n")

    def say(self, text: str) -> None:
        """Print what is going on."""
        print(f"# {text}", flush=True)

    def table(self) -> str:
        """Return all results as a table in Markdown."""
        rows = [("what", "value", "bar", "ratio", "reference", "holds")]
        for each in self.results:
            bar = "" if each.bar is None else f"{'≥' if each.at_least else '≤'} {each.bar:g}"
            holds = {True: "yes", False: "**no**", None: ""}[each.holds]
            shown = "" if each.ratio is None else f"{_short(each.ratio):g}"
            rows.append((each.name, f"{_short(each.value):g} {each.unit}", bar, shown, each.reference, holds))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)
