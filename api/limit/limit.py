"""A tenant's limits, the cost of a call, and the wait after a refusal. Pure.

Called by `api.limit.gate`. Must not know Redis or HTTP.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeGuard

from typing_extensions import TypedDict

from api.http.described import described
from api.settings import ApiSettings
from eventing.errors import BadRequest, Unavailable
from eventing.job.call.fields import CHAT_BATCH_URL
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.job import Job, JobRequest

MINUTE_S: Final = 60
_MOVED_RETRY_S: Final = 60.0
_BYTES_PER_TOKEN: Final = 4
"""OpenAI's rule of thumb; used for limits, never for billing."""


class Limit(StrEnum):
    """The limits, by their names in metrics."""

    REQUESTS_PER_MINUTE = "requests_per_minute"  #: calls other than GET
    KEY_REQUESTS_PER_MINUTE = "key_requests_per_minute"  #: those of one API key
    TOKENS_PER_MINUTE = "tokens_per_minute"  #: tokens of jobs, estimated
    TOKENS_OF_ONE_CALL = "tokens_of_one_call"  #: one job over a whole minute's tokens
    JOBS_IN_FLIGHT = "jobs_in_flight"  #: jobs that have not ended
    BUDGET_PER_MONTH = "budget_per_month"  #: money, of a tenant or a key
    QUEUE_DEPTH = "queue_depth"  #: jobs of all tenants that wait for a model
    DEADLINE = "deadline"  #: the job would wait beyond its deadline


@described
class LimitUse(TypedDict):
    """A limit, 0 for none, and how much of it is used."""

    limit: int
    used: int
    reset_s: float | None
    """Until nothing is used, if nothing is added; null for a limit that no time frees"""


class RateLimited(Unavailable):
    """Over a limit of the tenant; nothing was accepted."""

    status = 429
    code = "rate_limit_exceeded"


class DeadlineOutOfReach(Unavailable):
    """The job would still wait when its deadline passes."""

    code = "deadline_unreachable"


class TenantMoved(Unavailable):
    """New jobs of this tenant go to another cell; nothing was accepted."""

    code = "tenant_moved"


class TooLargeForLimit(BadRequest):
    """One call over a whole minute's limit: waiting does not help."""

    status = 422
    code = "request_too_large_for_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a tenant; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    jobs_in_flight: int = 0
    file_bytes: int = 0
    budget_per_month: float = 0.0
    soft_budget_per_month: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWindow:
    """A sliding window as the store counts it: the usage of the previous window and of the current one.

    The previous one fades out evenly over `previous_left_s`; then the current one, which ends in `current_left_s`,
    becomes the previous.
    """

    limit: int
    previous: int = 0
    previous_left_s: float = 0.0
    current: int = 0
    current_left_s: float = 0.0

    @property
    def used(self) -> int:
        return math.floor(self.previous * self.previous_left_s / MINUTE_S) + self.current

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    def wait_s(self, cost: int) -> float:
        """Seconds until `cost`, which must be within the limit, fits if nothing else is used."""
        if self.used + cost <= self.limit:
            return 0.0
        room = self.limit - cost
        if self.current <= room:
            share = (room - self.current) * MINUTE_S / max(self.previous, 1)
            return max(0.0, self.previous_left_s - share)
        fade_s = MINUTE_S * (1 - room / self.current)
        return self.current_left_s + fade_s

    def use(self) -> LimitUse:
        """As JSON."""
        return {"limit": self.limit, "used": self.used, "reset_s": round(self.reset_s, 3)}

    @property
    def reset_s(self) -> float:
        """Seconds until the window is empty."""
        if self.current:
            return self.current_left_s + MINUTE_S
        return self.previous_left_s if self.previous else 0.0


def check_moved(moved: Mapping[str, str], tenant: str) -> None:
    """Raises `TenantMoved` where another cell takes the new jobs of `tenant`."""
    if where := moved_to(moved, tenant):
        raise TenantMoved(f"new jobs of this tenant go to {where}", _MOVED_RETRY_S)


def moved_to(moved: Mapping[str, str], tenant: str) -> str:
    """The address of the cell that takes the new jobs of `tenant`; empty where this one does."""
    return moved.get(tenant) or moved.get("*", "")


