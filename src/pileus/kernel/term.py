"""Terms: when something that was asked for ends, when that is said before, and when it is to be stopped for it. Pure.

All times are Unix seconds; 0 stands for never.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

SLACK_S = 2.0
"""Before its end a machine is told to stop so much earlier than its guest may need."""
NEXT_MIN_S = 0.05

ENDS_SOON = "EndsSoon"
"""Reason and event of what ends soon."""

Phase = Literal["on", "soon", "ending", "ended"]
"""``soon``: its end is near, and said. ``ending``: it is told to stop, so that it has stopped at its end."""


def end_of(start: float, end_at: float, duration_s: float) -> float:
    """Return when something ends that began at ``start``: at a time, after a while, or whichever comes first."""
    ends = [end for end in (end_at, start + duration_s if duration_s else 0.0) if end]
    return min(ends, default=0.0)


def stop_at(start: float, end: float, stops_s: float) -> float:
    """Return when machines are told to stop that may take ``stops_s`` for it, so that none runs past the end."""
    return end - min(stops_s + SLACK_S, (end - start) / 2) if end else 0.0


def phase_of(end: float, stops: float, warn_s: float, now: float) -> Phase:
    """Return how near its end it is."""
    if not end or now < min(end - warn_s, stops):
        return "on"
    if now < stops:
        return "soon"
    return "ending" if now < end else "ended"


def next_look_s(times: Iterable[float], now: float) -> float:
    """Return in how many seconds the next of these moments is; 0: none is ahead."""
    ahead = [at - now for at in times if at > now]
    return max(min(ahead), NEXT_MIN_S) if ahead else 0.0
