"""When appliances are polled: spread, with jitter that the seed decides, and never by looking at all of them. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from hashlib import blake2b

from pileus.node.monitor.model import Settings

SPREAD_S = 0.01
"""Between the first polls of many, and for all of them at most the shortest period."""

AGAIN_S = 1.0
"""Between two polls of one appliance, whatever it asks for."""

_WORD = (1 << 64) - 1


class Agenda:
    """Names by the moment at which they are due."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def put(self, name: str, due: float) -> None:
        """Have it due then, and at no other time."""
        if self._due.get(name) != due:
            self._due[name] = due
            heapq.heappush(self._heap, (due, name))

    def sooner(self, name: str, due: float) -> None:
        """Have it due then, unless it is before."""
        if due < self._due.get(name, math.inf):
            self.put(name, due)

    def remove(self, name: str) -> None:
        """Have it due no more."""
        self._due.pop(name, None)

    def take(self, now: float) -> list[str]:
        """Return what is due, first what is due longest; it is due no more."""
        taken = []
        while self.next_at <= now:
            _, name = heapq.heappop(self._heap)
            del self._due[name]
            taken.append(name)
        return taken

    @property
    def next_at(self) -> float:
        """When something is due, infinity for never."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if len(self._heap) > 64 + 4 * len(self._due):
            self._heap = [(due, name) for name, due in self._due.items()]
            heapq.heapify(self._heap)
        return self._heap[0][0] if self._heap else math.inf


class Schedule:
    """Polls of appliances."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._agenda = Agenda()
        self._chances: dict[str, int] = {}
        self._polled_at: dict[str, float] = {}

    @property
    def next_at(self) -> float:
        """When a poll is due."""
        return self._agenda.next_at

    def begin(self, vms: Iterable[str], now: float) -> None:
        """Poll these from now on: few at once, many spread over a period."""
        names = list(vms)
        # Not over the whole period: the last would be polled together with the first that come early to their next.
        spread_s = min(self.settings.poll_s * (1 - self.settings.jitter), SPREAD_S * len(names))
        for vm in names:
            seed = blake2b(f"{self.settings.seed}/{vm}".encode(), digest_size=8).digest()
            self._chances[vm] = int.from_bytes(seed, "big")
            self._agenda.put(vm, now + spread_s * self._chance(vm) if len(names) > 1 else now)

    def end(self, vm: str) -> None:
        """Poll it no more."""
        self._agenda.remove(vm)
        self._chances.pop(vm, None)
        self._polled_at.pop(vm, None)

    def hasten(self, vm: str, due: float) -> None:
        """Poll it then, if not before; not more often than every ``AGAIN_S``, or as often as all."""
        if vm in self._chances:
            pause_s = min(AGAIN_S, self.settings.poll_s)
            self._agenda.sooner(vm, max(due, self._polled_at.get(vm, -math.inf) + pause_s))

    def take(self, now: float) -> list[str]:
        """Return what is to be polled now; each is due again after a period."""
        vms = self._agenda.take(now)
        settings = self.settings
        for vm in vms:
            self._polled_at[vm] = now
            self._agenda.put(vm, now + settings.poll_s * (1 - settings.jitter * (1 + self._chance(vm)) / 2))
        return vms

    def _chance(self, vm: str) -> float:
        """Return the next of the appliance's numbers, 0 <= number < 1. Source: Knuth's MMIX generator, its high bits."""
        state = (self._chances[vm] * 6364136223846793005 + 1442695040888963407) & _WORD
        self._chances[vm] = state
        return (state >> 11) / (1 << 53)
