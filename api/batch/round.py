"""Batch lines that are submitted together, and the job of each.

Called by `api.batch.run`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.auth.principal import Principal
from api.batch.batch import RESPONSES, Batch, BatchStatus, Running, parse_line
from api.batch.jsonl import BatchLine
from api.batch.store import BatchStore
from api.http.metadata import check_metadata
from api.job.conversation import chat_line, field_of_call, read_ask, record_metadata
from api.job.submission import SubmitDeps, submit_line
from api.webhook.service import WebhookService
from eventing.clock import Clock
from eventing.errors import BadRequest, InvalidJob, ObjectGone, ObjectsUnavailable, TorporError
from eventing.job.job import Job, JobId
from eventing.job.store import JobIntake, JobReader
from eventing.process.body import BodyTooLarge
from eventing.store.file_store import FileStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDeps:
    """What running batches needs."""

    batches: BatchStore
    files: FileStore
    store: JobIntake
    submission: SubmitDeps
    webhooks: WebhookService
    clock: Clock
    line_limit_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A line that is ready to be submitted."""

    number: int
    custom_id: str
    call: dict[str, Any]


@dataclass(slots=True)
class Round:
    """Lines that were read together, up to line `end`; done when none is `waiting`."""

    end: int = 0
    offset: int = 0
    waiting: list[Ready] = field(default_factory=list)
    accepted: list[Running] = field(default_factory=list)
    refused: list[tuple[int, str | None, TorporError]] = field(default_factory=list)


def checked(line: BatchLine, endpoint: str, limit_bytes: int, seen: set[str]) -> Ready:
    """The validated line; its custom_id is added to those that were `seen`. Raises `BadRequest`."""
    if len(line.raw) > limit_bytes:
        raise BodyTooLarge("the line is over the limit of a call's body", "body")
    call = parse_line(line.raw, endpoint)
    if call["custom_id"] in seen:
        raise InvalidJob("custom_id was used before in this file", "custom_id")
    seen.add(call["custom_id"])
    return Ready(line.number, call["custom_id"], call)


async def reason_to_stop(deps: RunnerDeps, batch: Batch) -> BatchStatus | None:
    """`CANCELLED` or `EXPIRED` when the batch is to end before its last line."""
    if await deps.batches.is_cancel_asked(batch.id):
        return BatchStatus.CANCELLED
    if deps.clock.wall_ms() / 1000 > batch.expires_at:
        return BatchStatus.EXPIRED
    return None


async def job_line(
    endpoint: str, ready: Ready, deps: SubmitDeps, store: JobIntake, principal: Principal
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The line's job, and its metadata. Raises `InvalidJob`."""
    if endpoint != RESPONSES:
        return ready.call, {}
    body = ready.call.get("body")
    if not isinstance(body, dict):
        raise InvalidJob("body must be a JSON object", "body")
    if body.get("conversation") is not None:
        message = "conversation: the lines of a batch run at once, and a conversation takes one response at a time"
        raise InvalidJob(message, "conversation")
    ask = await read_ask(deps, store, principal, body)
    if ask.search is not None:
        raise InvalidJob("file_search is not served in a batch", "body.tools")
    own = check_metadata(body.get("metadata"), "metadata")
    line = chat_line(ask) | {"custom_id": ready.custom_id}
    return line, {**own, **record_metadata(ask)}


async def submitted(deps: RunnerDeps, principal: Principal, batch: Batch, ready: Ready) -> Job:
    """The job of the line, new or not. Raises as `submit_line` does."""
    line, metadata = await job_line(batch.endpoint, ready, deps.submission, deps.store, principal)
    key = f"{batch.id}:{ready.number}"
    return await submit_line(deps.submission, principal, line, key=key, metadata=metadata)


async def ended_job(store: JobReader, job_id: JobId) -> tuple[Job | None, TorporError | None]:
    """The ended job, and why its answer cannot be read, when it cannot."""
    try:
        return await store.get(job_id), None
    except (ObjectGone, ObjectsUnavailable) as error:
        return await store.get(job_id, with_result=False), error


def in_words_of(endpoint: str, error: TorporError) -> TorporError:
    """The error with its field named as in the batch line."""
    if endpoint == RESPONSES and isinstance(error, BadRequest) and error.field not in ("", "body"):
        error.field = f"body.{field_of_call(error.field).removeprefix('body.')}"
    return error
