"""Sheets of use: the periods add up, to each other and to plain arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.metering.plan import HOUR_S, Amounts, Period, Sheet, Whose, month_start, starts

FIRST = datetime(2030, 1, 30, 22, 17, 3, tzinfo=UTC).timestamp()
LONGEST_S = 70 * 86_400.0
"""Over the ends of two months."""
Used = tuple[str, float, float, dict[str, int]]
Passed = tuple[str, int, int, int]
NAMES = st.sampled_from(["web", "db"])

offsets = st.floats(-LONGEST_S, 2 * LONGEST_S, allow_nan=False)
runs = st.lists(
    st.tuples(
        NAMES,
        offsets,
        st.floats(0.0, LONGEST_S),
        st.dictionaries(st.sampled_from(["vcpus", "memory_mib", "disk_mib", "addresses", "new"]), st.integers(0, 4096)),
    ),
    max_size=8,
)
passed = st.lists(
    st.tuples(NAMES, st.integers(-100, 2000), st.integers(0, 1 << 50), st.integers(0, 1 << 50)), max_size=8
)
spans = st.tuples(st.floats(0.0, LONGEST_S / 2), st.floats(1.0, LONGEST_S))


def whose(name: str) -> Whose:
    return Whose("a", "acme", "compute.vm", name, f"id-{name}")


def hour_of(number: int) -> int:
    return int(FIRST // HOUR_S * HOUR_S) + number * HOUR_S


def filled(since: float, until: float, per: Period, used: Sequence[Used], traffic: Sequence[Passed]) -> Sheet:
    """Return the sheet of a span with all that was used."""
    sheet = Sheet(since, until, per)
    for name, begin, length_s, amounts in used:
        sheet.add_run(whose(name), FIRST + begin, FIRST + begin + length_s, amounts)
    for name, hour, received, sent in traffic:
        sheet.add_traffic(whose(name), hour_of(hour), received, sent)
    return sheet


def summed(sheet: Sheet, name: str) -> Amounts:
    """Return what all lines of an object say together."""
    total = Amounts()
    for (about, _), amounts in sheet.lines.items():
        if about == whose(name):
            total.add({word: getattr(amounts, word) for word in amounts.__struct_fields__})
    return total


def plain(since: float, until: float, used: Sequence[Used], name: str, word: str) -> float:
    """Return amounts times overlap."""
    return sum(
        amounts.get(word, 0) * max(0.0, min(until, FIRST + begin + length_s) - max(since, FIRST + begin))
        for of, begin, length_s, amounts in used
        if of == name
    )


@settings(deadline=None)
@given(spans, runs, passed)
def test_hours_days_months_and_all_are_the_same_and_amounts_times_overlap(
    span: tuple[float, float], used: Sequence[Used], traffic: Sequence[Passed]
) -> None:
    since, until = FIRST + span[0], FIRST + span[0] + span[1]
    for per in get_args(Period):
        sheet = filled(since, until, per, used, traffic)
        for name in ("web", "db"):
            total = summed(sheet, name)
            for word in ("vcpus", "memory_mib", "disk_mib", "addresses"):
                expected = plain(since, until, used, name, word)
                assert getattr(total, word) == pytest.approx(expected, rel=1e-6, abs=0.01), (per, word)
            within = [each for each in traffic if each[0] == name and since <= hour_of(each[1]) < until]
            assert total.received_bytes == sum(each[2] for each in within)
            assert total.sent_bytes == sum(each[3] for each in within)
        whole = summed(sheet, "web")
        whole.add({word: getattr(summed(sheet, "db"), word) for word in whole.__struct_fields__})
        for word in whole.__struct_fields__:
            assert getattr(sheet.total, word) == pytest.approx(getattr(whole, word), rel=1e-9, abs=1e-3)


@settings(deadline=None)
@given(spans, st.floats(0.0, 1.0), passed, st.sampled_from(get_args(Period)))
def test_traffic_of_spans_side_by_side_adds_up_to_that_of_both(
    span: tuple[float, float], part: float, traffic: Sequence[Passed], per: Period
) -> None:
    since, until = FIRST + span[0], FIRST + span[0] + span[1]
    middle = since + part * span[1]
    whole = filled(since, until, per, [], traffic).total
    first, second = (filled(*each, per, [], traffic).total for each in ((since, middle), (middle, until)))
    assert first.received_bytes + second.received_bytes == whole.received_bytes
    assert first.sent_bytes + second.sent_bytes == whole.sent_bytes


@settings(deadline=None)
@given(spans, runs, st.sampled_from(get_args(Period)))
def test_every_line_lies_in_its_period_and_uses_no_more_than_that_is_long(
    span: tuple[float, float], used: Sequence[Used], per: Period
) -> None:
    since, until = FIRST + span[0], FIRST + span[0] + span[1]
    sheet = filled(since, until, per, used, [])
    for (about, position), amounts in sheet.lines.items():
        begin, end = sheet.bounds(position)
        assert since <= begin < end <= until
        most = sum(each[3].get("vcpus", 0) for each in used if each[0] == about.name)
        assert amounts.vcpus <= most * (end - begin) * (1 + 1e-9)


@settings(deadline=None)
@given(spans, st.sampled_from(["hour", "day", "month"]))
def test_periods_follow_each_other_and_begin_where_the_calendar_says(span: tuple[float, float], per: Period) -> None:
    since, until = FIRST + span[0], FIRST + span[0] + span[1]
    found = list(starts(since, until, per))
    assert found[0] == since
    assert all(before < after < until for before, after in itertools.pairwise(found))
    for start in found[1:]:
        begin = datetime.fromtimestamp(start, UTC)
        fields = (begin.minute, begin.second, begin.microsecond)
        assert fields == (0, 0, 0)
        assert per == "hour" or begin.hour == 0
        assert per != "month" or begin.day == 1


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2030-01-01T00:00:00+00:00", "2030-01-01"),
        ("2030-01-31T23:59:59.999+00:00", "2030-01-01"),
        ("2030-02-01T00:00:00+02:00", "2030-01-01"),
        ("2028-02-29T12:00:00+00:00", "2028-02-01"),
        ("2030-12-31T23:59:59+00:00", "2030-12-01"),
    ],
)
def test_months_begin_in_utc(at: str, expected: str) -> None:
    found = month_start(datetime.fromisoformat(at).timestamp())
    assert datetime.fromtimestamp(found, UTC) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_a_year_has_twelve_months_of_their_own_lengths() -> None:
    begin, end = datetime(2028, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
    sheet = Sheet(begin.timestamp(), end.timestamp(), "month")
    sheet.add_run(whose("web"), begin.timestamp() - 5, end.timestamp() + 5, {"vcpus": 2})
    days = [sheet.lines[whose("web"), position].vcpus / 2 / 86_400 for position in range(12)]
    assert days == [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    assert sheet.bounds(11)[1] - sheet.bounds(0)[0] == timedelta(days=366).total_seconds()


def test_what_is_shown_is_hours_gib_and_gb() -> None:
    used = Amounts(vcpus=7200, memory_mib=3600 * 512, disk_mib=3600 * 10_240, addresses=1800, received_bytes=5 * 10**9)
    assert used.shown() == {
        "vcpu_hours": 2.0,
        "memory_gib_hours": 0.5,
        "disk_gib_hours": 10.0,
        "address_hours": 0.5,
        "received_gb": 5.0,
        "sent_gb": 0.0,
    }
