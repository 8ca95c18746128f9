"""Units of capacities and memory: DSP0004's programmatic units, and the spellings that tools really write."""

from __future__ import annotations

import re

_WORDS = {
    "": 1,
    "byte": 1,
    "bytes": 1,
    "b": 1,
    "kilobyte": 1 << 10,
    "kb": 1 << 10,
    "kib": 1 << 10,
    "kibibyte": 1 << 10,
    "megabyte": 1 << 20,
    "mb": 1 << 20,
    "mib": 1 << 20,
    "mebibyte": 1 << 20,
    "gigabyte": 1 << 30,
    "gb": 1 << 30,
    "gib": 1 << 30,
    "gibibyte": 1 << 30,
    "terabyte": 1 << 40,
    "tb": 1 << 40,
    "tib": 1 << 40,
    "tebibyte": 1 << 40,
    "petabyte": 1 << 50,
    "pb": 1 << 50,
    "pib": 1 << 50,
}
"""Words stand for powers of two, as those who write them mean: VMware's ``MegaBytes`` is 2^20."""

_PREFIXES = {"kilo": 10**3, "mega": 10**6, "giga": 10**9, "tera": 10**12, "kibi": 1 << 10, "mebi": 1 << 20}
_FACTOR = re.compile(r"(\d{1,20})(?:\^(\d{1,3}))?")
_TEXT_MAX = 100
_POWER_MAX = 1 << 80


def bytes_per_unit(text: str) -> int | None:
    """Return how many bytes one unit is; None when it is no unit of storage.

    Takes ``byte``, ``byte * 2^30``, ``byte*1024*1024``, ``2^20 * byte``, ``MegaBytes``, ``GB``. Source: DSP0004 annex C.
    """
    return _scale(text, _WORDS, plural=True)


def hertz_per_unit(text: str) -> int | None:
    """Return how many hertz one unit is; None when it is no frequency. Takes ``hertz * 10^6``, ``Hertz*10^9``, ``MHz``."""
    words = {"": 1, "hertz": 1, "hz": 1, "khz": 10**3, "mhz": 10**6, "ghz": 10**9}
    words |= {f"{prefix}hertz": factor for prefix, factor in _PREFIXES.items()}
    return _scale(text, words, plural=False)


def number(text: str, *, most: int = (1 << 63) - 1) -> int | None:
    """Return the whole number that ``text`` is, 0 to ``most``; None otherwise."""
    plain = text.strip().removeprefix("+")
    if not plain.isascii() or not plain.isdigit() or len(plain) > 20:
        return None
    value = int(plain)
    return value if value <= most else None


def _scale(text: str, words: dict[str, int], *, plural: bool) -> int | None:
    if len(text) > _TEXT_MAX:
        return None
    scale, seen = 1, False
    for part in re.sub(r"\s+", "", text).lower().split("*"):
        word = part.removesuffix("s") if plural else part
        if word in words and not seen:
            scale, seen = scale * words[word], True
            continue
        found = _FACTOR.fullmatch(part)
        factor = None if found is None else _power(found)
        if factor is None:
            return None
        scale *= factor
        if scale > _POWER_MAX:
            return None
    return scale if seen and scale > 0 else None


def _power(found: re.Match[str]) -> int | None:
    base, exponent = int(found[1]), int(found[2] or 1)
    return base**exponent if base.bit_length() * exponent <= 80 else None
