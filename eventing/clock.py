"""Clocks as arguments: decisions take a time instead of reading a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds, for durations."""

    def monotonic_s(self) -> float: ...

    def wall_ms(self) -> int: ...


class SystemClock:
    """This host's monotonic clock. Order between hosts is by store time, never by this clock."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
