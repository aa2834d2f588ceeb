"""A provider's state that all processes share: its rate limits and its circuit breaker, by store time.

Called by `predictor.engine.upstream.engine` around each call. Both decisions are scripts (`provider_reserve.lua`,
`provider_settle.lua`), so that processes neither flap nor probe at once. A process that dies between the two leaves
its reservation in the bucket, which refills, and its probe lapses.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import orjson
from redis.asyncio import Redis
from yarl import URL

from eventing.redis import keys, script
from eventing.redis.connection import connect, failures_named
from predictor.engine.upstream.rate_headers import UNSAID, RateLimits
from predictor.engine.upstream.target import Endpoint

_BATCH_SHARE: Final = {"batch": 0.10, "default": 0.05}
"""Share of the limits that a lane leaves to those above it."""


class CallResult(StrEnum):
    """How a call went, as far as it says something of the provider."""

    OK = "ok"
    FAILED = "failed"  #: a 5xx, or an answer that broke off
    UNREACHABLE = "unreachable"  #: no connection
    LIMITED = "limited"  #: 429
    REFUSED = "refused"  #: the call's own fault: the provider is well
    CUT = "cut"  #: by us


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The right to send one call. `is_probe` while the breaker is half open."""

    number: int = 0
    tokens: int = 0
    reserved_before: float = 0.0
    is_probe: bool = False
    late_after_s: float = 0.0  #: without a first token; 0 while too few answers were seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """Not now. `is_open` when the breaker is, else the limits are used up."""

    wait_s: float
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A call's end. `taken_tokens` is None when the provider did not say."""

    result: CallResult
    limits: RateLimits = UNSAID
    taken_tokens: int | None = None
    answer_tokens: int | None = None
    first_token_s: float | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRules:
    """Times of the limits and the breaker; the defaults are for providers, others for tests that can not wait."""

    window_s: float = 60.0  #: that the limits speak of
    first_requests: int = 600  #: a window, until an answer has said how many
    open_s: float = 60.0
    jitter_s: float = 5.0
    look_back_s: float = 30.0
    longest_probe_s: float = 120.0


class ProviderState(Protocol):
    """Limits and breaker of one provider's model under one key."""

    async def announce(self, model: str) -> None:
        """List the provider as an endpoint of a model, for those who look. Raises `StoreUnavailable`."""

    async def reserve(
        self, prompt_tokens: int, most_answer_tokens: int | None, lane: str
    ) -> Reservation | Denied:
        """The right to send a call that takes about these tokens. Raises `StoreUnavailable`."""

    async def settle(self, reservation: Reservation, report: Report) -> None:
        """Note how the call went. Raises `StoreUnavailable`."""

    async def take_hedge(self) -> bool:
        """True when a second call beside a late one is within the budget. Raises `StoreUnavailable`."""

    async def close(self) -> None:
        """End its connections."""


class UnlimitedProvider:
    """Without a shared store: nothing is known of a provider but its last answer, which the engine heeds."""

    async def announce(self, model: str) -> None:
        """Nothing is listed."""

    async def reserve(
        self, prompt_tokens: int, most_answer_tokens: int | None, lane: str
    ) -> Reservation | Denied:
        return Reservation()

    async def settle(self, reservation: Reservation, report: Report) -> None:
        """Nothing is kept."""

    async def take_hedge(self) -> bool:
        return False

    async def close(self) -> None:
        """Nothing is open."""


class SharedProvider:
    """State in Redis, under a digest of address, model and the key's file. Ends its client with `close`."""

    def __init__(
        self,
        redis: Redis,
        *,
        url: str,
        model: str,
        key: str = "",
        rules: ProviderRules | None = None,
    ) -> None:
        digest = hashlib.sha256(f"{url}\0{model}\0{key}".encode()).hexdigest()[:24]
        self._redis = redis
        self._digest, self._endpoint = digest, f"{model} at {URL(url).host or url}"
        self._keys = (
            keys.provider(digest),
            keys.provider_answers(digest),
            keys.provider_first_tokens(digest),
        )
        self._rules = rules or ProviderRules()

    async def announce(self, model: str) -> None:
        """See `ProviderState.announce`."""
        entry = orjson.dumps({"model": model, "endpoint": self._endpoint})
        async with failures_named():
            await self._redis.hset(keys.providers(), self._digest, entry)

    async def reserve(
        self, prompt_tokens: int, most_answer_tokens: int | None, lane: str
    ) -> Reservation | Denied:
        """See `ProviderState.reserve`."""
        rules = self._rules
        answer = await script.run(
            self._redis,
            "provider_reserve",
            self._keys[:1],
            [
                prompt_tokens,
                "" if most_answer_tokens is None else most_answer_tokens,
                _ms(rules.window_s),
                str(_BATCH_SHARE.get(lane, 0.0)),
                rules.first_requests,
                _ms(rules.longest_probe_s),
            ],
        )
        if answer[0] == b"wait":
            return Denied(wait_s=answer[1] / 1000, is_open=answer[2] == b"open")
        _, number, tokens, reserved, probe, late_after_ms = answer
        return Reservation(
            number=number,
            tokens=tokens,
            reserved_before=reserved,
            is_probe=probe == b"1",
            late_after_s=late_after_ms / 1000,
        )

    async def settle(self, reservation: Reservation, report: Report) -> None:
        """See `ProviderState.settle`."""
        rules, limits = self._rules, report.limits
        open_s = rules.open_s + random.uniform(0, rules.jitter_s)  # noqa: S311 (jitter, not a secret)
        await script.run(
            self._redis,
            "provider_settle",
            self._keys,
            [
                reservation.number,
                reservation.tokens,
                int(reservation.reserved_before),
                "1" if reservation.is_probe else "",
                report.result,
                _or_empty(report.taken_tokens),
                _or_empty(report.answer_tokens),
                _ms(report.retry_after_s),
                _or_empty(limits.request_limit),
                _or_empty(limits.requests_left),
                _or_empty(limits.token_limit),
                _or_empty(limits.tokens_left),
                _ms(rules.window_s),
                rules.first_requests,
                _ms(open_s),
                _ms(rules.look_back_s / 6),
                "" if report.first_token_s is None else _ms(report.first_token_s),
            ],
        )

    async def take_hedge(self) -> bool:
        """See `ProviderState.take_hedge`."""
        return bool(await script.run(self._redis, "provider_hedge", self._keys[:1], []))

    async def close(self) -> None:
        """See `ProviderState.close`."""
        await self._redis.aclose()


def shared_state(redis_url: str, timeout_s: float) -> Callable[[Endpoint], ProviderState]:
    """What gives the state of an endpoint: shared in this Redis, or unlimited without one."""

    def state_of(endpoint: Endpoint) -> ProviderState:
        if not redis_url:
            return UnlimitedProvider()
        redis = connect(redis_url, timeout_s=timeout_s)
        key = str(endpoint.key_file or "")
        return SharedProvider(redis, url=endpoint.url, model=endpoint.model, key=key)

    return state_of


def _or_empty(value: int | None) -> int | str:
    return "" if value is None else value


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
