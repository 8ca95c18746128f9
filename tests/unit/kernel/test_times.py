"""Times that users write: with a zone, and such that they can be said again."""

from __future__ import annotations

import pytest

from pileus.kernel.clock import iso
from pileus.kernel.errors import Invalid
from pileus.kernel.times import parse_time


@pytest.mark.parametrize(
    "text",
    ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "1969-12-31T23:59:59Z", "2030-01-01T00:00:00", "2030-01-01Z",
     "2030-13-01T00:00:00Z", "2030-01-01T00:00:00+99:00", "1e308Z", ""],
)  # fmt: skip
def test_what_is_no_time_is_refused_where_it_is_written(text: str) -> None:
    with pytest.raises(Invalid, match=r"end_at .* is no time"):
        parse_time(text, "desired.end_at")


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59.000Z", "1970-01-01T00:00:00.000Z", "2030-01-31T12:00:00.000Z"])
def test_every_time_can_be_said_again(text: str) -> None:
    assert iso(parse_time(text, "desired.end_at")) == text
