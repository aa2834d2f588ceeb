"""Whether something that a process depends on answers, said once when it goes and once when it is
back, however many loops ask it.

Called where the failures of a store or a broker get their names. Must not know what is asked.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

_log = structlog.get_logger()
_QUIET_S: Final = 2.0
"""It is back when it has answered and nothing has failed for this long: a store without memory
answers reads between the writes that it refuses."""


class Dependency:
    """What was last said of one of them."""

    __slots__ = ("_failed_s", "_monotonic_s", "_name", "_since_s", "is_away")

    def __init__(self, name: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._monotonic_s = monotonic_s
        self._since_s = 0.0
        self._failed_s = 0.0
        self.is_away = False

    def failed(self, reason: str) -> None:
        """It did not answer, or refused."""
        self._failed_s = self._monotonic_s()
        if not self.is_away:
            self.is_away, self._since_s = True, self._failed_s
            _log.warning(f"{self._name} is away", action=self._name, reason=reason)

    def answered(self) -> None:
        """It answered. Ask `is_away` first where this is called often."""
        now_s = self._monotonic_s()
        if self.is_away and now_s - self._failed_s >= _QUIET_S:
            self.is_away = False
            _log.info(
                f"{self._name} is back", action=self._name, away_s=round(now_s - self._since_s, 1)
            )
