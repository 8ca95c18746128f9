"""Since when something is as it is, told in any order. Pure."""

from __future__ import annotations

from bisect import insort
from typing import Any

_KEPT = 16
"""Moments kept of the latest value: as many of them may be put in doubt by reports that come late."""


class Span:
    """Since when the newest value holds without another between: the same in whichever order the moments are told.

    Exact as long as no more than ``_KEPT`` moments of the newest value came before the late one that breaks their row.
    """

    __slots__ = ("_other_at", "_same", "at", "value")

    def __init__(self, value: Any, since: float, at: float) -> None:
        self.value, self.at = value, at
        self._same = [since]
        self._other_at = -1.0

    @property
    def since(self) -> float:
        """The first moment of the value after the last one of another."""
        if self._same[0] > self._other_at:
            return self._same[0]
        return next((moment for moment in self._same if moment > self._other_at), self.at)

    def newest(self, value: Any, at: float) -> None:
        """Take what was seen last of all so far."""
        if value != self.value:
            self._other_at, self.value, self._same = self.at, value, [at]
        elif self._same[-1] != at:
            self._same.append(at)
            self._trim()
        self.at = at

    def late(self, value: Any, at: float) -> None:
        """Take what was seen before that."""
        if value != self.value:
            self._other_at = max(self._other_at, at)
        elif at > self._other_at and at not in self._same:
            insort(self._same, at)
            self._trim()

    def _trim(self) -> None:
        if len(self._same) > _KEPT:
            del self._same[1]