def limits_of(settings: ApiSettings, tenant: str) -> Limits:
    """The limits of `tenant`: its own where set, the general ones otherwise."""
    own = settings.tenant_limits.get(tenant)
    requests = own.requests_per_minute if own else None
    tokens = own.tokens_per_minute if own else None
    jobs = own.jobs_in_flight if own else None
    files = own.file_bytes if own else None
    budget = own.budget_per_month if own else None
    soft = own.soft_budget_per_month if own else None
    return Limits(
        soft_budget_per_month=settings.limit_soft_budget_per_month if soft is None else soft,
        budget_per_month=settings.limit_budget_per_month if budget is None else budget,
        requests_per_minute=(settings.limit_requests_per_minute if requests is None else requests),
        tokens_per_minute=settings.limit_tokens_per_minute if tokens is None else tokens,
        jobs_in_flight=settings.limit_jobs_in_flight if jobs is None else jobs,
        file_bytes=settings.limit_file_bytes if files is None else files,
    )


def tokens_asked(request: JobRequest, context_tokens: int) -> int:
    """An estimate of the most tokens that a request can use: its prompts at four bytes a token, and for each prompt
    and choice the longest answer allowed, or what the context leaves when none is set.
    """
    prompts = _prompt_sizes(request)
    if request.url in ("/v1/embeddings", MODERATION_URL):
        return max(1, sum(prompts))
    named = answer_tokens(request)
    answers = [max(context_tokens - size, 0) if named is None else named for size in prompts]
    return max(1, sum(prompts) + sum(answers) * _choices(request))


def answer_tokens(request: JobRequest) -> int | None:
    """The longest answer that a request allows, in tokens; None when it sets none."""
    body = request.body
    named = body.get("max_completion_tokens")
    named = body.get("max_tokens") if named is None else named
    return named if _is_count(named) else None


def _choices(request: JobRequest) -> int:
    """The number of answers generated for each prompt, which may be more than are returned."""
    asked = (request.body.get(name) for name in ("n", "best_of"))
    return max((count for count in asked if _is_count(count)), default=1)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def tokens_taken(job: Job) -> int:
    """The tokens that an ended job used, by the engine's count where there is one; 0 for a job that never ran."""
    counted = (job.usage or {}).get("total_tokens")
    if isinstance(counted, int):
        return max(0, counted)
    return prompt_tokens(job.request) + job.token_count if job.attempt else 0


def prompt_tokens(request: JobRequest) -> int:
    """The estimated tokens of the prompts."""
    return sum(_prompt_sizes(request))


def _prompt_sizes(request: JobRequest) -> list[int]:
    """The estimated tokens of each prompt; a chat is one prompt."""
    body = request.body
    prompts: list[Any]
    if request.url == "/v1/chat/completions":
        prompts = [body.get("messages")]
    elif request.url == CHAT_BATCH_URL:
        prompts = list(body.get("messages") or ())
    else:
        given = body.get("prompt") or body.get("input")
        is_list = isinstance(given, list) and not all(isinstance(item, int) for item in given)
        prompts = list(given or ()) if is_list else [given]
    return [math.ceil(sum(_tokens(prompt))) for prompt in prompts]


def _tokens(value: Any) -> Iterable[float]:
    """The sizes of all texts in a prompt; a number is a token id."""
    if isinstance(value, str):
        yield len(value.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN
    elif isinstance(value, int):
        yield 1
    elif isinstance(value, list):
        for inner in value:
            yield from _tokens(inner)
    elif isinstance(value, Mapping):
        yield from _tokens(value.get("content") or value.get("text") or "")


def headers_of(name: str, window: LimitWindow) -> dict[str, str]:
    """OpenAI's rate limit headers for `requests` or `tokens`."""
    return {
        f"x-ratelimit-limit-{name}": str(window.limit),
        f"x-ratelimit-remaining-{name}": str(window.remaining),
        f"x-ratelimit-reset-{name}": duration(window.reset_s),
    }


def duration(seconds: float) -> str:
    """A duration in OpenAI's format: `6m0s`, `1.25s`, `120ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"


def check_deadline(
    wait_s: float | None, head_age_s: float, left_s: float, *, standing_s: float = 30.0
) -> None:
    """Raises `DeadlineOutOfReach` when a job with `left_s` to its deadline would wait longer.

    The expected wait comes from the recent pace, which measures capacity only while the queue is never empty; so no
    job is refused before the queue's head has waited `standing_s`.
    """
    if wait_s is None or wait_s <= left_s or head_age_s < standing_s:
        return
    raise DeadlineOutOfReach(
        f"expected wait is {wait_s:.0f} s, and the deadline is in {max(left_s, 0):.0f} s",
        wait_s - left_s,
    )
