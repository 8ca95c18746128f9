"""Which fields of a row conditions may name, and what a row has there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

EXECUTION = ("state", "node", "boots", "boot_id", "misses", "since", "heard_at")
CONFIGURATION = ("hash", "version")
IO = ("disk_bytes", "net_bytes", "idle_s")
APPLICATION = ("state", "version", "exits", "code", "since")
PARTS_MAX = 8
TEXT_MAX = 200
STAR = "*"

_FIXED = {"execution": EXECUTION, "configuration": CONFIGURATION, "io": IO}


class Missing:
    """The type of ``MISSING``."""


MISSING = Missing()
"""What a row has where it has nothing."""


class Field(NamedTuple):
    """A path into a row. ``star``: the place of the part that stands for a name, -1 without one."""

    text: str
    parts: tuple[str, ...]
    star: int

    @property
    def section(self) -> str:
        """The first part."""
        return self.parts[0]

    def named(self, subject: str) -> str:
        """Return the path with the name in it."""
        return ".".join(subject if place == self.star else part for place, part in enumerate(self.parts))


def read_field(text: str) -> Field:
    """Return the path. Raises ValueError that says what is wrong with it."""
    parts = tuple(text.split("."))
    if len(text) > TEXT_MAX or not all(parts):
        raise ValueError("this is no field")
    section = parts[0]
    if section in _FIXED:
        if len(parts) != 2 or parts[1] not in _FIXED[section]:
            raise ValueError(f"{section} has the fields {', '.join(_FIXED[section])}")
    elif section == "applications":
        parts = _application(parts)
    elif section != "other":
        raise ValueError("a field begins with execution, configuration, io, applications or other")
    elif not 2 <= len(parts) <= PARTS_MAX:
        raise ValueError(f"a field of other has 2 to {PARTS_MAX} parts")
    stars = [place for place, part in enumerate(parts) if STAR in part]
    if len(stars) > 1 or any(parts[place] != STAR for place in stars):
        raise ValueError("one whole part may be *, no more")
    return Field(text, parts, stars[0] if stars else -1)


def _application(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return section, name, field; an application's name may have dots."""
    if len(parts) == 2:
        return parts
    if len(parts) < 2 or parts[-1] not in APPLICATION:
        raise ValueError(f"an application has the fields {', '.join(APPLICATION)}")
    return parts[0], ".".join(parts[1:-1]), parts[-1]


def value(row: Mapping[str, Any], field: Field, subject: str) -> Any:
    """Return what the row has there, the name being ``subject``; MISSING for nothing."""
    found: Any = row
    for place, part in enumerate(field.parts):
        if not isinstance(found, dict):
            return MISSING
        found = found.get(subject if place == field.star else part, MISSING)
    return found


def names(row: Mapping[str, Any], field: Field) -> list[str]:
    """Return what the path's name can stand for in this row."""
    found: Any = row
    for part in field.parts[: max(field.star, 0)]:
        found = found.get(part) if isinstance(found, dict) else None
    if field.star < 0 or not isinstance(found, dict):
        return []
    return [name for name in found if isinstance(name, str)]
