"""A job as callers see it, in JSON.

Called by the jobs' handlers, their streams and the WebSocket. Must not know HTTP.
"""

from typing import Any

from api.view.outlook import Outlook, outlook_view
from eventing.cloudevent.job_event import timings
from eventing.cloudevent.request_id import KEPT
from eventing.job.job import Job
from eventing.telemetry.cost import Price, job_cost


def job_view(
    job: Job,
    outlook: Outlook | None = None,
    *,
    with_request: bool = False,
    with_result: bool = True,
) -> dict[str, Any]:
    """The job; `waiting` stands in it while something is known of the wait. Times are store time in
    milliseconds since the epoch, null for «not yet».
    """
    view: dict[str, Any] = {
        **_heading(job),
        "attempt": job.attempt,
        "token_count": job.token_count,
        "created_ms": job.created_ms,
        "started_ms": job.started_ms or None,
        "first_token_ms": job.first_token_ms or None,
        "finished_ms": job.finished_ms or None,
        "deadline_ms": job.deadline_ms or None,
        "timings": dict(timings(job)),
        "metadata": public_metadata(job),
        "request_id": job.metadata.get(KEPT),
        **({"result": job.result} if with_result else {}),
        "usage": job.usage,
        "error": job.error.to_dict() if job.error else None,
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
        "links": {"self": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"},
    }
    if outlook is not None:
        view["waiting"] = outlook_view(outlook)
    if with_request:
        view["request"] = {"url": job.request.url, "body": job.request.body}
    return view


def cost_view(job: Job, price: Price, overhead: float | None = None) -> dict[str, Any]:
    """The job's part of the GPU so far, and what that cost, with and without its part of idle time,
    wakes and waste.
    """
    tokens = (job.usage or {}).get("completion_tokens")
    output_tokens = tokens if isinstance(tokens, int) else 0
    return job_cost(job.gpu_ms / 1000, output_tokens, price, overhead)


def accepted_view(job: Job) -> dict[str, Any]:
    """What a submit answers: enough to find the job again."""
    return {
        **_heading(job),
        "created_ms": job.created_ms,
        "deadline_ms": job.deadline_ms or None,
        "metadata": public_metadata(job),
        "request_id": job.metadata.get(KEPT),
        "links": {"self": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"},
    }


def _heading(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "job",
        "state": job.state,
        "url": job.request.url,
        "model": job.request.model,
        "custom_id": job.request.custom_id,
        "priority": job.lane,
    }


def public_metadata(job: Job) -> dict[str, str]:
    """The caller's own metadata, without what we keep beside it."""
    return {name: text for name, text in job.metadata.items() if not name.startswith("torpor.")}
