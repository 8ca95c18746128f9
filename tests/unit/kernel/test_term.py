"""When something ends, when that is said, and when it is told to stop."""

from __future__ import annotations

import pytest

from pileus.kernel.term import SLACK_S, end_of, next_look_s, phase_of, stop_at


@pytest.mark.parametrize(
    ("end_at", "duration_s", "end"),
    [(0.0, 0, 0.0), (500.0, 0, 500.0), (0.0, 300, 400.0), (500.0, 300, 400.0), (350.0, 300, 350.0)],
)
def test_the_first_of_both_words_is_the_end(end_at: float, duration_s: int, end: float) -> None:
    assert end_of(100.0, end_at, duration_s) == end


def test_it_is_told_to_stop_in_time_but_never_in_its_first_half() -> None:
    assert stop_at(100.0, 0.0, 30.0) == 0.0
    assert stop_at(100.0, 1000.0, 30.0) == 1000.0 - 30.0 - SLACK_S
    assert stop_at(100.0, 140.0, 30.0) == 120.0


@pytest.mark.parametrize(
    ("now", "phase"),
    [(0, "on"), (399, "on"), (400, "soon"), (967, "soon"), (968, "ending"), (999, "ending"), (1000, "ended")],
)
def test_phases_follow_each_other(now: float, phase: str) -> None:
    assert phase_of(1000.0, 968.0, 600.0, now) == phase


def test_a_warning_that_is_shorter_than_the_stop_does_not_put_it_off() -> None:
    assert phase_of(1000.0, 968.0, 5.0, 969.0) == "ending"
    assert phase_of(0.0, 0.0, 600.0, 5.0) == "on"


def test_the_next_look_is_at_the_next_moment_ahead() -> None:
    assert next_look_s((5.0, 0.0, 30.0), 10.0) == 20.0
    assert next_look_s((5.0, 10.0), 10.0) == 0.0
