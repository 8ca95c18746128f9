"""Which of two versions is older. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

Part = tuple[int, int, str]
Order = tuple[tuple[Part, ...], tuple[int, tuple[Part, ...]]]

_PARTS = re.compile(r"[0-9]+|[a-z]+")
_PARTS_MAX = 32
_DIGITS_MAX = 18


@lru_cache(maxsize=1024)
def order(version: str) -> Order:
    """Return what versions are compared by: ``1.2-rc1`` < ``1.2`` = ``v1.2.0+build`` < ``1.10``.

    Source: semver.org 2.0.0, 11, extended to any count of parts; letters after digits (``1.2a``) are a later part.
    """
    text = version.strip().lower().partition("+")[0]
    if text[:1] == "v" and text[1:2].isdigit():
        text = text[1:]
    release, mark, before = text.replace("~", "-", 1).partition("-")
    parts = list(_parts(release))
    while parts and parts[-1] == (1, 0, ""):
        parts.pop()
    return tuple(parts), (0 if mark else 1, _parts(before))


def _parts(text: str) -> tuple[Part, ...]:
    found = _PARTS.findall(text)[:_PARTS_MAX]
    return tuple((1, int(part[:_DIGITS_MAX]), "") if part.isdigit() else (2, 0, part) for part in found)


def is_older(one: str, other: str) -> bool:
    """Return whether ``one`` came before ``other``."""
    return order(one) < order(other)
