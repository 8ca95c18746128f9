"""Admission of an end: what its words decide."""

from __future__ import annotations

from typing import Protocol

from pileus.kernel.errors import Invalid
from pileus.kernel.term import end_of
from pileus.kernel.times import parse_time


class Ending(Protocol):
    """A wish with an end."""

    @property
    def end_at(self) -> str: ...
    @property
    def duration_s(self) -> int: ...


def ends_of(desired: Ending) -> tuple[str, int]:
    """Return the words of its end."""
    return desired.end_at, desired.duration_s


def decided_end(desired: Ending, start: float, now: float) -> float:
    """Return when what began at ``start`` ends, in Unix seconds; 0: never. Raises: Invalid for no time, or a past one."""
    field = "desired.end_at" if desired.end_at else "desired.duration_s"
    end = end_of(start, parse_time(desired.end_at, field) if desired.end_at else 0.0, desired.duration_s)
    if 0 < end <= now:
        raise Invalid("its end would be in the past; say a later one, or delete it", field=field)
    return end
