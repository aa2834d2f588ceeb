"""Responses as chat jobs, and what was said in the ones before.

Called by `api.routes.responses` and the batch runner. Must not know HTTP.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from api.auth.principal import Principal
from api.job.response_request import Ask, Message, messages_of
from api.view.response import RECORD, job_id_of, output_items, record_of
from eventing.errors import InvalidJob, NotFound
from eventing.job.job import Job, JobState, is_job_id
from eventing.job.store import JobIntake


async def stored_response(
    store: JobIntake, principal: Principal, response: str
) -> tuple[Job, dict[str, Any]]:
    """The tenant's response of that id, and how it was asked for. Raises `NotFound`."""
    job_id = job_id_of(response)
    job = await store.get(job_id) if is_job_id(job_id) else None
    try:
        if job is None or job.tenant != principal.tenant:
            raise NotFound("no such job")
        return job, record_of(job)
    except NotFound as error:
        raise NotFound(f"Response with id '{response:.64}' not found.") from error


async def history_of(store: JobIntake, principal: Principal, previous: Any) -> Sequence[Message]:
    """What was said up to and including an earlier response, its instructions left out."""
    if previous is None:
        return []
    if not isinstance(previous, str):
        raise InvalidJob("previous_response_id must be text", "previous_response_id")
    try:
        job, record = await stored_response(store, principal, previous)
    except NotFound as error:
        raise InvalidJob(
            f"Previous response with id '{previous:.64}' not found.", "previous_response_id"
        ) from error
    if job.state not in (JobState.COMPLETED, JobState.INCOMPLETE):
        raise InvalidJob(
            f"the previous response is {job.state}; only a completed one can be gone on from",
            "previous_response_id",
        )
    said = list(job.request.body["messages"])
    if record.get("instructions"):
        said = said[1:]
    return [*said, *messages_of(output_items(job))]


def chat_line(ask: Ask) -> dict[str, Any]:
    """The job line of a response."""
    return {"url": "/v1/chat/completions", "body": ask.body}


def record_metadata(ask: Ask) -> Mapping[str, str]:
    """What the job remembers of how the response was asked for."""
    return {RECORD: orjson.dumps(ask.record).decode()}


def field_of_call(field: str) -> str:
    """The field of the response's call that a refusal of its chat body means."""
    if field.startswith("body.messages"):
        return "input"
    return "max_output_tokens" if field == "body.max_completion_tokens" else field
