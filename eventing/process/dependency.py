"""Logs once when a dependency becomes unavailable and once when it is back, however many loops use it.

Called where errors of a store or a broker are translated. Must not know the dependency.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

_log = structlog.get_logger()
_QUIET_S: Final = 2.0
"""The dependency is back when it answered and no call has failed for this long: a store without free memory answers
reads between the writes that it refuses.
"""


class Dependency:
    """The availability of one dependency as last logged."""

    __slots__ = ("_failed_s", "_monotonic_s", "_since_s", "is_away", "name", "setting")

    def __init__(
        self, name: str, monotonic_s: Callable[[], float] = time.monotonic, *, setting: str = ""
    ) -> None:
        """`setting` is the variable that says where it is."""
        self.name, self.setting = name, setting
        self._monotonic_s = monotonic_s
        self._since_s = 0.0
        self._failed_s = 0.0
        self.is_away = False

    def failed(self, reason: str) -> None:
        """A call failed or was refused."""
        self._failed_s = self._monotonic_s()
        if not self.is_away:
            self.is_away, self._since_s = True, self._failed_s
            _log.warning(f"{self.name} is away", action=self.name, reason=reason)

    def answered(self) -> None:
        """A call was answered. On a hot path check `is_away` first."""
        now_s = self._monotonic_s()
        if self.is_away and now_s - self._failed_s >= _QUIET_S:
            self.is_away = False
            _log.info(
                f"{self.name} is back", action=self.name, away_s=round(now_s - self._since_s, 1)
            )
