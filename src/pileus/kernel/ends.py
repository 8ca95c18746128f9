"""What has an end: what its words decide when it is admitted, and who hears of it when it comes."""

from __future__ import annotations

from typing import Protocol

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.term import ENDS_SOON, Phase, end_of
from pileus.kernel.times import parse_time
from pileus.kernel.transaction import Transaction


class Ending(Protocol):
    """A wish with an end."""

    @property
    def end_at(self) -> str: ...
    @property
    def duration_s(self) -> int: ...


def ends_of(desired: Ending) -> tuple[str, int]:
    """Return the words of its end."""
    return desired.end_at, desired.duration_s


def decided_end(desired: Ending, start: float, now: float) -> float:
    """Return when what began at ``start`` ends, in Unix seconds; 0: never. Raises: Invalid for no time, or a past one."""
    field = "desired.end_at" if desired.end_at else "desired.duration_s"
    end = end_of(start, parse_time(desired.end_at, field) if desired.end_at else 0.0, desired.duration_s)
    if 0 < end <= now:
        raise Invalid("its end would be in the past; say a later one, or delete it", field=field)
    return end


class Told(Protocol):
    """What is observed of something with an end."""

    @property
    def term(self) -> Phase: ...
    @property
    def ends_at(self) -> str: ...


async def note_soon(tx: Transaction, own: Resource, before: Told | None, said: Told) -> None:
    """Make it an event, once, that ``own`` ends soon, where its condition has something else to say."""
    is_news = said.term == "soon" and (before is None or before.term != "soon")
    if is_news and (own.ready is None or own.ready.reason != ENDS_SOON):
        await tx.event(own, ENDS_SOON, ENDS_SOON, f"it ends at {said.ends_at}")


async def delete_ended(tx: Transaction, own: Resource) -> None:
    """Delete what shall not be there after its end."""
    await tx.event(own, "Ended", "Ended", "its time is over, and at_end says that it is deleted then")
    await tx.mark_deleting(own)
