"""The timeline of a job: accepted, queued, waking, attempts, tokens, end, webhook deliveries, with times.

Called by `GET /v1/jobs/{id}?include=timeline`; `torpor watch` and the console draw it. Pure. Must not know HTTP.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NotRequired, cast

from typing_extensions import TypedDict
from yarl import URL

from api.http.described import described
from api.view.items.turns import turn_steps
from api.webhook.webhook import JOB_WEBHOOK, WebhookDelivery
from eventing.job.cache.cache import CacheKind
from eventing.job.job import Job
from eventing.replica import Replica

Step = dict[str, Any]


_Try = TypedDict("_Try", {"try": int}, total=False)


@described
class StepView(_Try):
    """A step; which of the later fields there are is a matter of its kind."""

    step: str
    """accepted, cache, queued, step, waking, attempt, tokens, turn, call, delivery, or the state it ended in"""
    at_ms: int
    duration_ms: int | None
    """Until now for a running step; null for a step without duration"""
    phase: NotRequired[str]
    """Of waking"""
    kind: NotRequired[str]
    """Of a hit of the cache, whose `outcome` is its status"""
    source_job: NotRequired[str]
    """The job that gave, or gives, the answer of a hit"""
    name: NotRequired[str]
    """Of a step before the predictor or after it, whose `outcome` is its status; of a call `SERVER.TOOL`, whose
    `outcome` is its state
    """
    attempt: NotRequired[int]
    outcome: NotRequired[str | None]
    resumed_from: NotRequired[int]
    count: NotRequired[int]
    """Of tokens"""
    turn: NotRequired[int]
    prompt_tokens: NotRequired[int | None]
    """Of a turn"""
    read_tokens: NotRequired[int | None]
    """Those of them that the engine did not have from before"""
    first_token_ms: NotRequired[int | None]
    """From the start of the turn's last attempt to its first token"""
    place: NotRequired[int]
    """Of a call, in its turn"""
    sends: NotRequired[int]
    """How often a call may have reached its tool"""
    arguments: NotRequired[str]
    """Of a call, the first thousand characters"""
    output: NotRequired[str | None]
    """What the model was told of a call, the first thousand characters"""
    delivery: NotRequired[str]
    """The id of a webhook's delivery"""
    endpoint: NotRequired[str]
    host: NotRequired[str]
    type: NotRequired[str]
    state: NotRequired[str]
    status: NotRequired[int | None]
    """HTTP status that the receiver answered"""
    error: NotRequired[str | None]
    next_ms: NotRequired[int | None]
    """When it is tried again"""


@described
class TimelineView(TypedDict):
    """A job's life in order of time."""

    steps: list[StepView]
    is_whole: bool
    """Nothing more is to be expected but a delivery that is tried again"""


_OVER: Final = frozenset({"ready", "draining", "broken"})
"""Phases of a replica that has finished its start."""


def timeline(
    job: Job,
    replicas: Sequence[Replica],
    deliveries: Iterable[WebhookDelivery],
    now_ms: int,
    kept: Sequence[Step] = (),
) -> TimelineView:
    """The steps in order of time. `at_ms` is store time; `duration_ms` counts up to `now_ms` for a running step,
    and is null for a step without duration. `is_whole` is set once no further step is expected except a webhook's
    retry. `kept` are the replica phases stored at the job's end.
    """
    shown = sorted(deliveries, key=lambda delivery: delivery.created_ms)
    first_ms = job.started_ms or job.finished_ms
    steps: list[Step] = [{"step": "accepted", "at_ms": job.created_ms, "duration_ms": None}]
    steps += _cache(job)
    if job.cache is None or job.cache.kind is not CacheKind.EXACT:
        steps.append(_span("queued", job.created_ms, first_ms, now_ms))
    steps += _pipeline(job, now_ms)
    steps += kept or waking_steps(job, replicas, now_ms)
    steps += _attempts(job, now_ms)
    steps += turn_steps(job)
    if job.finished_ms:
        steps.append(_span(str(job.state), job.finished_ms, job.finished_ms, now_ms))
        steps[-1]["duration_ms"] = job.finished_ms - job.created_ms
    steps += [step for delivery in shown for step in _tries(delivery)]
    return {
        "steps": cast(list[StepView], sorted(steps, key=lambda step: int(step["at_ms"]))),
        "is_whole": bool(job.finished_ms)
        and bool(shown or JOB_WEBHOOK not in job.metadata)
        and all(delivery.tries or delivery.state.is_settled for delivery in shown),
    }


