"""One call to one provider: its steps, and what became of it.

Called by `predictor.engine.upstream.engine`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from eventing.errors import BadRequest, TorporError
from predictor.engine.engine import (
    EXTRA_USAGE,
    PREFIX,
    DecodeStep,
    EngineRequest,
    estimated_prompt_tokens,
)
from predictor.engine.upstream.errors import UpstreamRateLimited, UpstreamUnavailable
from predictor.engine.upstream.provider import CallResult, Report, Reservation
from predictor.engine.upstream.rate_headers import RateLimits, rate_limits
from predictor.engine.upstream.target import EMBEDDING_URL, Chunk, Target

_PLACEHOLDER: Final = (0,)
"""Stands for the tokens of a chunk: a provider does not give their ids."""
_SHOWN: Final = ("content", "reasoning", "reasoning_content", "tool_calls", "text")
CUT_AS_LATE: Final = 4
"""How many times as late as a late one a call counts that was cut for that: beyond twice the median in any case."""


class ProviderCall:
    """One call to one target; its `report` is true at any time."""

    def __init__(
        self,
        target: Target,
        right: Reservation,
        *,
        place: int,
        asked: str,
        after: tuple[str, ...],
        settle: Callable[[Report], None],
    ) -> None:
        self.right: Final = right
        self.place: Final = place
        self._target = target
        self._asked = asked
        self._after = after
        self._settle = settle
        self._report = Report(result=CallResult.CUT)
        self._started_s = asyncio.get_running_loop().time()

    async def steps(self, request: EngineRequest) -> AsyncGenerator[DecodeStep, None]:
        """The answer; what became of the call is settled however it ends."""
        try:
            async for step in self._steps(request):
                yield step
        except TorporError as error:
            self._report = _report_of(error, self._report.limits)
            raise
        finally:
            self._settle(self._with_lateness(self._report))

    def _with_lateness(self, report: Report) -> Report:
        """A call that was cut because it was late would have taken longer than that: without it the late ones would
        be missing among those that say what is late, and with the moment of its cut it would look nearly usual.
        """
        passed_s = asyncio.get_running_loop().time() - self._started_s
        is_late = 0 < self.right.late_after_s <= passed_s
        if report.result is CallResult.CUT and report.first_token_s is None and is_late:
            longer_s = max(passed_s, CUT_AS_LATE * self.right.late_after_s)
            return replace(report, first_token_s=longer_s)
        return report

    async def _steps(self, request: EngineRequest) -> AsyncIterator[DecodeStep]:
        usage: Mapping[str, Any] = {}
        async with self._target.send(request) as answer:
            report = Report(result=CallResult.CUT, limits=rate_limits(answer.headers))
            self._report = report
            async for chunk in answer.chunks:
                usage = chunk.get("usage") or usage
                if request.counts_throughout and not usage:
                    # A provider counts at the end only; of an answer that is stopped the prompt's size is estimated.
                    prompt, _ = size_of(request)
                    chunk = {**chunk, "usage": {"prompt_tokens": prompt}}
                shows = _shows(chunk) or request.url == EMBEDDING_URL
                if shows and report.first_token_s is None:
                    first_s = asyncio.get_running_loop().time() - self._started_s
                    self._report = report = replace(report, first_token_s=first_s)
                yield DecodeStep(_PLACEHOLDER if shows else (), self._named(chunk))
        self._report = replace(
            report,
            result=CallResult.OK,
            taken_tokens=usage.get("total_tokens"),
            answer_tokens=usage.get("completion_tokens"),
        )

    def _named(self, chunk: Chunk) -> Chunk:
        """A chunk that says who answers, when that is not the first one that was asked. A provider's own words in our
        fields are left out.
        """
        if not _OUR_FIELDS.isdisjoint(chunk):
            chunk = {name: value for name, value in chunk.items() if name not in _OUR_FIELDS}
        if not self._after:
            return chunk
        routing = {
            "asked": self._asked,
            "answered": f"{chunk.get('model', '')} at {self._target.endpoint.host}",
            "reason": ", ".join(self._after),
        }
        return {**chunk, "routing": routing}


def _report_of(error: TorporError, limits: RateLimits) -> Report:
    wait_s = 0.0
    match error:
        case UpstreamRateLimited():
            result, limits, wait_s = CallResult.LIMITED, error.limits, error.retry_after_s
        case UpstreamUnavailable(is_reached=is_reached):
            result = CallResult.FAILED if is_reached else CallResult.UNREACHABLE
        case BadRequest():
            result = CallResult.REFUSED
        case _:
            result = CallResult.FAILED
    taken = None if result is CallResult.FAILED else 0
    return Report(result=result, limits=limits, taken_tokens=taken, retry_after_s=wait_s)


_OUR_FIELDS: Final = frozenset({"routing", EXTRA_USAGE, PREFIX})


def size_of(request: EngineRequest) -> tuple[int, int | None]:
    """Tokens of the prompt, estimated by its bytes, and the most that the answer may have, if it says so."""
    body = request.body
    prompt = estimated_prompt_tokens(body)
    if request.url == EMBEDDING_URL:
        return prompt, 0
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    return prompt, asked if isinstance(asked, int) else None


def _shows(chunk: Mapping[str, Any]) -> bool:
    """True when a reader is shown something of it."""
    for choice in chunk.get("choices", ()):
        shown = choice.get("delta") or choice.get("message") or choice
        if any(shown.get(name) for name in _SHOWN):
            return True
    return False
