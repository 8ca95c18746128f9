"""What a section's type says about itself: its fields, its references, and what in a request does not belong there."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct, inspect

from pileus.kernel.errors import Invalid


class FieldShape(Struct, frozen=True, kw_only=True):
    """One field: its name, the kind it refers to (or none), and its struct when it holds one or a list of them."""

    name: str
    ref: str = ""
    struct: type[Struct] | None = None
    many: bool = False


@functools.cache
def fields(struct: type[Struct]) -> dict[str, FieldShape]:
    """Return the fields of a struct by name."""
    shape = inspect.type_info(struct)
    assert isinstance(shape, inspect.StructType)
    return {field.name: _field(field.name, field.type) for field in shape.fields}


def _field(name: str, type_: inspect.Type) -> FieldShape:
    ref = ""
    many = False
    while True:
        if isinstance(type_, inspect.Metadata):
            ref = ref or str((type_.extra or {}).get("ref", ""))
            type_ = type_.type
        elif isinstance(type_, inspect.VarTupleType | inspect.ListType):
            many, type_ = True, type_.item_type
        elif isinstance(type_, inspect.UnionType):
            type_ = next(part for part in type_.types if not isinstance(part, inspect.NoneType))
        else:
            break
    nested = type_.cls if isinstance(type_, inspect.StructType) else None
    return FieldShape(name=name, ref=ref, struct=nested, many=many)


def refuse_unknown(struct: type[Struct], given: Any, path: str) -> None:
    """Raises: Invalid for the first field of ``given`` that ``struct`` does not have, with the closest that it has."""
    if not isinstance(given, dict):
        return
    known = fields(struct)
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(sorted(known))}"
            raise Invalid(f"{path} has no field {name!r}{hint}", code="unknown-field", field=f"{path}.{name}")
        nested = known[name].struct
        if nested is not None:
            items = value if known[name].many and isinstance(value, list) else [value]
            for position, item in enumerate(items):
                refuse_unknown(nested, item, f"{path}.{name}" + (f"[{position}]" if known[name].many else ""))


def references(section: Struct, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, kind, value) of every reference that is set: ``("nics.0.network", "network.network", "x")``."""
    for field in fields(type(section)).values():
        value = getattr(section, field.name)
        here = f"{path}{field.name}"
        items = [(f"{here}.{position}", item) for position, item in enumerate(value)] if field.many else [(here, value)]
        for where, item in items:
            if field.ref and item:
                yield where, field.ref, item
            elif isinstance(item, Struct):
                yield from references(item, f"{where}.")


def decode(struct: type[Struct], text: bytes | msgspec.Raw, path: str) -> Any:
    """Return the section that ``text`` (JSON) says. Raises: Invalid naming the field."""
    try:
        given = msgspec.json.decode(text)
        refuse_unknown(struct, given, path)
        return msgspec.convert(given, struct)
    except msgspec.ValidationError as error:
        raise invalid(error, path) from None
    except msgspec.DecodeError as error:
        raise Invalid(f"the request is not JSON: {error}", code="not-json") from None


def invalid(error: msgspec.ValidationError, path: str) -> Invalid:
    """Return msgspec's message with the full path of the field, and the unit that it takes."""
    message, _, where = str(error).partition(" - at `")
    field = path + where.rstrip("`").removeprefix("$")
    if missing := missing_in(message):
        return Invalid(f"{field}.{missing} is missing", field=f"{field}.{missing}")
    unit = next((text for suffix, text in UNITS.items() if field.endswith(suffix)), "")
    return Invalid(f"{field}: {message[:1].lower()}{message[1:]}{unit}", field=field)


def missing_in(message: str) -> str:
    """Return the field that msgspec misses by that message; empty: it says something else."""
    found = _MISSING.fullmatch(message)
    return found[1] if found else ""


_MISSING = re.compile(r"Object missing required field `(\w+)`")

UNITS = {
    "_mib": " (a whole number of MiB)",
    "_gib": " (a whole number of GiB)",
    "_kbps": " (a whole number of kilobits per second)",
    "_kib_s": " (a whole number of KiB per second)",
    "_s": " (a whole number of seconds)",
    "_bytes": " (a whole number of bytes)",
}
"""What a field takes, by the ending of its name."""
