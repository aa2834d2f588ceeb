"""A batch: its record, its input lines, and the lines of its results. Pure.

Called by `/v1/batches` and the runner. An invalid line fails alone, with its line number.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal

import orjson
from typing_extensions import TypedDict

from api.http.described import described
from api.http.problem import openai_error, openai_status
from api.view.outcome import answer_of, failure_of
from api.view.response import RECORD, ResponseUsage, response_view
from eventing.errors import BadRequest, InvalidJob, TorporError
from eventing.job.job import RUNNABLE_URLS, Job
from eventing.known_fields import known_fields, known_value
from eventing.telemetry.cost import cached_tokens

LINE_LIMIT: Final = 50_000
RESPONSES: Final = "/v1/responses"
WINDOW_S: Final = 24 * 3600
_SHOWN: Final = 20
"""Errors listed in the object of a batch whose lines are all invalid; the error file has all of them."""


class BatchStatus(StrEnum):
    """OpenAI's statuses of a batch."""

    VALIDATING = "validating"  #: the lines are being counted
    FAILED = "failed"  #: the file is not a batch
    IN_PROGRESS = "in_progress"  #: lines are running
    FINALIZING = "finalizing"  #: all lines have ended; result files are being written
    COMPLETED = "completed"  #: the result files exist
    EXPIRED = "expired"  #: the completion window passed; finished lines are kept
    CANCELLING = "cancelling"  #: running lines are being stopped
    CANCELLED = "cancelled"  #: cancelled; finished lines are kept

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL: Final = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


NOT_RUN_CODE: Final = {
    BatchStatus.CANCELLED: "batch_cancelled",
    BatchStatus.EXPIRED: "batch_expired",
    BatchStatus.FAILED: "batch_failed",
}
"""Error code of lines that were not run, by the batch's final status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A submitted line whose job's result was not collected yet."""

    number: int
    custom_id: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The durable record. `offset` and `line` say how far the input was submitted; `*_parts` name the parts of the
    result files. `refused` counts the invalid lines among the `failed`, `refusals` has the first reasons; of
    `models` at most two are kept, enough to know that there is more than one. Once `ending` is set nothing is
    added.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    created_at: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: BatchStatus = BatchStatus.VALIDATING
    times: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    offset: int = 0
    line: int = 0
    running: tuple[Running, ...] = ()
    output_parts: tuple[str, ...] = ()
    error_parts: tuple[str, ...] = ()
    output_bytes: int = 0
    error_bytes: int = 0
    errors: tuple[Mapping[str, Any], ...] = ()
    refused: int = 0
    refusals: tuple[Mapping[str, Any], ...] = ()
    models: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = ()  #: those that its key may use; empty for all
    usage: Mapping[str, int] = field(default_factory=dict)
    output_kept_s: int = 0
    ending: BatchStatus | None = None

    def sealed(self, end: BatchStatus) -> tuple["Batch", BatchStatus]:
        """The record to which nothing is added any more, and how it ends: a file without a valid line has failed."""
        batch = self
        if end is BatchStatus.COMPLETED and self.refused == self.total:
            end, batch = BatchStatus.FAILED, replace(self, errors=self.refusals)
        return replace(batch, ending=end, total=self.total or self.completed + self.failed), end

    def with_file_error(self, message: str) -> "Batch":
        """The record of a batch whose file is not one."""
        error = {"code": "invalid_input_file", "message": message, "line": None, "param": None}
        return replace(self, errors=(error,))

    def in_status(self, status: BatchStatus, now_s: int) -> "Batch":
        """The batch in another status, with its time."""
        return replace(self, status=status, times={**self.times, f"{status}_at": now_s})

    def asks_the_same_as(self, other: "Batch") -> bool:
        """True when both come from the same request."""
        mine, theirs = (
            (each.endpoint, each.input_file_id, dict(each.metadata), each.output_kept_s)
            for each in (self, other)
        )
        return mine == theirs

    def with_refusal(self, reason: Mapping[str, Any]) -> "Batch":
        """The batch with one more invalid line."""
        kept = self.refusals if len(self.refusals) >= _SHOWN else (*self.refusals, reason)
        return replace(self, failed=self.failed + 1, refused=self.refused + 1, refusals=kept)

    def with_answer(self, job: Job) -> "Batch":
        """The batch with one more answered line."""
        return replace(self, completed=self.completed + 1, usage=_sum(self.usage, job.usage or {}))

    def with_model(self, model: str) -> "Batch":
        """The batch with a line for `model`."""
        if model in self.models or len(self.models) > 1:
            return self
        return replace(self, models=(*self.models, model))

    @property
    def expires_at(self) -> int:
        return self.created_at + WINDOW_S

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    def view(self) -> "BatchView":
        has_ended = self.status.is_final
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id if has_ended and self.output_parts else None,
            "error_file_id": self.error_file_id if has_ended and self.error_parts else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "in_progress_at": self.times.get("in_progress_at"),
            "finalizing_at": self.times.get("finalizing_at"),
            "completed_at": self.times.get("completed_at"),
            "failed_at": self.times.get("failed_at"),
            "expired_at": self.times.get("expired_at"),
            "cancelling_at": self.times.get("cancelling_at"),
            "cancelled_at": self.times.get("cancelled_at"),
            "model": self.models[0] if len(self.models) == 1 else None,
            "usage": _usage_view(self.usage),
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": dict(self.metadata) or None,
        }


