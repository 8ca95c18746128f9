"""Resources as a table: the kind's columns, names instead of ids, sizes and ages as people read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pileus.cli.client import Json
from pileus.cli.paths import find, first, parse
from pileus.cli.progress import clean
from pileus.cli.units import human_duration, human_number, suffix
from pileus.kernel.clock import system_clock, unix
from pileus.kernel.kind import Column, Kind

Names = Mapping[str, str]

_COLOURS = {"true": "32", "false": "31", "unknown": "33", "gone": "2"}
_READY = "READY"


def coloured() -> bool:
    """Tell whether standard output may have colours. Source: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns_of(kind: Kind, *, wide: bool) -> tuple[Column, ...]:
    """Return the kind's columns for this width."""
    return tuple(column for column in kind.columns if wide or not column.wide)


class Layout:
    """The headers and cells of one kind's table; keeps its widths so that rows of a watch fit under each other."""

    def __init__(self, kind: Kind, *, wide: bool = False, accounts: bool = False, reasons: bool = False) -> None:
        self._columns = columns_of(kind, wide=wide)
        self._accounts = accounts
        self._reasons = reasons
        self._wide = wide
        account = ("ACCOUNT",) if accounts else ()
        reason = ("REASON",) if reasons else ()
        last = ("AGE", "ID") if wide else ("AGE",)
        self.headers = ("NAME", *account, *(column.header for column in self._columns), _READY, *reason, *last)
        self._widths = [len(header) for header in self.headers]

    def cells(self, item: Json, names: Names) -> list[str]:
        """Return the texts of one resource's row."""
        account = [item["account"] or "-"] if self._accounts else []
        status, reason = state_of(item)
        row = [item["name"], *account, *(_cell(item, column, names) for column in self._columns), status or "-"]
        if self._reasons:
            row.append("" if status == "true" and not item["deleting_at"] else reason)
        row.append(age(item["created_at"]))
        return [clean(text.rstrip()) for text in ([*row, item["id"]] if self._wide else row)]

    def fit(self, rows: Iterable[Sequence[str]]) -> None:
        """Widen the columns for these rows."""
        for row in rows:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]

    def line(self, row: Sequence[str], *, colour: bool = False) -> str:
        """Return one line of the table."""
        cells = [cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)]
        if colour:
            place = self.headers.index(_READY)
            code = _COLOURS.get(row[place])
            cells[place] = f"\x1b[{code}m{cells[place]}\x1b[0m" if code else cells[place]
        return "   ".join(cells).rstrip()


def state_of(item: Json) -> tuple[str, str]:
    """Return status and reason of the condition Ready; a resource being deleted says so."""
    ready = next((one for one in item["conditions"] if one["type"] == "Ready"), None)
    status, reason = (ready["status"], ready["reason"]) if ready else ("", "")
    return status, "Deleting" if item["deleting_at"] else reason


def needs_reason(items: Iterable[Json]) -> bool:
    """Tell whether a row has to say why it is not ready."""
    return any(state_of(item)[0] != "true" or item["deleting_at"] for item in items)


def age(created_at: str) -> str:
    """Return how long ago that was; ``-`` when it is no time."""
    try:
        return human_duration(system_clock() - unix(created_at))
    except ValueError:
        return "-"


def _cell(item: Json, column: Column, names: Names) -> str:
    value = find(item, parse(column.path)) if "*" in column.path else first(item, column.path)
    if value is None or value in ("", [], {}):
        return "-"
    if column.ref:
        return names.get(str(value), str(value))
    # A header that names the unit itself has bare numbers under it.
    if isinstance(value, int) and not column.header.lower().endswith(suffix(column.path) or "\0"):
        return human_number(column.path, value)
    return text_of(value)


def text_of(value: Any) -> str:
    """Return a JSON value on one line."""
    if isinstance(value, list):
        return ",".join(text_of(part) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{name}={text_of(part)}" for name, part in value.items())
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def plain(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, its columns as wide as they need; the last one is not padded."""
    every = [list(headers), *([clean(cell.rstrip()) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in every) for place in range(len(headers))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )
