"""What the monitors of an account may write: much at once, a bounded number in each second, and nothing is lost by it."""

from __future__ import annotations

import pytest

from pileus.server.deciding import WRITES_BURST, WRITES_PER_S, Allowance


def test_much_may_be_written_at_once_and_then_so_much_in_each_second() -> None:
    allowance, now, written = Allowance(100.0), 100.0, 0
    while now < 160.0:
        while not allowance.wait_s(now):
            allowance.spend(1)
            written += 1
        now += 0.1
    assert written == pytest.approx(WRITES_BURST + 60 * WRITES_PER_S, abs=2)


def test_what_is_written_together_is_waited_for_afterwards() -> None:
    allowance = Allowance(0.0)
    allowance.spend(int(WRITES_BURST + 2 * WRITES_PER_S))
    assert 2.0 <= allowance.wait_s(0.0) < 2.1
    assert allowance.wait_s(1.0) < 1.1
    assert allowance.wait_s(2.1) == 0.0


def test_a_clock_that_is_set_back_gives_nothing_and_stops_nothing() -> None:
    allowance = Allowance(1000.0)
    allowance.spend(int(WRITES_BURST) + 10)
    assert 0.0 < allowance.wait_s(10.0) < 1.0
    assert allowance.wait_s(11.0) == 0.0
