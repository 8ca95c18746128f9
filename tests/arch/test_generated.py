"""The gates on generated files: what they find, and what they let pass."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct
from tools.check_schema import incompatible, schema
from tools.reference import pages

from pileus.kernel.condition import ready
from pileus.kernel.kind import Kind
from pileus.registry import KINDS


class Nic(Struct, frozen=True, kw_only=True):
    network: str
    address: str = ""


class Old(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=1, le=100)]
    power: Literal["running", "stopped"] = "running"
    note: str | None = None
    nics: tuple[Nic, ...] = ()


def kind(desired: type[Struct]) -> Kind:
    return Kind(name="test.thing", summary="A thing.", desired=desired, ready=lambda resource: ready())


def differences(desired: type[Struct]) -> list[str]:
    return incompatible(schema(kind(Old)), schema(kind(desired)))


class Wider(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=0, le=1000)]
    power: Literal["running", "stopped", "paused"] = "running"
    note: str | None = None
    nics: tuple[Nic, ...] = ()
    colour: str = "red"


class Removed(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=1, le=100)]
    power: Literal["running", "stopped"] = "running"
    nics: tuple[Nic, ...] = ()


class Narrower(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=2, le=50)]
    power: Literal["running"] = "running"
    note: str = ""
    nics: tuple[Nic, ...] = ()


class Demanding(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=1, le=100)]
    power: Literal["running", "stopped"]
    note: str | None = None
    nics: tuple[Nic, ...] = ()
    colour: str


class NarrowNic(Struct, frozen=True, kw_only=True):
    network: str
    address: int = 0


class Deep(Struct, frozen=True, kw_only=True):
    size_gib: Annotated[int, Meta(ge=1, le=100)]
    power: Literal["running", "stopped"] = "running"
    note: str | None = None
    nics: tuple[NarrowNic, ...] = ()


def test_a_type_that_takes_more_is_compatible() -> None:
    assert differences(Wider) == []


def test_a_type_is_compatible_with_itself() -> None:
    for one in KINDS:
        assert incompatible(schema(one), schema(one)) == []


@pytest.mark.parametrize(
    ("desired", "found"),
    [
        (Removed, ["desired.note: removed"]),
        (
            Narrower,
            [
                "desired.size_gib: minimum rose to 2",
                "desired.size_gib: maximum fell to 50",
                "desired.power: no longer takes stopped",
                "desired.note: the type was null and is string",
            ],
        ),
        (
            Demanding,
            ["desired.colour: required now; give it a default", "desired.power: required now; give it a default"],
        ),
        (Deep, ["desired.nics[].address: the type was string and is integer"]),
    ],
)
def test_a_type_that_takes_less_is_incompatible(desired: type[Struct], found: list[str]) -> None:
    assert differences(desired) == found


def test_the_reference_describes_every_kind_and_says_the_same_each_time() -> None:
    first = pages()
    assert {path.stem for path in first} >= {one.name for one in KINDS} | {"errors", "cli", "kinds", "reasons"}
    assert pages() == first
