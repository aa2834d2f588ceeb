"""What the OpenAPI document says of each call: parameters, bodies, answers, examples.

Called by the modules with handlers. `tests/integration/api` holds it against what the api does.
"""

from typing import Any

from api.openapi import examples
from api.openapi.doc import IDEMPOTENCY_KEY, Doc
from eventing.job.job import RUNNABLE_URLS, JobState, Lane
from eventing.job.store import ListField

Schema = dict[str, Any]


def body(schema: Schema, **examples: Any) -> Schema:
    """A required JSON body."""
    named = {name: {"value": value} for name, value in examples.items()}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": named}},
    }


def answer(description: str, schema: Schema | None = None, example: Any = None) -> Schema:
    """An answer in JSON."""
    content: Schema = {"schema": schema or {"type": "object"}}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def parameter(
    name: str, schema: Schema, description: str, *, where: str = "query", required: bool = False
) -> Schema:
    """A query, path or header parameter."""
    return {
        "name": name,
        "in": where,
        "required": required,
        "schema": schema,
        "description": description,
    }


PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "field": {"type": "string", "description": "what to change, as a path into the request"},
    },
}


def problems(*statuses: int) -> dict[int, Schema]:
    """Problem details (RFC 9457) for these statuses."""
    words = {
        400: "The request cannot be read",
        401: "No credential that we know",
        403: "The credential lacks the scope",
        404: "No such thing, or not yours",
        408: "The body came too slowly",
        409: "Not in this state, or the key was used with another body",
        413: "The body is over the limit",
        415: "The content type is not JSON",
        422: "The request can never run as it is; `field` names why",
        429: "Over a limit of the tenant; see Retry-After",
        503: "Not now: nothing was accepted; see Retry-After",
    }
    return {
        status: {
            "description": words[status],
            "content": {"application/problem+json": {"schema": PROBLEM}},
            **come_back(status),
        }
        for status in {*statuses, 429, 503}
    }


def come_back(status: int) -> Schema:
    """The header of the answers that say when to come again; every call can be answered so."""
    if status not in (429, 503):
        return {}
    schema = {"type": "integer", "minimum": 1}
    return {"headers": {"Retry-After": {"schema": schema, "description": "seconds"}}}


_ID = parameter("id", {"type": "string"}, "Id of the job", where="path", required=True)
_EXPIRES = parameter(
    "Torpor-Expires-After",
    {"type": "integer", "minimum": 1},
    "Seconds after which nobody wants the answer any more",
    where="header",
)

JOB: Schema = {
    "type": "object",
    "required": ["id", "object", "state", "url", "model", "links"],
    "properties": {
        "id": {"type": "string", "example": "job_0123456789abcdef01234567"},
        "object": {"const": "job"},
        "state": {"enum": [str(state) for state in JobState]},
        "url": {"type": "string"},
        "model": {"type": "string"},
        "result": {"type": ["object", "null"]},
        "usage": {"type": ["object", "null"]},
        "error": {"type": ["object", "null"]},
        "waiting": {
            "type": "object",
            "properties": {
                "position": {"type": "integer"},
                "expected_wait_s": {"type": "number"},
                "phase": {"type": "string"},
                "reason": {"type": "string", "description": "why no replica starts"},
            },
        },
        "links": {"type": "object"},
    },
}

LINE: Schema = {
    "type": "object",
    "required": ["url", "body"],
    "properties": {
        "url": {"enum": list(RUNNABLE_URLS)},
        "body": {"type": "object", "required": ["model"]},
        "custom_id": {"type": ["string", "null"]},
        "method": {"const": "POST"},
        "priority": {"enum": [str(lane) for lane in Lane]},
        "expires_after": {"type": "number", "exclusiveMinimum": 0, "maximum": 2592000},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": 16,
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    },
}

_EXAMPLE_LINE = {
    "url": "/v1/chat/completions",
    "body": {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Why do hummingbirds sleep so deeply?"}],
        "max_tokens": 64,
    },
}

_EVENTS_EXAMPLE = (
    'event: state\ndata: {"state":"queued","id":"job_0123456789abcdef01234567"}\n\n'
    'event: waking\ndata: {"position":0,"phase":"weights","replicas":1}\n\n'
    'id: 1764000000000-0\nevent: attempt\ndata: {"attempt":1,"index":0,"is_restart":false,'
    '"state":"in_progress"}\n\n'
    'id: 1764000000100-0\nevent: tokens\ndata: {"attempt":1,"index":0,"count":2,'
    '"delta":[{"index":0,"delta":{"content":"They do"}}]}\n\n'
)