def _cache(job: Job) -> Iterator[Step]:
    """How the cache served the job, when it was asked."""
    use = job.cache
    if use is None:
        return
    step: Step = {"step": "cache", "at_ms": job.created_ms, "duration_ms": None}
    step["outcome"] = str(use.status)
    if use.kind is not None:
        step |= {"kind": str(use.kind), "source_job": use.source_job}
    yield step


def _span(step: str, start_ms: int, end_ms: int, now_ms: int, **more: Any) -> Step:
    duration_ms = max(0, (end_ms or now_ms) - start_ms)
    return {"step": step, "at_ms": start_ms, "duration_ms": duration_ms, **more}


def waking_steps(job: Job, replicas: Sequence[Replica], now_ms: int) -> list[Step]:
    """The phases of the replica that runs the job, or may run it, as far as the job waited for them. Read them
    while the replica exists.
    """
    return list(_waking(job, replicas, job.started_ms or job.finished_ms or now_ms, now_ms))


def _waking(job: Job, replicas: Sequence[Replica], until_ms: int, now_ms: int) -> Iterator[Step]:
    owner = job.history[0].owner if job.history else ""
    chosen = next((r for r in replicas if not owner or r.id == owner), None)
    if chosen is None or (owner == "" and chosen.phase in _OVER):
        return
    start_ms = chosen.since_ms - int(1000 * sum(chosen.phases.values()))
    spans = [(name, int(1000 * seconds)) for name, seconds in chosen.phases.items()]
    if chosen.phase not in _OVER:
        spans.append((chosen.phase, max(0, now_ms - chosen.since_ms)))
    for name, duration_ms in spans:
        if job.created_ms < start_ms + duration_ms and start_ms < until_ms:
            yield {
                "step": "waking",
                "phase": name,
                "at_ms": max(start_ms, job.created_ms),
                "duration_ms": duration_ms,
            }
        start_ms += duration_ms


def _pipeline(job: Job, now_ms: int) -> Iterator[Step]:
    """The planned steps that have begun, or were left out."""
    for record in job.steps:
        if begun_ms := record.started_ms or record.ended_ms:
            yield _span(
                "step",
                begun_ms,
                record.ended_ms,
                now_ms,
                name=record.step,
                outcome=str(record.status),
            )


def _attempts(job: Job, now_ms: int) -> Iterator[Step]:
    for attempt in job.history:
        yield _span(
            "attempt",
            attempt.started_ms,
            attempt.ended_ms,
            now_ms,
            attempt=attempt.attempt,
            outcome=attempt.outcome or None,
            resumed_from=attempt.resumed_from,
        )
    if job.first_token_ms:
        is_between = job.tool_phase is not None and job.history
        end_ms = job.history[-1].ended_ms if is_between else job.finished_ms
        yield _span("tokens", job.first_token_ms, end_ms, now_ms, count=job.token_count)


def _tries(delivery: WebhookDelivery) -> Iterator[Step]:
    """One step for each try; without a duration for a delivery that has not been tried."""
    shown = {
        "step": "delivery",
        "delivery": delivery.id,
        "endpoint": delivery.endpoint,
        "host": URL(delivery.url).host or "",
        "type": delivery.type,
        "state": delivery.state,
    }
    if not delivery.log:
        yield shown | {"at_ms": delivery.created_ms, "duration_ms": None, "try": 0}
    for number, entry in enumerate(delivery.log, start=1):
        yield shown | {
            "at_ms": entry.at_ms,
            "duration_ms": entry.duration_ms,
            "try": number,
            "status": entry.status or None,
            "error": entry.error or None,
            "next_ms": entry.next_ms or None,
        }
