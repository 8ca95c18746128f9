"""A small part of JSONPath: ``{.observed.addresses[0]}``, ``.conditions[*].type``, ``labels['my-key']``."""

from __future__ import annotations

import re
from typing import Any

_STEP = re.compile(r"\.?(?:(?P<word>[A-Za-z0-9_-]+)|\[(?P<index>-?\d+|\*)\]|\['(?P<quoted>[^']*)'\])")

Step = str | int | None
"""A member, an element, or (None) all elements."""


def parse(text: str) -> tuple[Step, ...]:
    """Return the steps of a path; ``{}`` and a leading ``$`` or dot may be left out. Raises: ValueError."""
    bare = text.strip()
    if bare.startswith("{") and bare.endswith("}"):
        bare = bare[1:-1].strip()
    bare = bare.removeprefix("$")
    steps: list[Step] = []
    position = 0
    while position < len(bare):
        found = _STEP.match(bare, position)
        if found is None:
            if bare[position:] == "." and not steps:
                break
            raise ValueError(f"{text!r} is no path; write it like {{.observed.addresses[0]}}")
        index = found["index"]
        if index is not None:
            steps.append(None if index == "*" else int(index))
        else:
            steps.append(found["word"] if found["word"] is not None else found["quoted"])
        position = found.end()
    return tuple(steps)


def find(root: Any, steps: tuple[Step, ...]) -> list[Any]:
    """Return the values at the path; none when it leads nowhere. A number names an element also after a dot."""
    values = [root]
    for step in steps:
        values = [value for parent in values for value in _children(parent, step)]
    return values


def _children(parent: Any, step: Step) -> list[Any]:
    if step is None:
        return list(parent.values()) if isinstance(parent, dict) else list(parent) if isinstance(parent, list) else []
    if isinstance(parent, list) and str(step).lstrip("-").isdigit():
        position = int(step)
        return [parent[position]] if -len(parent) <= position < len(parent) else []
    return [parent[step]] if isinstance(parent, dict) and step in parent else []


def first(root: Any, path: str) -> Any:
    """Return the first value at the path; None when there is none."""
    found = find(root, parse(path))
    return found[0] if found else None