SUBMIT_JOB = Doc(
    tag="jobs",
    parameters=(IDEMPOTENCY_KEY, _EXPIRES),
    body=body(LINE, chat=_EXAMPLE_LINE),
    answers={
        200: answer("The key's job, which has ended already", JOB, examples.JOB),
        202: answer("Accepted; `Location` is where to look", JOB, examples.ACCEPTED),
        **problems(400, 401, 403, 408, 409, 413, 415, 422, 503),
    },
)
LIST_JOBS = Doc(
    tag="jobs",
    parameters=(
        parameter(
            "state",
            {"type": "array", "items": {"enum": [str(state) for state in JobState]}},
            "Only jobs in these states",
        ),
        parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Jobs a page"),
        parameter("cursor", {"type": "string"}, "`next_cursor` of the page before"),
        parameter(
            "include",
            {"type": "array", "items": {"enum": [str(name) for name in ListField]}},
            "Show what was asked or answered, too; a page then ends after 4 MiB",
        ),
    ),
    answers={
        200: answer("A page of jobs, newest first", None, examples.paged(examples.LISTED_JOB)),
        **problems(400, 401, 403, 503),
    },
)
GET_JOB = Doc(
    tag="jobs",
    parameters=(
        _ID,
        parameter(
            "wait",
            {"type": "number", "minimum": 0, "maximum": 60},
            "Seconds to wait for the end before answering",
        ),
        parameter(
            "include",
            {"type": "string"},
            "`request`: show what was asked, too; `timeline`: its life in steps; or both, by comma",
        ),
    ),
    answers={200: answer("The job", JOB, examples.JOB), **problems(400, 401, 403, 404, 503)},
)
JOB_EVENTS = Doc(
    tag="jobs",
    parameters=(
        _ID,
        parameter("Last-Event-ID", {"type": "string"}, "Go on after this event", where="header"),
        parameter("after", {"type": "string"}, "The same, for clients that cannot set headers"),
    ),
    answers={
        200: {
            "description": "Events until the job has ended",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS_EXAMPLE}
            },
        },
        204: {"description": "The job has ended and you have seen everything"},
        **problems(400, 401, 403, 404, 503),
    },
)
CANCEL_JOB = Doc(
    tag="jobs",
    parameters=(_ID,),
    answers={
        200: answer("The job as it is now", JOB, examples.JOB),
        **problems(401, 403, 404, 503),
    },
)

_EVENT_BODY: Schema = {
    "required": True,
    "content": {
        "application/cloudevents+json": {
            "schema": {
                "type": "object",
                "required": ["specversion", "id", "source", "type"],
                "properties": {
                    "specversion": {"const": "1.0"},
                    "id": {"type": "string", "minLength": 1},
                    "source": {"type": "string", "minLength": 1},
                    "type": {"type": "string", "minLength": 1},
                    "data": {},
                },
            },
            "examples": {
                "request": {
                    "value": {
                        "specversion": "1.0",
                        "id": "order-17",
                        "source": "/my/shop",
                        "type": "dev.torpor.inference.requested.v1",
                        "datacontenttype": "application/json",
                        "data": _EXAMPLE_LINE,
                    }
                }
            },
        }
    },
}
TAKE_EVENT = Doc(
    tag="events",
    body=_EVENT_BODY,
    answers={
        200: answer("The event's job, which has ended already", JOB, examples.JOB),
        202: answer("Accepted", JOB, examples.ACCEPTED),
        **problems(400, 401, 403, 408, 409, 413, 415, 422, 503),
    },
)
_RESULTS_EXAMPLE = (
    "id: 1764000000000-0\nevent: dev.torpor.inference.completed.v1\n"
    'data: {"specversion":"1.0","id":"job_0123456789abcdef01234567:completed:1",'
    '"source":"/torpor/jobs","type":"dev.torpor.inference.completed.v1",'
    '"subject":"job_0123456789abcdef01234567","data":{"state":"completed"}}\n\n'
)
FOLLOW_EVENTS = Doc(
    tag="events",
    parameters=JOB_EVENTS.parameters[1:],
    answers={
        200: {
            "description": "Results until you leave; `gap` when some were forgotten",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": _RESULTS_EXAMPLE}
            },
        },
        **problems(400, 401, 403, 404),
    },
)
TAKE_RESULT = Doc(
    tag="events",
    body=_EVENT_BODY,
    answers={
        202: {"description": "The store has it"},
        **problems(400, 401, 403, 408, 413, 415, 422, 503),
    },
)
