"""How often a resource is looked at that hears of a thousand others: not once for each of them."""

from __future__ import annotations

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource

APART_S = 0.25
KNOWN_MAX = 10_000


class Pace:
    """Remembers when this server looked at what; losing that costs one more look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked: dict[str, float] = {}

    def left_s(self, resource: Resource) -> float:
        """Return in how many seconds the resource is to be looked at; 0: now, which is noted.

        A new wish, but to be deleted, is looked at at once.
        """
        now = self._clock()
        left = self._looked.get(resource.id, 0.0) + APART_S - now
        is_known = resource.deleting or resource.observed_generation == resource.generation
        if is_known and 0 < left <= APART_S:
            return left
        if len(self._looked) >= KNOWN_MAX:
            self._looked.clear()
        self._looked[resource.id] = now
        return 0.0
