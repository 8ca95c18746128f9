"""How much a node may send before the host takes it more slowly, and when it hangs up. Pure: time is an argument."""

from __future__ import annotations

from collections import deque

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """What one node may cost. Traffic is what it may send; noise is what it has no business to send.

    ``noise_burst_bytes``: what a dead agent left unread, and more. ``strikes``: pauses in a row until the host hangs up,
    for ``hang_up_s_min`` and each time longer. A node that offends more than ``offences_max`` times within ``offences_s``
    is heard no more.
    """

    traffic_bytes_per_s: int = 16 << 20
    traffic_burst_bytes: int = 1 << 20
    frame_cost_bytes: int = 512
    noise_bytes_per_s: int = 64 << 10
    noise_burst_bytes: int = 4 << 20
    pause_s_max: float = 1.0
    strikes: int = 10
    hang_up_s_min: float = 5.0
    hang_up_s_max: float = 300.0
    offences_max: int = 5
    offences_s: float = 600.0


MESSAGE_NOISE_BYTES = 4096
"""What a message costs that nobody asked for: 16 a second are bearable."""

HOSTILE_NOISE_BYTES = 256 << 10


class Flood:
    """The account of one node."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.hang_ups = 0
        self._strikes = 0
        self._traffic = _Bucket(limits.traffic_bytes_per_s, limits.traffic_burst_bytes)
        self._noise = _Bucket(limits.noise_bytes_per_s, limits.noise_burst_bytes)

    def take(self, traffic: int, noise: int, now: float) -> float | None:
        """Return for how many seconds to listen no more; None: hang up."""
        quiet_s = self._noise.take(noise, now)
        self._strikes = self._strikes + 1 if quiet_s and noise else 0
        if self._strikes > self.limits.strikes:
            self._strikes = 0
            self.hang_ups += 1
            return None
        return min(self.limits.pause_s_max, max(quiet_s if noise else 0.0, self._traffic.take(traffic, now)))

    def hang_up_s(self) -> float:
        """Return for how long to stay away after hanging up."""
        return min(self.limits.hang_up_s_max, self.limits.hang_up_s_min * 2.0 ** min(20, self.hang_ups - 1))


class Offences:
    """What one node did that no node should: floods until the host hung up, hostile messages, false answers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._at: deque[float] = deque()

    def note(self, now: float) -> bool:
        """Note one and return whether that is too many."""
        self._at.append(now)
        while self._at[0] <= now - self._limits.offences_s:
            self._at.popleft()
        return len(self._at) > self._limits.offences_max


class _Bucket:
    def __init__(self, per_s: int, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = float(burst)
        self._at = 0.0

    def take(self, amount: int, now: float) -> float:
        """Return how many seconds the bucket is overdrawn."""
        self._left = min(float(self._burst), self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        return max(0.0, -self._left / self._per_s)
