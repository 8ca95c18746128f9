"""What the type of a section says of its fields, for flags, ``explain`` and completion."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from msgspec import Struct, inspect

Form = Literal["text", "integer", "number", "choice", "struct", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field. ``many``: a list of such values; ``default`` is None when it is required or has none."""

    name: str
    form: Form = "json"
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    length_min: int | None = None
    length_max: int | None = None
    items_min: int | None = None
    items_max: int | None = None
    pattern: str = ""
    ref: str = ""
    flag: str = ""
    file: bool = False
    unit: str = ""
    internal: bool = False
    description: str = ""
    required: bool = False
    default: Any = None
    struct: type[Struct] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The choices that are words: an empty one is what nothing said means, and is not shown."""
        return tuple(filter(None, self.choices))

    plain_text: bool = False
    """For JSON: a value that is none is taken as text."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the struct that it holds; none when it holds another thing."""
        return fields_of(self.struct) if self.struct is not None else ()


@dataclass(slots=True)
class _Reading:
    known: dict[str, Any] = field(default_factory=dict)


@functools.cache
def fields_of(struct: type[Struct]) -> tuple[Field, ...]:
    """Return the fields of a struct in the order of its type; those that users never write are not among them."""
    shape = inspect.type_info(struct)
    assert isinstance(shape, inspect.StructType)
    made = (_field(one) for one in shape.fields)
    return tuple(one for one in made if not one.internal)


def walk(struct: type[Struct], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Yield (path, field) of every field, the fields of nested structs after the one that holds them."""
    for one in fields_of(struct):
        yield (*prefix, one.name), one
        if one.struct is not None:
            yield from walk(one.struct, (*prefix, one.name))


def _field(shape: inspect.Field) -> Field:
    reading = _Reading()
    _read(shape.type, reading)
    default = shape.default
    if default is msgspec.NODEFAULT and shape.default_factory is not msgspec.NODEFAULT:
        default = shape.default_factory()
    made = Field(name=shape.encode_name, required=shape.required, **reading.known)
    return made if default is msgspec.NODEFAULT else replace(made, default=_plain(default))


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _read(type_: inspect.Type, into: _Reading) -> None:
    """Collect what the type says, from its annotations inwards."""
    known = into.known
    if isinstance(type_, inspect.Metadata):
        _read_annotations(type_, known)
        _read(type_.type, into)
    elif isinstance(type_, inspect.VarTupleType | inspect.ListType):
        _read_list(type_, into)
    elif isinstance(type_, inspect.UnionType):
        rest = [part for part in type_.types if not isinstance(part, inspect.NoneType)]
        known["optional"] = len(rest) < len(type_.types)
        if len(rest) == 1:
            _read(rest[0], into)
        known["plain_text"] = len(rest) > 1 and any(isinstance(part, inspect.StrType) for part in rest)
    else:
        known.update(_leaf(type_))


def _read_annotations(type_: inspect.Metadata, known: dict[str, Any]) -> None:
    said = {**(type_.extra or {}), "description": (type_.extra_json_schema or {}).get("description", "")}
    for name in ("description", "ref", "flag", "file", "unit", "internal"):
        if said.get(name) and name not in known:
            known[name] = said[name]


def _read_list(type_: inspect.VarTupleType | inspect.ListType, into: _Reading) -> None:
    if into.known.get("many"):
        return  # a list of lists has no flag of its own: it is given as JSON
    into.known.update(many=True, items_min=type_.min_length, items_max=type_.max_length)
    inner = _Reading()
    _read(type_.item_type, inner)
    if inner.known.get("many"):
        into.known.update(many=False, form="json")
        return
    into.known.update({name: value for name, value in inner.known.items() if name not in into.known})


def _leaf(type_: inspect.Type) -> dict[str, Any]:
    if isinstance(type_, inspect.StrType):
        return {
            "form": "text",
            "length_min": type_.min_length,
            "length_max": type_.max_length,
            "pattern": type_.pattern or "",
        }
    if isinstance(type_, inspect.IntType | inspect.FloatType):
        form = "integer" if isinstance(type_, inspect.IntType) else "number"
        return {"form": form, "minimum": type_.ge, "maximum": type_.le}
    if isinstance(type_, inspect.LiteralType):
        return {"form": "choice", "choices": tuple(str(value) for value in type_.values)}
    if isinstance(type_, inspect.StructType):
        return {"form": "struct", "struct": type_.cls}
    return {"form": "json"}
