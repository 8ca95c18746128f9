"""The host's time inside a guest, also after the guest stood still and knows nothing of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

RTC = Path("/sys/class/rtc/rtc0/since_epoch")


@dataclass(frozen=True, slots=True)
class Moment:
    """When a message arrived: the host's time that it told, and the guest's time since boot."""

    host: float
    guest: float


class HostClock:
    """``rtc``: the hardware clock, which QEMU keeps at the host's time while the guest is paused (rtc clock=host)."""

    def __init__(self, rtc: Path | None = RTC) -> None:
        try:
            self._rtc = -1 if rtc is None else os.open(rtc, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._rtc = -1

    def moment(self, host: float) -> Moment:
        """Return what this very moment is, for ``now``."""
        return Moment(host, time.clock_gettime(time.CLOCK_BOOTTIME))

    def now(self, moment: Moment) -> float:
        """Return the host's time now, Unix seconds: never less, but for the way of the message.

        The guest's own clock is exact until the guest is paused; the hardware clock tells that, in whole seconds.
        """
        reckoned = moment.host + time.clock_gettime(time.CLOCK_BOOTTIME) - moment.guest
        hardware = self._read()
        return reckoned if hardware <= reckoned else hardware + 1.0

    def _read(self) -> float:
        if self._rtc < 0:
            return 0.0
        try:
            return float(os.pread(self._rtc, 32, 0))
        except (OSError, ValueError):
            return 0.0
