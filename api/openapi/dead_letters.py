"""What the OpenAPI document says of dead letters. Called by `api.routes.dead_letters`."""

from typing import Final

from api.openapi import examples
from api.openapi.doc import Doc
from api.openapi.operation import JOB, LINE, answer, body, parameter, problems

_ID: Final = parameter("id", {"type": "string"}, "Id of the job", where="path", required=True)
_LETTER: Final = {
    **JOB,
    "properties": {**JOB["properties"], "object": {"const": "dead_letter"}},
}
_EDITED: Final = {
    "url": "/v1/chat/completions",
    "body": {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Hello again"}],
    },
}

_REDRIVEN = {
    "redriven": [examples.ACCEPTED["id"]],
    "skipped": [],
    "has_more": False,
    "next_cursor": None,
}

LIST: Final = Doc(
    tag="dead letters",
    parameters=(
        parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Jobs a page"),
        parameter("cursor", {"type": "string"}, "`next_cursor` of the page before"),
    ),
    answers={
        200: answer("A page of dead letters", None, examples.paged(examples.DEAD_LETTER)),
        **problems(400, 401, 403, 503),
    },
)
GET: Final = Doc(
    tag="dead letters",
    parameters=(_ID,),
    answers={
        200: answer("The dead letter", _LETTER, examples.DEAD_LETTER),
        **problems(401, 403, 404, 503),
    },
)
REDRIVE: Final = Doc(
    tag="dead letters",
    parameters=(_ID,),
    body={**body(LINE, edited=_EDITED), "required": False},
    answers={
        202: answer("The job, queued again", JOB, examples.ACCEPTED),
        **problems(400, 401, 403, 404, 408, 409, 413, 422, 429, 503),
    },
)
REDRIVE_ALL: Final = Doc(
    tag="dead letters",
    parameters=(parameter("cursor", {"type": "string"}, "`next_cursor` of the call before"),),
    answers={
        202: answer("Jobs that were queued again, and those that were not", None, _REDRIVEN),
        **problems(400, 401, 403, 408, 409, 413, 422, 429, 503),
    },
)
DISCARD: Final = Doc(
    tag="dead letters",
    parameters=(_ID,),
    answers={
        200: answer("It is gone", None, examples.deleted(examples.ACCEPTED)),
        **problems(401, 403, 404, 409, 503),
    },
)
