"""Runs of use: whatever hosts' clocks say, they never overlap, lie in the life of what they are of, and are of one piece."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.kernel.usage import Run, follow

MADE = 1000.0
OFF: dict[str, int] = {}
ON, MORE = {"vcpus": 1}, {"vcpus": 2}

amounts = st.sampled_from([OFF, ON, MORE, {"vcpus": 1, "disk_mib": 7}])
moments = st.one_of(
    st.just(0.0), st.floats(0.0, 5000.0), st.sampled_from([MADE, MADE + 1, 1e12, 253_402_300_799.0, float("inf")])
)
wishes = st.builds(Run, since=moments, until=st.just(0.0), amounts=amounts, host=st.sampled_from(["", "h", "g"]))


class Book:
    """Keeps runs as the database does: an end at the begin is no run, and one begin has one run."""

    def __init__(self) -> None:
        self.runs: dict[float, Run] = {}
        self.changes = 0

    @property
    def last(self) -> Run | None:
        """The newest run."""
        return self.runs[max(self.runs)] if self.runs else None

    def wish(self, wish: Run, now: float) -> None:
        """Note what is used."""
        ended, begun = follow(self.last, wish, now, MADE)
        if ended is not None and ended.until > ended.since:
            self.runs[ended.since] = ended
        elif ended is not None:
            del self.runs[ended.since]
        if begun is not None:
            self.runs[begun.since] = begun
        self.changes += ended is not None or begun is not None

    def check(self, now: float) -> None:
        """See that the runs are in order, and within the life of what they are of."""
        runs = [self.runs[since] for since in sorted(self.runs)]
        assert all(run.since == since for since, run in self.runs.items())
        assert all(run.until for run in runs[:-1])
        assert all(before.until <= after.since for before, after in itertools.pairwise(runs))
        assert all(MADE <= run.since <= now and (run.since < run.until <= now or not run.until) for run in runs)
        assert all(run.amounts for run in runs)


@settings(deadline=None)
@given(st.lists(st.tuples(wishes, st.one_of(st.just(0.0), st.floats(0.0, 100.0))), max_size=30))
def test_runs_never_overlap_and_lie_between_the_making_and_now(steps: list[tuple[Run, float]]) -> None:
    book, now = Book(), MADE
    for wish, passed_s in steps:
        now += passed_s
        book.wish(wish, now)
        book.check(now)
        last = book.last
        is_open = last is not None and not last.until
        assert is_open == bool(wish.amounts)
        if last is not None and is_open:
            assert (last.amounts, last.host) == (wish.amounts, wish.host)


@settings(deadline=None)
@given(st.lists(st.tuples(wishes, st.floats(0.0, 100.0)), max_size=10), wishes, st.floats(0.0, 100.0), moments)
def test_the_same_wish_again_changes_nothing(
    steps: list[tuple[Run, float]], wish: Run, later_s: float, since: float
) -> None:
    book, now = Book(), MADE
    for each, passed_s in [*steps, (wish, 0.0)]:
        now += passed_s
        book.wish(each, now)
    changes, runs = book.changes, dict(book.runs)
    book.wish(wish, now + later_s)
    book.wish(wish._replace(since=since), now + later_s)  # its host looked again, and has another clock
    assert (book.changes, book.runs) == (changes, runs)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=20, unique=True), st.floats(0.0, 50.0))
def test_what_is_said_late_by_a_clock_that_is_right_is_counted_as_it_was(at: list[float], late_s: float) -> None:
    book, used_s = Book(), 0.0
    moments = [MADE + each for each in sorted(at)]
    for number, moment in enumerate(moments):
        is_on = number % 2 == 0
        book.wish(Run(moment, 0.0, ON if is_on else OFF, "h"), moment + late_s)
        used_s += -moment if is_on else moment
    end = moments[-1] + late_s
    used_s += end if len(moments) % 2 else 0.0
    counted_s = sum((run.until or end) - run.since for run in book.runs.values())
    assert counted_s == pytest.approx(used_s, abs=1e-6)


@pytest.mark.parametrize(
    ("last", "wish", "now", "ended", "begun"),
    [
        (None, Run(0.0, 0.0, OFF, ""), 2000.0, None, None),
        (None, Run(0.0, 0.0, ON, "h"), 2000.0, None, 2000.0),
        (None, Run(1500.0, 0.0, ON, "h"), 2000.0, None, 1500.0),
        (None, Run(999.0, 0.0, ON, "h"), 2000.0, None, MADE),
        (None, Run(2001.0, 0.0, ON, "h"), 2000.0, None, 2000.0),
        (Run(1500.0, 0.0, ON, "h"), Run(1600.0, 0.0, ON, "h"), 2000.0, None, None),
        (Run(1500.0, 0.0, ON, "h"), Run(1600.0, 0.0, OFF, ""), 2000.0, 1600.0, None),
        (Run(1500.0, 0.0, ON, "h"), Run(1600.0, 0.0, MORE, "h"), 2000.0, 1600.0, 1600.0),
        (Run(1500.0, 0.0, ON, "h"), Run(1400.0, 0.0, OFF, ""), 2000.0, 1500.0, None),
        (Run(1500.0, 0.0, ON, "h"), Run(1500.0, 0.0, OFF, ""), 2000.0, 1500.0, None),
        (Run(1500.0, 1600.0, ON, "h"), Run(1550.0, 0.0, ON, "h"), 2000.0, None, 1600.0),
        (Run(1500.0, 0.0, ON, "h"), Run(0.0, 0.0, ON, "g"), 2000.0, 2000.0, 2000.0),
    ],
    ids=[
        "nothing", "from now on", "since it said", "never before it was made", "never after now", "it goes on",
        "it ended when its host says", "another size from when it was started", "no end before the begin",
        "it ended as it began", "not into a run that ended", "another host",
    ],
)  # fmt: skip
def test_a_run_ends_and_begins(
    last: Run | None, wish: Run, now: float, ended: float | None, begun: float | None
) -> None:
    was, comes = follow(last, wish, now, MADE)
    assert (was.until if was else None, comes.since if comes else None) == (ended, begun)
    assert comes is None or (comes.amounts, comes.host, comes.until) == (wish.amounts, wish.host, 0.0)
