"""A provider as the engine: OpenAI-compatible endpoints, the first one and those that stand in for it.

Implements `predictor.engine.engine.Engine`, so jobs are delivered, leased, streamed, admitted and drained as with
vLLM. A provider gives text and no token ids, so an answer that broke off starts over, and its stream says so. A
tenant's data leaves the cluster only where `tenants` allows it. Must not know events or how jobs are stored.

A call waits in the queue while the limits of its provider are used up; while the provider's breaker is open, or when
it failed before it showed anything, the call goes to the next one. Each chunk that shows text counts as one token.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import structlog

from eventing.errors import BadRequest, StoreUnavailable
from eventing.process.egress import AllowList
from predictor import metrics
from predictor.engine.engine import (
    EXTRA_USAGE,
    ColdStartPhase,
    DecodeStep,
    EngineRequest,
    PhaseReporter,
)
from predictor.engine.upstream.call import ProviderCall, size_of
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamRateLimited,
    UpstreamUnavailable,
)
from predictor.engine.upstream.provider import (
    Denied,
    ProviderState,
    Report,
    Reservation,
    UnlimitedProvider,
)
from predictor.engine.upstream.race import Steps, race
from predictor.engine.upstream.target import EMBEDDING_URL, Endpoint, Target
from predictor.errors import EngineStartError

_URLS: Final = ("/v1/chat/completions", "/v1/completions", EMBEDDING_URL)
ALL_TENANTS: Final = "*"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """Endpoints in the order in which they are asked."""

    model_name: str  #: in requests
    endpoints: tuple[Endpoint, ...]
    tenants: frozenset[str] = frozenset()  #: whose data may leave the cluster; `*` for all
    allowed: AllowList = field(default_factory=AllowList)
    max_concurrency: int = 64
    max_model_len: int = 131_072
    stall_s: float = 120.0
    hedges: bool = False  #: ask the next endpoint beside a late one


class UpstreamEngine:
    """An `Engine` that sends each request to a provider."""

    def __init__(
        self,
        settings: UpstreamSettings,
        state_of: Callable[[Endpoint], ProviderState] = lambda _: UnlimitedProvider(),
    ) -> None:
        """`state_of` gives the limits and the breaker of an endpoint."""
        self._settings = settings
        self._targets = [
            Target(each, settings.allowed, stall_s=settings.stall_s, is_stand_in=place > 0)
            for place, each in enumerate(settings.endpoints)
        ]
        self._states = [state_of(each) for each in settings.endpoints]
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def model_names(self) -> Sequence[str]:
        return (self._settings.model_name,)

    @property
    def device(self) -> str:
        return "provider at " + ", then ".join(each.host for each in self._settings.endpoints)

    @property
    def max_concurrency(self) -> int:
        return self._settings.max_concurrency

    @property
    def max_model_len(self) -> int:
        return self._settings.max_model_len

    @property
    def version(self) -> str:
        return "upstream"

    async def start(self, report: PhaseReporter) -> None:
        """Open the connections. Raises `EngineStartError`."""
        report(ColdStartPhase.WARM_UP)
        if not self._settings.tenants:
            raise EngineStartError(
                "no tenant's data may leave the cluster: set TORPOR_UPSTREAM_TENANTS "
                '(["*"] for all)'
            )
        try:
            for target in self._targets:
                await target.open()
        except EngineStartError:
            await self.stop()
            raise
        with suppress(StoreUnavailable):  # only those who look miss it
            for state in self._states:
                await state.announce(self._settings.model_name)
        report(ColdStartPhase.READY)

    async def stop(self) -> None:
        """Close the connections; what runs fails."""
        if self._settling:
            await asyncio.wait(self._settling)
        for target, state in zip(self._targets, self._states, strict=True):
            await target.close()
            await state.close()

    def is_healthy(self) -> bool:
        return all(target.is_open for target in self._targets)

    def validate(self, request: EngineRequest) -> None:
        model, tenants = request.body.get("model"), self._settings.tenants
        if model is not None and model not in self.model_names:
            raise BadRequest(
                f"no model {model!r:.80} here; there is: {self._settings.model_name}", "model"
            )
        if request.url not in _URLS:
            raise BadRequest(f"the provider serves {', '.join(_URLS)}", "url")
        if ALL_TENANTS not in tenants and request.tenant not in tenants:
            raise BadRequest(
                "this tenant's data may not leave the cluster, "
                f"and {self._settings.model_name} is outside",
                "model",
            )

    def can_resume(self, request: EngineRequest) -> bool:
        """Never: there are no token ids."""
        return False

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """See `Engine.run`. Raises `UpstreamFailed` when the answer broke off, `UpstreamUnavailable`,
        `UpstreamRateLimited`, `UpstreamRefused`, `UpstreamKeyRefused`, `StoreUnavailable`.
        """
        self.validate(request)
        reasons: list[str] = []
        is_shown = False
        targets = self._in_order(request)
        for place, target in targets:
            is_last = len(reasons) == len(targets) - 1
            right = await self._states[place].reserve(*size_of(request), request.lane)
            if isinstance(right, Denied):
                reasons.append(_denial(right, is_last=is_last))
                continue
            call = self._call(place, target, right, tuple(reasons))
            steps = self._with_hedge(call, request) if not is_last else call.steps(request)
            try:
                async with aclosing(steps) as running:
                    async for step in running:
                        is_shown = is_shown or bool(step.token_ids)
                        yield step
                return
            except (UpstreamFailed, UpstreamUnavailable, UpstreamKeyRefused) as error:
                # What was shown is never taken back: only the next attempt may start over.
                if is_shown or is_last:
                    raise
                reasons.append(error.code)
                _log.warning("asks the next provider", action="fallback", reason=error.code)

    def _call(
        self, place: int, target: Target, right: Reservation, after: tuple[str, ...]
    ) -> "ProviderCall":
        asked = self._settings.model_name
        settle = partial(self._settle, self._states[place], right)
        return ProviderCall(target, right, place=place, asked=asked, after=after, settle=settle)

    def _with_hedge(self, call: "ProviderCall", request: EngineRequest) -> Steps:
        """The call's steps; when it is late, those of the next provider's if that shows something first."""
        body, late_s = request.body, call.right.late_after_s
        if not self._settings.hedges or not late_s or body.get("tools") or _choices(body) > 1:
            return call.steps(request)

        beside: list[ProviderCall] = []

        async def second() -> Steps | None:
            place = (call.place + 1) % len(self._targets)
            try:
                if not await self._states[call.place].take_hedge():
                    return None
                right = await self._states[place].reserve(*size_of(request), request.lane)
            except StoreUnavailable:  # no reason to end the call that is under way
                return None
            if isinstance(right, Denied):
                return None
            metrics.UPSTREAM_HEDGES.inc()
            beside.append(self._call(place, self._targets[place], right, ("late",)))
            return beside[0].steps(request)

        raced = race(call.steps(request), after_s=late_s, second=second)
        return _with_hedged_tokens(raced, beside, self._settings.model_name, size_of(request)[0])

    def _in_order(self, request: EngineRequest) -> list[tuple[int, Target]]:
        """The targets as this call asks them: an answer that broke off is asked of the next one first, if the caller
        takes another's.
        """
        targets = list(enumerate(self._targets))
        if not request.allows_fallback:
            return targets[:1]
        first = 1 if request.starts_over and len(targets) > 1 else 0
        return [*targets[first:], *targets[:first]]

    def _settle(self, state: ProviderState, right: Reservation, report: Report) -> None:
        """Beside the answer: nothing waits for it, and a closed generator may not."""
        metrics.UPSTREAM_CALLS.labels(report.result).inc()
        task = asyncio.get_running_loop().create_task(_settled(state, right, report))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)


async def _with_hedged_tokens(
    steps: Steps, beside: Sequence[object], model: str, prompt_tokens: int
) -> AsyncGenerator[DecodeStep, None]:
    """The steps; the first chunk says what the call that lost was asked, which its provider takes money for. It has
    shown nothing, so nothing is known of an answer.
    """
    is_told = False
    async with aclosing(steps) as running:
        async for step in running:
            if beside and not is_told and step.chunk is not None:
                is_told = True
                lost = {"kind": "hedged", "model": model}
                counts = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
                step = replace(step, chunk={**step.chunk, EXTRA_USAGE: [{**lost, **counts}]})
            yield step


async def _settled(state: ProviderState, right: Reservation, report: Report) -> None:
    try:
        await state.settle(right, report)
    except StoreUnavailable:
        # The reservation stays in the bucket, which refills.
        _log.warning("a provider's state was not written", action="settle", result=report.result)


def _denial(denied: Denied, *, is_last: bool) -> str:
    """Why the next provider is asked. Raises when the call waits: for a limit always, for a breaker when there is no
    other provider.
    """
    reason = "breaker_open" if denied.is_open else "rate_limited"
    metrics.UPSTREAM_DENIED.labels(reason).inc()
    if not denied.is_open:
        raise UpstreamRateLimited("the provider's rate limit is used up", denied.wait_s)
    if is_last:
        raise UpstreamUnavailable("the provider's circuit breaker is open", denied.wait_s)
    return reason


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) else 1
