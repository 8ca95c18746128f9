"""Units as the standard has them and as tools write them."""

from __future__ import annotations

import pytest

from pileus.ovf.names import UnsafeName, decoded, inside
from pileus.ovf.units import bytes_per_unit, hertz_per_unit, number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 1), ("byte", 1), ("Byte", 1), ("byte * 2^10", 1 << 10), ("byte * 2^20", 1 << 20), ("byte*2^30", 1 << 30),
        ("byte * 2 ^ 20", 1 << 20), ("byte*1024*1024", 1 << 20), ("2^20 * byte", 1 << 20), ("byte * 10^9", 10**9),
        ("MegaBytes", 1 << 20), ("Megabytes", 1 << 20), ("KB", 1 << 10), ("GB", 1 << 30), ("GigaByte", 1 << 30),
        ("bytes * 2^40", 1 << 40), ("MB", 1 << 20), ("TeraBytes", 1 << 40),
        ("furlong", None), ("byte * byte", None), ("byte * -1", None), ("byte * 2^99999", None), ("2^20", None),
        ("byte * 0", None), ("byte * 2^", None), ("byte " * 40, None), ("byte / 2", None),
    ],
)  # fmt: skip
def test_units_of_storage(text: str, expected: int | None) -> None:
    assert bytes_per_unit(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hertz * 10^6", 10**6), ("Hertz*10^9", 10**9), ("MHz", 10**6), ("MegaHertz", 10**6), ("byte", None)],
)
def test_units_of_frequency(text: str, expected: int | None) -> None:
    assert hertz_per_unit(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), (" 12 ", 12), ("+3", 3), (str((1 << 63) - 1), (1 << 63) - 1), (str(1 << 63), None), ("-1", None), ("", None),
     ("1.5", None), ("٣", None), ("9" * 1000, None), ("0x10", None)],
)  # fmt: skip
def test_numbers(text: str, expected: int | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a..b", "..a", "a..", "...", "sun..vhw-disk1.vmdk", "ä", "a%zz", "a b", "vm:1.vmdk"]
)
def test_names_inside(name: str) -> None:
    assert inside(name) == name


@pytest.mark.parametrize(("name", "expected"), [("./a", "a"), ("a//b", "a/b"), ("a/./b/", "a/b")])
def test_names_are_made_plain(name: str, expected: str) -> None:
    assert inside(name) == expected


@pytest.mark.parametrize(
    "name",
    [r"..", r"../a", r"a/..", r"a/../b", r"/a", r"\a", r"..\a", r"%2e%2e/a", r"http://x/a", r"HTTPS:x", r"", r"."],
)
def test_names_outside(name: str) -> None:
    with pytest.raises(UnsafeName):
        inside(name)


def test_percent_escapes() -> None:
    assert decoded("a%20b") == "a b"
    assert decoded("a%ffb") is None
    assert decoded("a%b") is None
