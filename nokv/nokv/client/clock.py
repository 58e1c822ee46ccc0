"""The clock that sessions count on."""

from __future__ import annotations

import time

_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Return ns of a clock that never steps and that runs through suspend.

    CLOCK_BOOTTIME on Linux (clock_gettime(2)): a laptop that slept for an hour must know that its
    session is over. On macOS CLOCK_MONOTONIC itself runs while the machine sleeps.
    """
    return time.clock_gettime_ns(_BOOT_CLOCK)
