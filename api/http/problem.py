"""Errors as HTTP responses: RFC 9457 problem details, and OpenAI's error body on OpenAI's paths.

Called by the application's exception handlers and by streams that fail half-way. Knows routes by prefix only.
"""

import math
from http import HTTPStatus
from typing import Final, NotRequired

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict

from api.http.described import described
from eventing.errors import BadRequest, TorporError, Unavailable, WrongState

MEDIA_TYPE: Final = "application/problem+json"

_OURS: Final = (
    "/v1/approvals",
    "/v1/cache",
    "/v1/jobs",
    "/v1/audits",
    "/v1/keys",
    "/v1/tenant",
    "/v1/tools",
    "/v1/dead-letters",
    "/v1/events",
    "/v1/overview",
    "/v1/usage",
    "/v1/webhook",
)
"""Our own paths below `/v1/`; every other path there gets OpenAI's error body, whether it is served or not."""


@described
class ProblemView(TypedDict):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    """What is wrong, and what to do"""
    code: str
    """Stable; `type` is made of it"""
    field: NotRequired[str]
    """What to change, as a path into the request"""


@described
class ErrorView(TypedDict):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    """The field of the body to change"""
    code: str | None


@described
class OpenAIErrorView(TypedDict):
    """An error in OpenAI's form."""

    error: ErrorView


def is_openai_path(path: str) -> bool:
    """Whether its callers expect OpenAI's error body."""
    return path == "/invocations" or (path.startswith("/v1/") and not path.startswith(_OURS))


def error_response(path: str, error: TorporError) -> Response:
    """The response for `error`, in the form that callers of `path` expect."""
    is_openai = is_openai_path(path)
    body = openai_error(error) if is_openai else problem(error)
    status = openai_status(error) if is_openai else error.status
    media_type = "application/json" if is_openai else MEDIA_TYPE
    headers = dict(error.headers)
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status in (408, 413, 500) or error.code == "no_body_room":
        # The rest of the body is still arriving; after a bug the server closes the connection.
        headers["connection"] = "close"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status_code=status, media_type=media_type, headers=headers)


def problem(error: TorporError) -> ProblemView:
    """Problem details. `field` names what to change; it is left out when the request is not at fault."""
    details: ProblemView = {
        "type": f"urn:torpor:problem:{error.code}",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, BadRequest):
        details["field"] = error.field
    return details


def _title(status: int) -> str:
    """The reason phrase of RFC 9110; Python has older ones for two statuses."""
    newer = {413: "Content Too Large", 422: "Unprocessable Content"}
    known = {each.value: each.phrase for each in HTTPStatus}
    return newer.get(status) or known.get(status, "Client Closed Request")


def openai_error(error: TorporError) -> OpenAIErrorView:
    """OpenAI's error body; `param` is the field of the call's body."""
    field = error.field.removeprefix("body.") if isinstance(error, BadRequest) else ""
    return {
        "error": {
            "message": error.message.removeprefix("body."),
            "type": _openai_type(error.status),
            "param": field or None,
            "code": error.code,
        }
    }


def openai_status(error: TorporError) -> int:
    """OpenAI answers 400 for an invalid request, and 404 for an unknown model."""
    if error.code == "model_not_found":
        return 404
    return 400 if error.status == 422 or isinstance(error, WrongState) else error.status


def _openai_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"
