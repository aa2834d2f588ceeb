"""A job as callers see it, in JSON.

Called by the jobs' handlers, their streams and the WebSocket. Must not know HTTP.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described
from api.view.items.turns import TurnView, UnusedResultView, turn_views, unused_result_views
from api.view.outlook import Outlook, OutlookView, outlook_view
from api.view.timeline import TimelineView
from eventing.cloudevent.request_id import KEPT
from eventing.cloudevent.result_event import CacheView, Timings, cache_view, timings
from eventing.job.answer_links import shown_result
from eventing.job.call.reasoning import body_with_both_names
from eventing.job.job import Job, JobError, JobState, Lane
from eventing.job.plan import ROUTE_STEP, STEPS_AFTER, StepRecord, StepStatus
from eventing.telemetry.cost import JobCost, Price, TokenPrice, job_cost, spent_tokens

VALIDATING: Final = "validating"


@described
class AttemptView(TypedDict):
    """One attempt at a job."""

    attempt: int
    started_ms: int
    ended_ms: int | None
    outcome: str | None
    """How it ended; null while it runs"""
    resumed_from: int
    """Tokens of earlier attempts that it continued from"""


@described
class LinksView(TypedDict):
    """Where to go on."""

    self: str
    events: str
    """Server-sent events of the job's life"""
    result: NotRequired[str]
    """What the job gave, by itself; a large one can be fetched in parts"""


class AskedView(TypedDict):
    """What was asked."""

    url: str
    body: Mapping[str, Any]


@described
class AcceptedJobView(TypedDict):
    """The recorded job; `Location` is its address."""

    id: str
    object: Literal["job", "dead_letter"]
    state: JobState
    url: str
    """What its body was for"""
    model: str
    custom_id: str | None
    """Your name for it, of the request"""
    priority: Lane
    created_ms: int
    """All times are the store's, in milliseconds since 1970; null: not yet"""
    deadline_ms: int | None
    """When it is given up"""
    metadata: dict[str, str]
    request_id: str | None
    """`X-Request-Id` of the call that made it"""
    links: LinksView
    cache: NotRequired[CacheView]
    """How the exact cache served it, when it was asked"""
    follows: NotRequired[str]
    """The running job whose answer it waits for"""


@described
class ResultView(TypedDict, total=False):
    """What the job gave, in the form of its `url`, as the engine wrote it."""

    object: str
    model: str
    choices: list[Mapping[str, Any]]
    """Of a chat or text completion"""
    data: list[Mapping[str, Any]]
    """Embeddings"""
    usage: Mapping[str, Any] | None


@described
class PipelineStepView(TypedDict):
    """A step before the predictor, or after it."""

    step: str
    status: StepStatus
    started_ms: int | None
    ended_ms: int | None
    attempts: int
    """How often its handler has begun"""
    detail: Mapping[str, Any]
    """What the step tells of itself"""


@described
class RoutingView(TypedDict):
    """Why another model answers than the one that was asked for."""

    asked: str
    answered: str
    reason: str


@described
class JobView(AcceptedJobView):
    """The job as it is now."""

    attempt: int
    """How often a predictor has begun it"""
    token_count: int
    """Tokens that are kept"""
    started_ms: int | None
    first_token_ms: int | None
    finished_ms: int | None
    timings: Timings
    result: NotRequired[Mapping[str, Any] | None]
    """The answer, in the form of its `url`; a list has it with `include=result`"""
    usage: Mapping[str, Any] | None
    """Tokens as the engine counted them"""
    saved_usage: NotRequired[Mapping[str, Any] | None]
    """Tokens that a kept answer saved"""
    error: JobError | None
    is_dead_letter: bool
    """It failed for good, and can be redriven"""
    attempts: list[AttemptView]
    routing: NotRequired[RoutingView]
    """Which model answered, where that is not the one that was asked for"""
    pipeline: NotRequired[list[PipelineStepView]]
    """The steps before the predictor and after it, where its model has some"""
    phase: NotRequired[Literal["validating", "tool", "approval", "input"]]
    """What a job in progress waits for: steps that judge its answer, calls of tools, or only a person who is to decide
    or to be asked
    """
    turns: NotRequired[list[TurnView]]
    """The answers of a model with tools, and their calls; not in a list"""
    stopped_by: NotRequired[str]
    """The limit (`turns`, `calls`, `tokens`, `cost`, `time`, `repeat`) after which its model could call no tool"""
    late_results: NotRequired[list[UnusedResultView]]
    """Results of calls that came too late, the first 16: none was used"""
    incomplete_reason: NotRequired[str]
    """Why the text of the answer is withheld: `content_filter`, or `content_filter_unavailable`"""
    waiting: NotRequired[OutlookView]
    prompt: NotRequired[str]
    """Its first 160 characters, in a list with `include=prompt`"""
    request: NotRequired[AskedView]
    """With `include=request`"""
    timeline: NotRequired[TimelineView]
    """With `include=timeline`"""
    cost: NotRequired[JobCost]


