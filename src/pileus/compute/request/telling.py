"""The times of a request, read and told; and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.request.types import TOLD_MAX, Missing, RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.clock import iso
from pileus.kernel.errors import Invalid
from pileus.kernel.fields import YEAR_S
from pileus.kernel.times import END, parse_time


def window(desired: RequestDesired, now: float) -> tuple[float, float]:
    """Return the first and the last moment at which it may start. Raises: Invalid for words that contradict each other."""
    if desired.start_at and desired.start_within_s:
        raise Invalid("start_at and start_within_s are two words for one thing; give one", field="desired.start_at")
    if not desired.start_at:
        return now, now + desired.start_within_s
    start = parse_time(desired.start_at, "desired.start_at")
    if start < now:
        raise Invalid(f"start_at {desired.start_at} has passed already", field="desired.start_at")
    if start + YEAR_S >= END:
        raise Invalid(f"start_at {desired.start_at} is too far ahead to say its end", field="desired.start_at")
    return start, start


def observe(
    desired: RequestDesired, assigned: RequestAssigned, rows: Sequence[PlacementAssigned], now: float
) -> RequestObserved:
    """Return what is said of the request."""
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    placed = {row.number for row in rows}
    missing = [
        Missing(number=row.number, reason=row.reason, message=row.message, server=row.server)
        for row in rows
        if row.state in ("refused", "moving", "preempted")
    ]
    missing += [
        Missing(number=number, reason="NoCapacity", message=assigned.message)
        for number in range(1, desired.count + 1)
        if number not in placed and rows
    ]
    missing.sort(key=lambda each: each.number)
    ends = assigned.end
    return RequestObserved(
        phase=assigned.phase,
        states=dict(sorted(states.items())),
        missing_count=len(missing),
        missing=tuple(missing[:TOLD_MAX]),
        starts_at=iso(assigned.start or assigned.start_from),
        ends_at=iso(ends) if ends else "",
        is_ending="yes" if ends and now >= ends - desired.warn_s else "no",
    )
