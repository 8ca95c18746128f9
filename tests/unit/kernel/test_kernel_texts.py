"""The kernel's small parts: ids, merge, shape, rights, names."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from pileus.kernel.access import Principal, Rule, covers
from pileus.kernel.clock import iso, unix
from pileus.kernel.errors import Denied, Invalid
from pileus.kernel.ids import IdSource, is_id
from pileus.kernel.kind import is_name
from pileus.kernel.merge import merge_patch
from pileus.kernel.shape import decode, references
from pileus.registry import KINDS

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_ids_go_up_even_when_the_clock_goes_back() -> None:
    source = IdSource()
    ids = [source.next(now) for now in [5.0] * 5000 + [4.0, 4.5, 6.0, 1.0]]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(is_id(each) and each[14] == "7" and each[19] in "89ab" for each in ids)


def test_no_name_looks_like_an_id() -> None:
    assert not is_id("web")
    assert not is_id("01ba60d3-3e40-7005-ab51-B70DF08C636A")
    assert not is_name("01ba60d3-3e40-7005-ab51-b70df08c636a")


@pytest.mark.parametrize("text", ["a", "web-1", "a" * 63])
def test_names_are_dns_labels(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "1a", "A", "a_b", "a.b", "a" * 64, "a\n", "ä", "../x", "a b"])
def test_nothing_else_is_a_name(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_merge_as_rfc_7396_says(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(json_values, json_values)
def test_a_patch_does_not_change_its_arguments_and_is_the_same_twice(target: Any, patch: Any) -> None:
    before = msgspec.json.encode([target, patch])
    once = merge_patch(target, patch)
    assert msgspec.json.encode([target, patch]) == before
    assert merge_patch(once, patch) == once


class Inner(Struct, frozen=True):
    network: Annotated[str, Meta(extra={"ref": "network.network"})] = ""


class Disk(Struct, frozen=True):
    size_gib: int


class Outer(Struct, frozen=True, kw_only=True):
    memory_mib: Annotated[int, Meta(ge=1)] = 1
    disks: tuple[Disk, ...] = ()
    nics: tuple[Inner, ...] = ()
    images: tuple[Annotated[str, Meta(extra={"ref": "storage.image"})], ...] = ()


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (b'{"memory_mb":1}', "desired.memory_mb", "desired has no field 'memory_mb'; did you mean memory_mib?"),
        (
            b'{"nics":[{},{"netwrk":"x"}]}',
            "desired.nics[1].netwrk",
            "desired.nics[1] has no field 'netwrk'; did you mean network?",
        ),
        (b'{"memory_mib":"1G"}', "desired.memory_mib", "desired.memory_mib: expected `int`, got `str` (a whole number of MiB)"),
        (b'{"memory_mib":-1}', "desired.memory_mib", "desired.memory_mib: expected `int` >= 1 (a whole number of MiB)"),
        (b'{"nics":7}', "desired.nics", "desired.nics: expected `array`, got `int`"),
        (b'{"disks":[{}]}', "desired.disks[0].size_gib", "desired.disks[0].size_gib is missing"),
    ],
)  # fmt: skip
def test_what_does_not_belong_in_a_wish_is_refused_by_name(text: bytes, field: str, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        decode(Outer, text, "desired")
    assert (refused.value.field, refused.value.message) == (field, message)


def test_what_is_not_json_is_said_to_be_so() -> None:
    with pytest.raises(Invalid) as refused:
        decode(Outer, b"{", "desired")
    assert refused.value.code == "not-json"


def test_references_are_found_wherever_they_are() -> None:
    found = list(references(Outer(nics=(Inner("a"), Inner(), Inner("b")), images=("i",))))
    assert found == [
        ("nics.0.network", "network.network", "a"),
        ("nics.2.network", "network.network", "b"),
        ("images.0", "storage.image", "i"),
    ]


def test_every_reference_of_every_kind_names_a_kind() -> None:
    for kind in KINDS:
        for text in str(msgspec.inspect.type_info(kind.desired)).split("'ref': '")[1:]:
            assert text.partition("'")[0] in KINDS


@given(st.floats(min_value=0, max_value=4e9))
def test_times_sort_as_text_and_come_back(unix_s: float) -> None:
    assert abs(unix(iso(unix_s)) - unix_s) < 0.002
    assert iso(unix_s) <= iso(unix_s + 1)


@pytest.mark.parametrize(
    ("holder", "wanted", "result"),
    [
        (Rule(kinds=("*",), verbs=("get", "update")), Rule(kinds=("compute.*",), verbs=("get",)), True),
        (Rule(kinds=("compute.*",), verbs=("get",)), Rule(kinds=("*",), verbs=("get",)), False),
        (Rule(kinds=("compute.vm",), verbs=("get",)), Rule(kinds=("compute.*",), verbs=("get",)), False),
        (Rule(kinds=("compute.*",), verbs=("get",)), Rule(kinds=("compute.vm",), verbs=("delete",)), False),
        (Rule(kinds=("compute.*",), verbs=("get",)), Rule(kinds=("compute.vm",), verbs=("get",)), True),
    ],
)
def test_rights_cover_only_what_they_allow(holder: Rule, wanted: Rule, result: bool) -> None:
    assert covers([holder], wanted, [kind.name for kind in KINDS]) == result


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("console", "may not use consoles, logs and ports of VMs; ask for a role with the verb console"),
        ("delete", "may not delete compute.vm; ask for a role that may"),
    ],
)
def test_who_may_not_is_told_which_role_may(verb: str, message: str) -> None:
    rules = (Rule(kinds=("*",), verbs=("get",)),)
    ann = Principal(user_id="1", user="ann", account_id="2", account="acme", role="reader", rules=rules)
    ann.require("get", "compute.vm")
    with pytest.raises(Denied) as refused:
        ann.require(verb, "compute.vm")
    assert refused.value.message == f"user ann (role reader) {message}"
