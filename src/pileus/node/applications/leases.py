"""Registrations: leases that end by the host's time, that are renewed and revoked."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pileus.node.applications.model import Registration
from pileus.node.hostclock import HostClock


class Leases:
    """Says of registrations whether they hold now."""

    def __init__(self, clock: HostClock | None = None) -> None:
        self._clock = clock or HostClock()
        self._moment = self._clock.moment(time.time())

    def states(self, registrations: Mapping[str, Registration]) -> dict[str, str]:
        """Return valid, expired or revoked for each."""
        now = self._clock.now(self._moment)
        return {name: _state(one, now) for name, one in registrations.items()}


def _state(one: Registration, now: float) -> str:
    if one.is_revoked:
        return "revoked"
    return "valid" if now < one.until else "expired"