def job_view(
    job: Job,
    outlook: Outlook | None = None,
    *,
    with_request: bool = False,
    with_result: bool = True,
    with_prompt: bool = False,
    with_turns: bool = True,
) -> JobView:
    """The job; `waiting` is set while something is known of the wait."""
    view: JobView = {
        **accepted_view(job),  # type: ignore[typeddict-item]  # it has none of the optional ones
        "attempt": job.attempt,
        "token_count": job.token_count,
        "started_ms": job.started_ms or None,
        "first_token_ms": job.first_token_ms or None,
        "finished_ms": job.finished_ms or None,
        "timings": timings(job),
        "usage": job.usage,
        "error": job.error,
        "is_dead_letter": job.is_dead_letter,
        "attempts": [
            {
                "attempt": a.attempt,
                "started_ms": a.started_ms,
                "ended_ms": a.ended_ms or None,
                "outcome": a.outcome or None,
                "resumed_from": a.resumed_from,
            }
            for a in job.history
        ],
    }
    if job.plan is not None:
        view["pipeline"] = [_step_view(record) for record in job.steps]
    _add_progress(view, job)
    if with_turns and job.late_results:
        view["late_results"] = unused_result_views(job)
    if with_turns and (turns := turn_views(job)) is not None:
        view["turns"] = turns
    if job.cache is not None and job.cache.is_hit:
        view["saved_usage"] = job.cache.saved_usage
    if with_result:
        view["result"] = body_with_both_names(shown_result(job))
    if outlook is not None:
        view["waiting"] = outlook_view(outlook)
    if with_request:
        view["request"] = {"url": job.request.url, "body": job.request.body}
    if with_prompt:
        view["prompt"] = job.prompt
    return view


def _add_progress(view: JobView, job: Job) -> None:
    """What a job waits for, and what became of it on its way."""
    if job.tool_phase is not None:
        view["phase"] = job.tool_phase.value
    elif job.is_validating:
        view["phase"] = VALIDATING
    if job.turns and job.turns[-1].stopped_by:
        view["stopped_by"] = job.turns[-1].stopped_by
    if job.incomplete:
        view["incomplete_reason"] = job.incomplete
    if (routing := routing_view(job)) is not None:
        view["routing"] = routing


def _step_view(record: StepRecord) -> PipelineStepView:
    return {
        "step": record.step,
        "status": record.status,
        "started_ms": record.started_ms or None,
        "ended_ms": record.ended_ms or None,
        "attempts": record.attempts,
        "detail": record.detail,
    }


def cost_view(
    job: Job,
    price: Price,
    overhead: float | None = None,
    token_prices: Mapping[str, TokenPrice] = MappingProxyType({}),
) -> JobCost:
    """The job's GPU share so far and its cost, with and without its part of idle time, starts
    and waste; of a provider's model, what the tokens cost.
    """
    spent = spent_tokens(job.usage, job.to_run.model)
    return job_cost(job.gpu_ms / 1000, spent, price, overhead, token_prices)


def accepted_view(job: Job) -> AcceptedJobView:
    """What a submit answers: enough to find the job again."""
    view: AcceptedJobView = {
        "id": job.id,
        "object": "job",
        "state": job.state,
        "url": job.request.url,
        "model": job.request.model,
        "custom_id": job.request.custom_id,
        "priority": job.lane,
        "created_ms": job.created_ms,
        "deadline_ms": job.deadline_ms or None,
        "metadata": public_metadata(job),
        "request_id": job.metadata.get(KEPT),
        "links": _links(job),
    }
    if job.cache is not None:
        view["cache"] = cache_view(job.cache)
    if job.stream_id != job.id:
        view["follows"] = job.follows
    return view


def _links(job: Job) -> LinksView:
    place = f"/v1/jobs/{job.id}"
    links: LinksView = {"self": place, "events": f"{place}/events"}
    if job.result is not None or job.archived_bytes:
        links["result"] = f"{place}/result"
    return links


def public_metadata(job: Job) -> dict[str, str]:
    """The caller's own metadata, without what we keep beside it."""
    return {name: text for name, text in job.metadata.items() if not name.startswith("torpor.")}


def routing_view(job: Job) -> RoutingView | None:
    """What the step `route` chose, or a step that had another model asked, and which model or provider stood in for
    another; None where none did.
    """
    # The last one: a step after the predictor may have asked another model.
    details = [each.detail for each in job.steps if each.step in (ROUTE_STEP, *STEPS_AFTER)]
    chosen: Mapping[str, Any] = next((each for each in reversed(details) if "answered" in each), {})
    stood_in = (job.result or {}).get("routing") or {}
    found = [each for each in (chosen, job.routing, stood_in) if each]
    if not found:
        return None
    return {
        "asked": found[0]["asked"],
        "answered": found[-1]["answered"],
        "reason": ", ".join(each["reason"] for each in found),
    }
