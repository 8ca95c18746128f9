"""From runs of use to what is billed: amounts times hours, by object or account, in hours, days or months of UTC. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from msgspec import Struct

Period = Literal["hour", "day", "month", "all"]
HOUR_S, DAY_S = 3600, 86_400
MIB_PER_GIB = 1024
DECIMALS = 6
"""Of what is shown: a vCPU for four milliseconds is the least that can be seen."""


class Whose(NamedTuple):
    """What a line is about: an object, or with empty kind, id and name all that an account has."""

    account_id: str
    account: str
    kind: str = ""
    name: str = ""
    id: str = ""


class Amounts(Struct):
    """What was used. CPUs, memory, disk and addresses times seconds; bytes as guests received and sent them."""

    vcpus: float = 0.0
    memory_mib: float = 0.0
    disk_mib: float = 0.0
    addresses: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0

    def add(self, amounts: Mapping[str, int], factor: float | int = 1) -> None:
        """Add amounts, ``factor`` times each; words of a newer version are left out."""
        for word in self.__struct_fields__:
            if word in amounts:
                setattr(self, word, getattr(self, word) + amounts[word] * factor)

    def shown(self) -> dict[str, float]:
        """Return them in the units of bills: hours, GiB-hours, and GB of 10^9 bytes."""
        hours = {
            "vcpu_hours": self.vcpus,
            "memory_gib_hours": self.memory_mib / MIB_PER_GIB,
            "disk_gib_hours": self.disk_mib / MIB_PER_GIB,
            "address_hours": self.addresses,
        }
        shown = {word: round(seconds / HOUR_S, DECIMALS) for word, seconds in hours.items()}
        bytes_of = {"received_gb": self.received_bytes, "sent_gb": self.sent_bytes}
        return shown | {word: round(count / 1e9, DECIMALS) for word, count in bytes_of.items()}


class Sheet:
    """Sums of use over the periods between two moments (Unix seconds)."""

    def __init__(self, since: float, until: float, period: Period) -> None:
        self.starts = starts(since, until, period)
        self.until = until
        self.lines: dict[tuple[Whose, int], Amounts] = {}
        self.total = Amounts()

    def add_run(self, whose: Whose, since: float, until: float, amounts: Mapping[str, int]) -> int:
        """Add what was used in a span; what lies outside of the sheet's is left out. Return how many periods it met."""
        position = first = max(bisect_right(self.starts, since) - 1, 0)
        while position < len(self.starts) and self.starts[position] < until:
            begin, end = self.bounds(position)
            used_s = min(until, end) - max(since, begin)
            if used_s > 0:
                self._line(whose, position).add(amounts, used_s)
                self.total.add(amounts, used_s)
            position += 1
        return position - first

    def add_traffic(self, whose: Whose, hour: float, received: int, sent: int) -> None:
        """Add what passed within the hour that starts at ``hour``; it is the period's in which it starts."""
        position = bisect_right(self.starts, hour) - 1
        if position >= 0 and hour < self.until:
            amounts = {"received_bytes": received, "sent_bytes": sent}
            self._line(whose, position).add(amounts)
            self.total.add(amounts)

    def bounds(self, position: int) -> tuple[float, float]:
        """Return where a period begins and ends."""
        end = self.starts[position + 1] if position + 1 < len(self.starts) else self.until
        return self.starts[position], end

    def _line(self, whose: Whose, position: int) -> Amounts:
        return self.lines.setdefault((whose, position), Amounts())


def starts(since: float, until: float, period: Period) -> Sequence[float]:
    """Return where the periods between two moments begin; the first is cut to begin at ``since``."""
    found = [since]
    while period != "all" and (following := _next(found[-1], period)) < until:
        found.append(following)
    return found


def month_start(at: float) -> float:
    """Return the beginning of the month (UTC) of a moment."""
    day = datetime.fromtimestamp(at, UTC)
    return datetime(day.year, day.month, 1, tzinfo=UTC).timestamp()


def _next(at: float, period: Period) -> float:
    if period == "month":
        return month_start(month_start(at) + 32 * DAY_S)
    length_s = HOUR_S if period == "hour" else DAY_S
    return (at // length_s + 1) * length_s