class RequestCounts(TypedDict):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchErrors(TypedDict):
    """Why the first lines could never run."""

    object: Literal["list"]
    data: list[Mapping[str, Any]]


@described
class BatchView(TypedDict):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    """Answers, once it has ended"""
    error_file_id: str | None
    """Lines without an answer, once it has ended"""
    created_at: int
    """All times are seconds since 1970"""
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    model: str | None
    """Of all its lines; null when they are for several"""
    usage: ResponseUsage
    request_counts: RequestCounts
    metadata: dict[str, str] | None


def parse_batch(raw: bytes) -> Batch:
    """The batch in a record that `to_json` of this version or another wrote."""
    found = known_fields(Batch, orjson.loads(raw))
    found["status"] = known_value(BatchStatus, found["status"])
    found["running"] = tuple(Running(**known_fields(Running, one)) for one in found["running"])
    if found.get("ending"):
        found["ending"] = known_value(BatchStatus, found["ending"])
    for name in ("output_parts", "error_parts", "errors", "refusals", "models"):
        found[name] = tuple(found.get(name, ()))
    return Batch(**found)


def _sum(usage: Mapping[str, int], more: Mapping[str, Any]) -> dict[str, int]:
    """The sum of two usage objects."""
    read = {
        "input_tokens": more.get("prompt_tokens"),
        "cached_tokens": cached_tokens(more),
        "output_tokens": more.get("completion_tokens"),
        "reasoning_tokens": (more.get("completion_tokens_details") or {}).get("reasoning_tokens"),
        "total_tokens": more.get("total_tokens"),
    }
    return {
        name: usage.get(name, 0) + (value if isinstance(value, int) else 0)
        for name, value in read.items()
    }


def _usage_view(usage: Mapping[str, int]) -> ResponseUsage:
    return {
        "input_tokens": usage.get("input_tokens", 0),
        "input_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
        "output_tokens": usage.get("output_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        "total_tokens": usage.get("total_tokens", 0),
    }


_LINE_FIELDS: Final = ("custom_id", "method", "url", "body", "skip_steps", "fallback")


def parse_line(raw: bytes, endpoint: str) -> dict[str, Any]:
    """An input line as a job line. Raises `InvalidJob` saying what is wrong with it."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidJob(f"not JSON: {error.msg} at {error.pos}", "") from error
    if not isinstance(line, dict):
        raise InvalidJob("a line must be a JSON object", "")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or len(custom_id) > 512:
        raise InvalidJob("custom_id must be a text of 1 to 512 characters", "custom_id")
    if line.get("url") != endpoint:
        raise InvalidJob(f"url must be the batch's endpoint, {endpoint}", "url")
    body = line.get("body")
    if isinstance(body, dict):
        if body.get("stream"):
            raise InvalidJob("a line of a batch cannot stream", "body.stream")
        line["body"] = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
    return {name: line[name] for name in _LINE_FIELDS if name in line}


def custom_id_of(raw: bytes) -> str | None:
    """The line's custom_id, if it can be read."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    value = line.get("custom_id") if isinstance(line, dict) else None
    return value if isinstance(value, str) else None


def check_endpoint(endpoint: Any) -> str:
    """Raises `BadRequest` for an endpoint that predictors do not serve."""
    if endpoint not in (*RUNNABLE_URLS, RESPONSES):
        served = ", ".join((*RUNNABLE_URLS, RESPONSES))
        raise BadRequest(f"endpoint must be one of {served}", "endpoint")
    return str(endpoint)


def refusal_of(number: int, error: TorporError) -> Mapping[str, Any]:
    """Why an input line is invalid."""
    where = getattr(error, "field", "")
    field = f" ({where})" if where else ""
    return {
        "code": error.code,
        "message": f"line {number}: {error.message}{field}",
        "param": where or None,
        "line": number,
    }


def refused_entry(
    batch: Batch, number: int, custom_id: str | None, reason: Mapping[str, Any]
) -> bytes:
    """The error file's line for an invalid input line."""
    return _entry(batch, number, custom_id, response=None, error=reason)


def unrun_entry(batch: Batch, number: int, custom_id: str | None, code: str) -> bytes:
    """The error file's line for an input line that was not run to its end."""
    reason = {"code": code, "message": f"line {number} was not run", "line": number}
    return _entry(batch, number, custom_id, response=None, error=reason)


def ended_entry(
    batch: Batch, running: Running, job: Job, failure: TorporError | None = None
) -> tuple[bytes, bool]:
    """The result line of an ended job, and whether it is an answer. `failure` says why its answer cannot be read."""
    failure = failure or failure_of(job)
    if failure is None:
        response = {"status_code": 200, "request_id": job.id, "body": _answer_of(job)}
    else:
        response = {
            "status_code": openai_status(failure),
            "request_id": job.id,
            "body": openai_error(failure),
        }
    entry = _entry(batch, running.number, running.custom_id, response=response, error=None)
    return entry, failure is None


def _answer_of(job: Job) -> Mapping[str, Any]:
    """The answer in the endpoint's own form: a response is run as a chat job."""
    record = job.metadata.get(RECORD)
    return response_view(job, orjson.loads(record)) if record else answer_of(job)


def _entry(batch: Batch, number: int, custom_id: str | None, **fields: Any) -> bytes:
    name = f"batch_req_{batch.id.removeprefix('batch_')}_{number}"
    return orjson.dumps({"id": name, "custom_id": custom_id, **fields}) + b"\n"
