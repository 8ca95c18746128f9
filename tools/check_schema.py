"""Compares the kinds' types with the committed JSON schemas, and refuses a change that older clients, agents or rows
would not survive. ``--write`` commits the current ones to disk; ``--accept`` writes incompatible ones too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pileus.kernel.kind import Empty, Kind
from pileus.registry import KINDS
from tools.code import ROOT

FOLDER = ROOT / "docs" / "reference" / "schema"
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")

Schema = dict[str, Any]


def schema(kind: Kind) -> Schema:
    """Return the JSON schemas of a kind's sections, with what they share under ``$defs``."""
    sections = {
        name: getattr(kind, name) for name in ("desired", "assigned", "observed") if getattr(kind, name) is not Empty
    }
    built, parts = msgspec.json.schema_components(tuple(sections.values()), ref_template="#/$defs/{name}")
    return {"sections": dict(zip(sections, built, strict=True)), "$defs": parts}


def incompatible(old: Schema, new: Schema) -> list[str]:
    """Return what an older client, agent or row would not survive, a sentence each."""
    found = []
    for name, section in old["sections"].items():
        if name not in new["sections"]:
            found.append(f"{name}: removed")
        else:
            found += _Comparison(old["$defs"], new["$defs"]).differences(section, new["sections"][name], name)
    return found


class _Comparison:
    """Compares two schemas, each with its own shared parts."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new

    def differences(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        """Yield what ``new`` does not take that ``old`` did."""
        old, new = _resolved(old, self._old), _resolved(new, self._new)
        if "anyOf" in old or "anyOf" in new:
            yield from self._alternatives(old, new, path)
            return
        if old.get("type") != new.get("type") and (old.get("type"), new.get("type")) != ("integer", "number"):
            yield f"{path}: the type was {old.get('type', 'any')} and is {new.get('type', 'any')}"
            return
        yield from _limits(old, new, path)
        yield from self._fields(old, new, path)
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self.differences(old["items"], new["items"], f"{path}[]")

    def _alternatives(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        offered = new.get("anyOf", [new])
        for one in old.get("anyOf", [old]):
            results = [list(self.differences(one, other, path)) for other in offered]
            if all(results):
                yield from min(results, key=len)

    def _fields(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, field in before.items():
            if name not in after:
                yield f"{path}.{name}: removed"
            else:
                yield from self.differences(field, after[name], f"{path}.{name}")
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{path}.{name}: required now; give it a default"


def _resolved(schema: Schema, parts: Schema) -> Schema:
    while "$ref" in schema:
        schema = parts[schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _limits(old: Schema, new: Schema, path: str) -> Iterator[str]:
    taken: list[Any] = new.get("enum") or old.get("enum") or []
    gone = [value for value in old.get("enum", []) if value not in taken]
    if gone or ("enum" in new and "enum" not in old):
        yield f"{path}: no longer takes {', '.join(map(str, gone)) or 'every value'}"
    for word in LOWER:
        if word in new and new[word] > old.get(word, float("-inf")):
            yield f"{path}: {word} rose to {new[word]}"
    for word in UPPER:
        if word in new and new[word] < old.get(word, float("inf")):
            yield f"{path}: {word} fell to {new[word]}"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield f"{path}: the pattern changed"


def text(kind: Kind) -> str:
    """Return the file of a kind."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Check, or write, and return the exit code."""
    current = {FOLDER / f"{kind.name}.json": kind for kind in KINDS}
    broken, stale = [], []
    for path in sorted({*current, *FOLDER.glob("*.json")}):
        if path not in current:
            broken.append(f"{path.stem}: the kind was removed")
        elif not path.is_file() or path.read_text() != text(current[path]):
            stale.append(path)
            old = json.loads(path.read_text()) if path.is_file() else None
            broken += [f"{path.stem}.{line}" for line in incompatible(old, schema(current[path]))] if old else []
    for line in broken:
        print(f"incompatible: {line}")
    if broken and "--accept" not in arguments:
        print("new fields need defaults, and nothing that was taken may be refused; see DEVELOPMENT.md")
        return 1
    if "--write" in arguments or "--accept" in arguments:
        _write(stale, current)
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current; run: make docs")
    return 1 if stale else 0


def _write(stale: Sequence[Path], current: dict[Path, Kind]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(text(current[path]))
        print(f"wrote {path.relative_to(ROOT)}")
    for path in FOLDER.glob("*.json"):
        if path not in current:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
