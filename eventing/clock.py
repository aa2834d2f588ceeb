"""Time as an argument: what decisions take instead of reading a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward, for durations."""

    def monotonic_s(self) -> float: ...

    def wall_ms(self) -> int: ...


class SystemClock:
    """The clock of this host. Order between hosts never comes from here, but from the store."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
