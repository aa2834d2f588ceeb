"""A provider's rate limit, simulated: a bucket of tokens that leaks continuously, as OpenAI's does. A fake, for tests
and for `bench/provider_limits.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from predictor.engine.upstream.rate_headers import RateLimits


@dataclass(slots=True)
class LimitedProvider:
    """Takes calls while its bucket lasts. `window_s` is what a provider calls a minute."""

    tokens_per_window: float
    window_s: float = 60.0
    sends_headers: bool = True
    level: float = field(init=False)
    allowed: float = 0.0
    taken: float = 0.0
    calls: int = 0
    refused: int = 0
    clock: Callable[[], float] = time.monotonic
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.tokens_per_window
        self._at = self.clock()

    def call(self, tokens: int) -> bool:
        """True when it is taken, False for a 429."""
        self._leak()
        self.calls += 1
        if tokens > self.level:
            self.refused += 1
            return False
        self.level -= tokens
        self.taken += tokens
        return True

    def limits(self) -> RateLimits:
        """What the headers say."""
        if not self.sends_headers:
            return RateLimits()
        self._leak()
        return RateLimits(
            request_limit=10**6,
            requests_left=10**6,
            token_limit=int(self.tokens_per_window),
            tokens_left=max(0, int(self.level)),
        )

    def change(self, tokens_per_window: float) -> None:
        """The limit from now on."""
        self._leak()
        self.tokens_per_window = tokens_per_window
        self.level = min(self.level, tokens_per_window)

    def _leak(self) -> None:
        now = self.clock()
        gained = self.tokens_per_window * (now - self._at) / self.window_s
        self.allowed += gained
        self.level = min(self.level + gained, self.tokens_per_window)
        self._at = now
