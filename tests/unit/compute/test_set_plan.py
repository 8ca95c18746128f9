"""What a set does next: from any members to any wish, in any order of steps."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pileus.compute.set.plan import Member, observe, plan
from pileus.compute.set.types import SetDesired


def member(number: int, **more: Any) -> Member:
    """Return a member that runs as wished."""
    wished: dict[str, Any] = {
        "id": f"m{number}", "number": number, "power": "running", "boot_serial": 0, "booted": 0, "is_ready": "yes",
        "is_going": "no", "seen": "running",
    }  # fmt: skip
    return Member(**{**wished, **more})


ALL = [member(number) for number in range(1, 6)]


def test_what_is_missing_is_made_and_what_is_too_much_goes_newest_first() -> None:
    assert plan({1, 2, 3}, [], SetDesired()).make == (1, 2, 3)
    assert plan({1, 2}, ALL, SetDesired()).drop == ("m5", "m4", "m3")
    assert plan({1, 2, 3, 4, 5}, ALL, SetDesired()) == plan(set(), [], SetDesired())


def test_a_number_whose_member_is_still_going_is_not_made_yet_and_not_dropped_twice() -> None:
    leaving = [member(1, is_going="yes")]
    assert plan({1}, leaving, SetDesired()) == plan(set(), leaving, SetDesired()) == plan(set(), [], SetDesired())


@pytest.mark.parametrize("power", ["stopped", "paused"])
def test_power_is_changed_for_all_at_once(power: Any) -> None:
    assert plan({1, 2, 3, 4, 5}, ALL, SetDesired(power=power)).power == ("m1", "m2", "m3", "m4", "m5")


def test_a_member_that_is_to_go_elsewhere_is_stopped_whatever_is_wished() -> None:
    done = plan({1, 2, 3, 4, 5}, ALL, SetDesired(), off={2})
    assert (done.stop, done.power) == (("m2",), ())
    stopped = [replace(each, power="stopped") if each.number == 2 else each for each in ALL]
    assert plan({1, 2, 3, 4, 5}, stopped, SetDesired(), off={2}) == plan(set(), [], SetDesired())
    assert plan({1, 2, 3, 4, 5}, stopped, SetDesired()).power == ("m2",)


def test_a_restart_goes_on_only_as_long_as_members_come_back() -> None:
    wish, wanted = SetDesired(restart_serial=1), set(range(1, 6))
    assert plan(wanted, ALL, wish).boot == ("m1",)
    booting = [replace(ALL[0], boot_serial=1, is_ready="no"), *ALL[1:]]
    assert plan(wanted, booting, wish).boot == ()
    back = [replace(ALL[0], boot_serial=1, booted=1), *ALL[1:]]
    assert plan(wanted, back, wish).boot == ("m2",)
    assert len(plan(set(range(1, 41)), [member(number) for number in range(1, 41)], wish).boot) == 4
    stopped = [replace(each, power="stopped", seen="stopped") for each in ALL]
    assert len(plan(wanted, stopped, replace(wish, power="stopped")).boot) == 5


def test_every_member_that_is_not_as_wished_is_told_up_to_a_bound() -> None:
    bad = [member(number, is_ready="no", reason="StartFailed", message="no disk") for number in range(1, 31)]
    seen = observe(set(range(1, 32)), [*bad, member(31)], SetDesired())
    assert (seen.wanted, seen.members, seen.ready, len(seen.results)) == (31, 31, 1, 20)
    assert (seen.results[0].number, seen.results[0].reason) == (1, "StartFailed")
