"""Whether a subscriber accepts deliveries: a circuit breaker, opened by a refusal and closed by a probe.

Called by the pump before each claim. A pump that claimed events while its subscriber starts, drains or is down
would take them from pumps whose subscribers are idle. The probe is `GET /readyz` at the subscriber's origin: no
answer and 503 mean «not ready»; any other status, 404 included, means that a server is listening. A subscriber that
holds requests while it is scaled to zero is probed only at the start and after a refusal, so the probe neither
keeps it awake nor delays the delivery that wakes it.
"""

import asyncio
from typing import Final

import aiohttp
import structlog
from yarl import URL

_log = structlog.get_logger()

_PROBE_EVERY_S: Final = 0.5
_PROBE_TIMEOUT: Final = aiohttp.ClientTimeout(total=2)
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0


class SubscriberReadiness:
    """The circuit breaker of one pump, open until the first probe. Times are of the running loop's clock."""

    def __init__(self, trigger: str, subscriber: str) -> None:
        self._trigger = trigger
        self._subscriber = subscriber
        self._refusals = 0
        self._probe_due_s = 0.0
        self._away_since_s: float | None = None
        self.is_ready = False

    def away_s(self, now_s: float) -> float:
        """Seconds since the subscriber was last ready; 0 while it is ready."""
        return 0.0 if self._away_since_s is None else now_s - self._away_since_s

    def next_probe_s(self, now_s: float) -> float:
        """Seconds until the next probe is due."""
        return max(0.0, self._probe_due_s - now_s)

    def on_refusal(self, now_s: float, retry_after_s: float | None = None) -> None:
        """Open the breaker after a refused delivery. Refusals of concurrent deliveries count as one. One that asks to
        be tried again after 0 s is over in a moment: a later probe that was planned before does not hold it up.
        """
        if self.is_ready:
            self.is_ready = False
            self._refusals += 1
            self._away_since_s = now_s
            self._log("subscriber does not accept deliveries")
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._refusals, 16), _LONGEST_PAUSE_S)
        due_s = now_s + max(pause_s, retry_after_s or 0.0)
        self._probe_due_s = due_s if retry_after_s == 0 else max(self._probe_due_s, due_s)

    def on_answer(self) -> None:
        """Reset the pause between probes after an answer, whatever its status."""
        self._refusals = 0

    async def probe(self, session: aiohttp.ClientSession) -> bool:
        """Probe the subscriber; True when it is ready."""
        loop = asyncio.get_running_loop()
        self.is_ready = await _answers(session, self._subscriber)
        if self.is_ready:
            self._away_since_s = None
            self._log("subscriber is ready")
        elif self._away_since_s is None:
            self._away_since_s = loop.time()
            self._log("subscriber is not ready")
        self._probe_due_s = loop.time() + _PROBE_EVERY_S
        return self.is_ready

    def _log(self, what: str) -> None:
        _log.info(what, action="probe", trigger=self._trigger)


async def _answers(session: aiohttp.ClientSession, subscriber: str) -> bool:
    try:
        url = URL(subscriber).with_path("/readyz")
        async with session.get(url, timeout=_PROBE_TIMEOUT, allow_redirects=False) as answer:
            return answer.status != 503
    except (aiohttp.InvalidURL, ValueError):
        return True  # an invalid address is reported by the delivery
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
