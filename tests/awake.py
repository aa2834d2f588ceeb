"""A clock that stands still while the machine does, for tests that say how long something may take.

A thread looks at the time fifty times a second. Where it was not let to for a tenth of a second and more, the machine
ran something else, or nothing.
"""

import threading
import time
from functools import cache
from typing import Final

_TICK_S: Final = 0.02
_PAUSE_S: Final = 0.1
"""A gap above this is one of the machine."""


class _Ticks:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_s = time.monotonic()
        self._paused_s = 0.0
        threading.Thread(target=self._run, name="awake", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK_S)
            self.now_s()

    def now_s(self) -> float:
        with self._lock:
            now_s = time.monotonic()
            gap_s = now_s - self._last_s
            self._last_s = now_s
            if gap_s > _PAUSE_S:
                self._paused_s += gap_s
            return now_s - self._paused_s


@cache
def _ticks() -> _Ticks:
    return _Ticks()


def awake_s() -> float:
    """Seconds of `time.monotonic()` without those in which the machine stood still."""
    return _ticks().now_s()
