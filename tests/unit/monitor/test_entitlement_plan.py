"""Which entitlements a VM needs, why it gets no seat, and what becomes of the seats that it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pileus.compute.vm.types import VmAssigned, VmDesired, VmObserved
from pileus.kernel.kind import Resource
from pileus.monitor.entitlement.plan import Short, is_in_force, needed, refusal
from pileus.monitor.entitlement.types import EntitlementAssigned, EntitlementDesired
from pileus.monitor.seat.plan import standing
from pileus.monitor.seat.types import SeatAssigned, SeatDesired, SeatObserved

NOW = 1_000_000.0


def entitlement(name: str = "db", ends: float = 0.0, starts: float = 0.0, **desired: Any) -> Resource:
    wish = {"product": "Database", "limit": 2, "ends": "E" if ends else "", "starts": "S", **desired}
    assigned = EntitlementAssigned(starts=starts, ends=ends)
    return Resource(
        id=name, kind="monitor.entitlement", name=name, desired=EntitlementDesired(**wish), assigned=assigned
    )


def vm(power: str = "running", observed: str = "running", rests: str = "no", **more: Any) -> Resource:
    seen = VmObserved(power=observed, rests=rests)  # type: ignore[arg-type]
    assigned = VmAssigned(zone="z", vdc="v", vcpus=1, memory_mib=1, disk_gib=1, host="h")
    desired = VmDesired(power=power)  # type: ignore[arg-type]
    there = {"host": "h", "observed_generation": 1, **more}
    return Resource(id="vm", kind="compute.vm", name="vm", desired=desired, assigned=assigned, observed=seen, **there)


def seat(owner: str = "db", off_since: float = 0.0, lease_s: int = 60) -> Resource:
    return Resource(
        id="seat",
        kind="monitor.seat",
        name="seat",
        account_id="acme",
        owner=owner,
        desired=SeatDesired(entitlement="db", vm="vm", lease_s=lease_s),
        assigned=SeatAssigned(entitlement="db", vm="vm", units=1, off_since=off_since),
        observed=SeatObserved(),
    )


def test_a_vm_needs_what_asks_for_labels_that_it_has_all_of() -> None:
    nobody = entitlement("nobody")
    one = entitlement("one", needed_by={"a": "1"})
    both = entitlement("both", needed_by={"a": "1", "b": "2"})
    mail = entitlement("mail", product="Mail", needed_by={"a": "1"})
    gone = replace(entitlement("gone", needed_by={"a": "1"}), deleting_at="now")
    everything = [nobody, one, both, mail, gone]
    assert needed(everything, {}) == {}
    assert needed(everything, {"a": "2", "b": "2"}) == {}
    assert needed(everything, {"a": "1", "c": "3"}) == {"Database": [one], "Mail": [mail]}
    assert needed(everything, {"a": "1", "b": "2"}) == {"Database": [one, both], "Mail": [mail]}


def test_of_several_the_reason_is_of_one_that_could_give_a_seat() -> None:
    full, over = entitlement("full"), entitlement("over", ends=NOW - 1)
    later = entitlement("later", starts=NOW + 1)
    used, units = {"full": 2, "over": 0, "later": 0}, {"full": 1, "over": 1, "later": 1}
    words = "no seat of entitlement full (2 of 2 instances in use); return one or register more"
    assert refusal([over, later, full], used, units, NOW) == Short(message=words)
    assert refusal([over, later], used, units, NOW) == Short(message="entitlement later begins S")
    assert refusal([over], used, units, NOW) == Short(message="entitlement over ended E; register another")


def test_what_can_never_fit_does_not_wait() -> None:
    small, large = entitlement("small", metric="vcpus"), entitlement("large", metric="vcpus", limit=8)
    units = {"small": 4, "large": 4}
    assert refusal([small], {"small": 0}, units, NOW).waits == "no"
    assert refusal([small, large], {"small": 0, "large": 8}, units, NOW).waits == "yes"


@pytest.mark.parametrize("at_end", ["return", "report", "stop"])
def test_a_seat_is_leave_to_run_until_end_and_grace(at_end: str) -> None:
    there = entitlement(ends=NOW, grace_s=10, at_end=at_end)
    assert is_in_force(there, NOW + 9)
    assert is_in_force(there, NOW + 10) == (at_end == "report")


def test_a_seat_of_the_cloud_stays_with_who_shall_run_and_one_made_by_hand_with_who_does() -> None:
    there = entitlement(lease_s=60)
    crashed, stopping = vm(observed="stopped"), vm("stopped", "running")
    off = vm("stopped", "stopped", "yes")
    for kept in (vm(), crashed, stopping, replace(off, generation=2)):
        assert standing(seat(), there, kept, NOW).returned == ""
        assert standing(seat(), there, kept, NOW).off_since == 0.0
    assert standing(seat("acme"), there, crashed, NOW).off_since == NOW
    for owner in ("db", "acme"):
        noted = standing(seat(owner), there, off, NOW)
        assert (noted.off_since, noted.after_s, noted.returned) == (NOW, 60.0, "")
        later = standing(seat(owner, off_since=NOW - 59), there, off, NOW)
        assert (later.off_since, later.after_s) == (NOW - 59, 1.0)
        assert "60 s" in standing(seat(owner, off_since=NOW - 60), there, off, NOW).returned
        assert standing(seat(owner), there, None, NOW).returned == "its VM is gone"


def test_a_seat_ends_with_its_entitlement_as_that_says() -> None:
    ended = vm("running", "stopped", "no")
    for owner in ("db", "acme"):
        for at_end, state, words in (("return", "held", "has ended"), ("report", "ended", ""), ("stop", "ended", "")):
            over = entitlement(ends=NOW, at_end=at_end, lease_s=60)
            found = standing(seat(owner), over, vm(), NOW)
            assert found.state == state
            assert words in found.returned
            assert bool(found.returned) == bool(words)
        stops = entitlement(ends=NOW, at_end="stop", lease_s=60)
        assert standing(seat(owner, off_since=1.0), stops, ended, NOW).returned == ""  # else it would start again
        assert standing(seat(owner, off_since=1.0), stops, vm("stopped", "stopped", "yes"), NOW).returned
