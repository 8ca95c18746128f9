"""When people are told that a callback fails, and when it is tried again."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pileus.fleet.manager.plan import RETRY_MAX_S, SHOWN_AFTER, Delivery, report, retry_s
from pileus.fleet.manager.types import ManagerObserved

GOOD = ManagerObserved(webhook_key="whpk_x")
BAD = ManagerObserved(webhook_key="whpk_x", waiting=5, failing_since="then", message="why")
FAILS = Delivery(failures=SHOWN_AFTER, failing_since="now", waiting=7, message="down")


@pytest.mark.parametrize(
    ("known", "delivery", "expected"),
    [
        (GOOD, Delivery(), GOOD),
        (GOOD, Delivery(failures=SHOWN_AFTER - 1, waiting=1, message="hiccup"), GOOD),
        (GOOD, FAILS, replace(GOOD, waiting=7, failing_since="now", message="down")),
        (BAD, FAILS, replace(BAD, waiting=7, message="down")),
        (BAD, replace(FAILS, is_due=False), BAD),
        (BAD, Delivery(waiting=9), BAD),  # another server took over, and has not tried yet
        (BAD, Delivery(failures=1, waiting=9), BAD),
        (BAD, Delivery(taken=True, waiting=4), replace(GOOD, waiting=4)),
        (BAD, Delivery(waiting=0), GOOD),  # what waited was withdrawn
        (GOOD, Delivery(taken=True, waiting=4, is_due=False), GOOD),
        (GOOD, Delivery(taken=True, waiting=4), replace(GOOD, waiting=4)),
        (replace(GOOD, waiting=4), Delivery(is_due=False), GOOD),
    ],
)
def test_what_is_shown(known: ManagerObserved, delivery: Delivery, expected: ManagerObserved) -> None:
    assert report(known, delivery) == expected
    assert report(expected, replace(delivery, is_due=False)) == expected, "said once, it is not said again"


def test_it_is_tried_again_ever_later_but_every_minute_at_least() -> None:
    most = [retry_s(failures, 1.0) for failures in range(1, 10_000)]
    assert most[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(most[6:]) == {RETRY_MAX_S}
    assert [retry_s(failures, 0.0) for failures in (1, 100)] == [0.5, 30.0]
