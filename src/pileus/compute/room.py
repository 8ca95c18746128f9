"""What is free of a server's offer over time: steps that hold until the next one. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol

Need = tuple[tuple[str, int], ...]
"""Quantities that are needed at once: (name, how much)."""


class When(Protocol):
    """Something that can say from when on it has room."""

    def earliest(self, need: Need, at: float, by: float, duration_s: float) -> float | None:
        """Return the first moment in ``at`` … ``by`` from which ``need`` is free for ``duration_s``; None: there is none."""


class Room:
    """What is free of one server, from ``start`` to ``until``. A quantity that it does not name is without limit."""

    __slots__ = ("_free", "_times", "floor", "start", "until")

    def __init__(self, quantity: Mapping[str, int], start: float = -inf, until: float = inf) -> None:
        self.start = start
        self.until = until
        self.floor = dict(quantity)
        """The least that is free of each quantity at any time ahead."""
        self._times = [-inf]
        self._free = {name: [amount] for name, amount in quantity.items()}

    def copy(self) -> Room:
        """Return one like it that changes by itself."""
        made = Room({}, self.start, self.until)
        made.floor = dict(self.floor)
        made._times = list(self._times)
        made._free = {name: list(steps) for name, steps in self._free.items()}
        return made

    def ceiling(self, name: str) -> int:
        """Return the most that is free of a quantity at any time ahead."""
        return max(self._free[name])

    def earliest(self, need: Need, at: float, by: float, duration_s: float) -> float | None:
        """Return the first moment in ``at`` … ``by`` from which ``need`` is free for ``duration_s``; None: there is none."""
        at = max(at, self.start)
        if at > by or at + duration_s > self.until:
            return None
        floor = self.floor
        for name, amount in need:
            if floor.get(name, amount) < amount:
                break
        else:
            return at
        return self._search([(self._free[name], amount) for name, amount in need if name in floor], at, by, duration_s)

    def _search(self, need: list[tuple[list[int], int]], at: float, by: float, duration_s: float) -> float | None:
        times = self._times
        step = bisect_right(times, at) - 1
        while True:
            fits = all(steps[step] >= amount for steps, amount in need)
            step += 1
            over = step == len(times)
            if fits and (over or times[step] >= at + duration_s):
                return at
            if over:
                return None
            if not fits:
                at = times[step]
                if at > by or at + duration_s > self.until:
                    return None

    def take(self, quantity: Mapping[str, int], start: float, until: float) -> None:
        """Lower what is free from ``start`` to ``until``; an amount below 0 raises it."""
        if start >= until:
            return
        first = self._step(start)
        last = self._step(until) if until < inf else len(self._times)
        for name, amount in quantity.items():
            steps = self._free.get(name)
            if steps is not None:
                steps[first:last] = [free - amount for free in steps[first:last]]
                self.floor[name] = min(steps)

    def _step(self, at: float) -> int:
        """Return the step that begins at ``at``, made where there is none."""
        place = bisect_left(self._times, at)
        if place == len(self._times) or self._times[place] != at:
            self._times.insert(place, at)
            for steps in self._free.values():
                steps.insert(place, steps[place - 1])
        return place

    def forget(self, now: float) -> None:
        """Drop the steps that ended before ``now``."""
        over = bisect_right(self._times, now) - 1
        if over > 0:
            del self._times[1 : over + 1]
            for name, steps in self._free.items():
                del steps[:over]
                self.floor[name] = min(steps)


class Either:
    """Several of which one must have room, such as image servers."""

    def __init__(self, some: Sequence[When]) -> None:
        self._some = some

    def earliest(self, need: Need, at: float, by: float, duration_s: float) -> float | None:
        """Return the first moment at which one of them has room."""
        found = (each.earliest(need, at, by, duration_s) for each in self._some)
        return min((moment for moment in found if moment is not None), default=None)


def together(parts: Sequence[tuple[When, Need]], at: float, by: float, duration_s: float) -> float | None:
    """Return the first moment in ``at`` … ``by`` from which all parts have room for ``duration_s``; None: there is none."""
    settled = False
    while not settled:
        settled = True
        for room, need in parts:
            found = room.earliest(need, at, by, duration_s)
            if found is None:
                return None
            if found != at:
                at, settled = found, False
    return at
