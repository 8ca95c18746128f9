"""Quantities as people write and read them: ``1GiB`` given for a field in MiB, 1536 MiB shown as 1.5 GiB."""

from __future__ import annotations

import math
import re

UNITS = {
    "mib": "MiB", "gib": "GiB", "bytes": "bytes", "kib_s": "KiB per second", "s": "seconds", "ms": "milliseconds",
    "percent": "percent",
}  # fmt: skip
"""What the end of a field's name says of its unit. ``kbps`` is bits in one field and bytes in another."""

_BYTES = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30, "t": 2**40, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SCALES: dict[str, tuple[dict[str, float], float]] = {
    "mib": (dict(_BYTES), 2**20),
    "gib": (dict(_BYTES), 2**30),
    "bytes": (dict(_BYTES), 1),
    "kib_s": (dict(_BYTES), 2**10),
    "s": (dict(_SECONDS), 1),
    "ms": (dict(_SECONDS), 0.001),
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def suffix(name: str) -> str:
    """Return the longest word of UNITS at the end of a field's name; empty for none."""
    return max((unit for unit in UNITS if name.endswith(f"_{unit}")), key=len, default="")


def refuse_number(flag: str, unit: str, text: str) -> str:
    """Return the message for ``text`` that is no whole number; ``unit`` is a word of UNITS or empty."""
    if not unit:
        return f"{flag} takes a whole number, not {text!r}"
    message = f"{flag} takes {UNITS[unit]} as a whole number"
    found = _QUANTITY.fullmatch(text.strip().removesuffix("/s" if unit == "kib_s" else ""))
    scale, size = _SCALES.get(unit, ({}, 1))
    factor = scale.get(found[2].lower()) if found else None
    if not found or factor is None:
        return f"{message}, not {text!r}"
    exact = float(found[1]) * factor / size
    if exact == int(exact):
        return f"{message}; for {text} say {int(exact)}"
    return f"{message}; {text} lies between {math.floor(exact)} and {math.ceil(exact)}"


def human_bytes(count: int) -> str:
    """Return a size with at most one decimal: 512 B, 1.5 KiB, 3 GiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.1f}".removesuffix(".0") + f" {unit}"
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + " TiB"


def human_duration(seconds: float) -> str:
    """Return an age in its largest unit, two below ten minutes: 4s, 3m20s, 5h, 12d, 3y."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    for size, unit in ((31_557_600, "y"), (86_400, "d"), (3600, "h")):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole // 60}m"


def human_number(path: str, value: int) -> str:
    """Return a number of the field at ``path`` for a table, with its unit where the name says one."""
    unit = suffix(path.rpartition(".")[2]) if value else ""
    if unit == "bytes":
        return human_bytes(value)
    if unit in ("mib", "gib"):
        return human_bytes(value * (2**20 if unit == "mib" else 2**30))
    return str(value)


def parse_duration(text: str) -> float | None:
    """Return seconds of ``90``, ``90s``, ``5m`` or ``1h``; None when it is no duration."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    found = _QUANTITY.fullmatch(text)
    factor = _SECONDS.get(found[2].lower()) if found else None
    return float(found[1]) * factor if found and factor is not None else None
