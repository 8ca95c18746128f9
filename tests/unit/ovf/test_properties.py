"""Properties: defaults, what the caller gives, and what it may not."""

from __future__ import annotations

import pytest
from tests.unit.ovf.descriptors import collection, envelope, hardware, system

from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults
from pileus.ovf.model import Envelope, Property, PropertyValue
from pileus.ovf.properties import Setting, default_of, inherited, is_needed, problem, settings


def product(properties: str, attributes: str = "") -> str:
    return f"<ProductSection {attributes}><Info/>{properties}</ProductSection>"


def package(properties: str, attributes: str = "") -> Envelope:
    faults = Faults()
    found = read_descriptor([envelope(system("vm", hardware(), more=product(properties, attributes)))], faults)
    assert not faults.refused
    return found


def codes(faults: Faults) -> list[str]:
    return [fault.code for fault in faults.found]


FREE = 'ovf:userConfigurable="true"'


def test_settings_have_defaults_and_what_is_given() -> None:
    found = package(
        f'<Property ovf:key="a" ovf:type="string" {FREE} ovf:value="x"/>'
        f'<Property ovf:key="b" ovf:type="string" {FREE}/><Property ovf:key="c" ovf:type="boolean" ovf:value="true"/>',
        'ovf:class="org" ovf:instance="1"',
    )
    faults = Faults()
    made = settings(found, {"org.b.1": "y"}, faults)
    assert codes(faults) == []
    assert [(setting.key, setting.value) for setting in made["vm"]] == [
        ("org.a.1", "x"),
        ("org.b.1", "y"),
        ("org.c.1", "true"),
    ]


def test_what_may_not_be_given_is_told() -> None:
    found = package('<Property ovf:key="a" ovf:type="string" ovf:value="x"/><Property ovf:key="b" ovf:type="string"/>')
    faults = Faults()
    settings(found, {"a": "y", "zz": "1"}, faults)
    assert codes(faults) == ["not-configurable", "no-property"]
    faults = Faults()
    settings(found, {"a": "x"}, faults)
    assert codes(faults) == []


@pytest.mark.parametrize(
    ("kind", "more", "value", "fits"),
    [
        ("uint8", "", "255", True), ("uint8", "", "256", False), ("uint8", "", "-1", False), ("sint8", "", "-128", True),
        ("uint64", "", str((1 << 64) - 1), True), ("uint64", "", str(1 << 64), False), ("sint32", "", "x", False),
        ("int", "", "7", True), ("boolean", "", "True", True), ("boolean", "", "yes", False), ("real32", "", "1.5e3", True),
        ("real64", "", "nan", False), ("ip", "", "10.0.0.1", True), ("ip", "", "fe80::1", True), ("ip", "", "10.0.0", False),
        ("ip:lan", "", "10.0.0.1", True), ("string", "MinLen(2)", "x", False), ("string", "MinLen(2)", "xy", True),
        ("string", "MaxLen(2)", "xyz", False), ("string", 'ValueMap{&quot;a&quot;,&quot;b&quot;}', "b", True),
        ("string", 'ValueMap{&quot;a&quot;,&quot;b&quot;}', "c", False), ("uint16", "MinValue(10) MaxValue(20)", "9", False),
        ("uint16", "MinValue(10) MaxValue(20)", "20", True), ("uint16", "MaxValue(20)", "21", False),
        ("string", "", "a\0b", False), ("string", "", "a\nb", True), ("string", "", "x" * 70_000, False),
    ],
)  # fmt: skip
def test_values_are_checked(kind: str, more: str, value: str, *, fits: bool) -> None:
    found = package(f'<Property ovf:key="k" ovf:type="{kind}" ovf:qualifiers="{more}" {FREE}/>')
    faults = Faults()
    settings(found, {"k": value}, faults)
    assert codes(faults) == ([] if fits else ["bad-property"])


def test_a_secret_is_not_shown() -> None:
    found = package(f'<Property ovf:key="k" ovf:type="string" ovf:password="true" ovf:qualifiers="MinLen(20)" {FREE}/>')
    faults = Faults()
    settings(found, {"k": "hunter2"}, faults)
    assert "hunter2" not in str(faults.found[0])
    assert "at least 20" in str(faults.found[0])


@pytest.mark.parametrize(
    ("kind", "value", "length_min", "needed"),
    [("string", "", None, False), ("string", "", 1, True), ("uint8", "", None, True), ("uint8", "3", None, False),
     ("ip", "", None, True)],
)  # fmt: skip
def test_a_value_is_needed_where_nothing_cannot_be(
    kind: str, value: str, length_min: int | None, *, needed: bool
) -> None:
    one = Property(
        key="k", full_key="k", type=kind, user_configurable=True, length_min=length_min,
        values=(PropertyValue(value=value),) if value else (),
    )  # fmt: skip
    assert is_needed(one) is needed
    more = f'ovf:qualifiers="MinLen({length_min})"' if length_min else ""
    found = package(f'<Property ovf:key="k" ovf:type="{kind}" ovf:value="{value}" {more} {FREE}/>')
    faults = Faults()
    settings(found, {}, faults)
    assert codes(faults) == (["needs-value"] if needed else [])


def test_defaults_of_deployment_options() -> None:
    values = (PropertyValue(value="1"), PropertyValue(value="9", configuration="big"))
    one = Property(key="k", full_key="k", values=values)
    assert [default_of(one, option) for option in ("", "big", "small")] == ["1", "9", "1"]
    assert default_of(Property(key="k", full_key="k")) is None


def test_a_guest_is_told_its_collections_settings_too() -> None:
    text = envelope(
        collection(
            "all",
            product('<Property ovf:key="dns" ovf:type="string" ovf:value="1.1.1.1"/>')
            + system("a", hardware(), more=product('<Property ovf:key="x" ovf:type="string" ovf:value="A"/>'))
            + system("b"),
        )
    )
    found = read_descriptor([text], Faults())
    made = settings(found, {}, Faults())
    assert inherited(found, made, "a") == (Setting(key="dns", value="1.1.1.1"), Setting(key="x", value="A"))
    assert [setting.key for setting in inherited(found, made, "b")] == ["dns"]


def test_one_of_several_vms_is_meant_by_its_id() -> None:
    one = product(f'<Property ovf:key="ip" ovf:type="ip" {FREE}/>')
    text = envelope(collection("all", system("a", hardware(), more=one) + system("b", hardware(), more=one)))
    found = read_descriptor([text], Faults())
    made = settings(found, {"a/ip": "10.0.0.1", "b/ip": "10.0.0.2"}, Faults())
    assert [made[name][0].value for name in ("a", "b")] == ["10.0.0.1", "10.0.0.2"]


def test_a_problem_is_a_sentence() -> None:
    assert problem(Property(key="k", full_key="k", type="uint8"), "x") == "it must be a whole number from 0 to 255"
