"""The OpenAPI document: FastAPI's, with the shared parts that the calls refer to.

Called by `api.app`, once, on first request. Must not know any call.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from api.http.described import DESCRIBED, field_texts
from api.http.problem import MEDIA_TYPE, OpenAIErrorView, ProblemView, openai_error, problem
from api.openapi.examples import EXAMPLES
from api.openapi.operation import COMPONENTS, SECURITY, component_name, ref
from eventing.errors import BadRequest, TorporError

_ABOUT: Final = """Asynchronous inference on models that scale to zero.

Errors are problem details (RFC 9457), and OpenAI's error object on the paths that OpenAI has too.
429 and 503 say in `Retry-After` when to come again; nothing was accepted then.

OpenAPI has no form for WebSockets; there are two.

**WebSocket** `/v1/jobs/{id}/ws`: the events of `/v1/jobs/{id}/events` as messages, each one JSON object
`{"event": "tokens", "id": "1764000000100-0", "data": {...}}`. `?after=` takes the `id` of the last one
seen. The key comes as for any call; a refusal answers the handshake with the status and body of that
error. The close code is 1000 after the last event, 1013 to come again with `after`, 4401 when the key
was revoked, 4404 when the job was deleted. What a client sends is not looked at.

**WebSocket** `/v1/responses`: messages `{"type": "response.create", ...}` with the fields of a
ResponseRequest in, the events of a streamed response out, one response at a time. An error is an event of
the type `error`. The close code is 1000 when the client has closed, 1008 after too many calls sent ahead,
1012 when the process ends, 4401 when the key was revoked.
"""
_TAGS: Final = {
    "jobs": "Each is one line of an OpenAI Batch file: submit, retrieve, follow, cancel.",
    "openai": "OpenAI's calls: point its client here. Their answers wait for a sleeping model.",
    "batches": "Many requests in one file, as at OpenAI.",
    "files": "What carries batches in and their results out, as at OpenAI.",
    "vector stores": "Files cut into passages and searched by meaning and words, as at OpenAI.",
    "webhooks": "Notifications of ended jobs and batches, as at OpenAI, and their log.",
    "dead letters": "Jobs that failed for good, kept to be looked at and redriven.",
    "cache": "Answers that are served again.",
    "tools": "Calls that models make: what may be called, and what a person decides about.",
    "events": "CloudEvents in and out.",
    "overview": "Queues and replicas.",
    "usage": "What it cost, of all tenants.",
    "tenant": "Who calls: its limits, how much of them is used, and what it used over time.",
    "organization": "What a tenant used and what it cost, by day, as at OpenAI.",
    "audits": "What critics made of a tenant's answers.",
    "keys": "The API keys of a tenant, where keys are kept in Redis.",
}
_REFUSALS: Final = {
    400: ("bad_request", "The request cannot be read"),
    401: ("unauthorized", "No credential that we know"),
    403: ("forbidden", "The credential lacks the scope"),
    404: ("not_found", "No such thing, or not yours"),
    408: ("body_too_slow", "The body came too slowly"),
    409: ("wrong_state", "Not in this state, or the key was used with another body"),
    410: ("result_gone", "What the job gave is not stored any more"),
    413: ("body_too_large", "The body is over the limit"),
    415: ("unsupported_media_type", "Not the content type that this call takes"),
    416: ("range_not_satisfiable", "The range begins after the end"),
    422: ("invalid_job", "The request can never run as it is; `field` names why"),
    429: ("rate_limit_exceeded", "Over a limit of the tenant; see Retry-After"),
    500: ("no_answer", "The model gave no answer"),
    503: ("store_unavailable", "Not now: nothing was accepted; see Retry-After"),
    504: (
        "still_running",
        "The answer took longer than a call may be held; the job goes on. Or only a kept answer was wanted, and "
        "there is none (`not_cached`)",
    ),
}
_FORMS: Final = {
    "Problem": (MEDIA_TYPE, ref("Problem", ProblemView), problem),
    "OpenAI": ("application/json", ref("OpenAIError", OpenAIErrorView), openai_error),
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, made at the first call."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=_ABOUT,
            routes=app.routes,
            tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        )
        made["components"] = {
            "schemas": _schemas(),
            "responses": _responses(),
            "securitySchemes": {SECURITY: {"type": "http", "scheme": "bearer"}},
        }
        app.openapi_schema = made
    return app.openapi_schema


class _Plain(GenerateJsonSchema):
    """Schemas without titles that only repeat names, under names that a person knows."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("View")


def _schemas() -> dict[str, Any]:
    kinds = tuple(kind for kind in COMPONENTS.values() if isinstance(kind, type))
    made = TypeAdapter(tuple[kinds]).json_schema(  # type: ignore[valid-type]  # a tuple of them all
        mode="serialization",
        ref_template="#/components/schemas/{model}",
        schema_generator=_Plain,
    )
    schemas: dict[str, Any] = made["$defs"]
    schemas |= {n: dict(kind) for n, kind in COMPONENTS.items() if isinstance(kind, Mapping)}
    for kind in DESCRIBED:
        fields = schemas.get(component_name(kind), {}).get("properties", {})
        for name, text in field_texts(kind).items():
            if name in fields:
                fields[name]["description"] = text
    for name, schema in schemas.items():
        schema.pop("title", None)
        if name in EXAMPLES:
            schema["examples"] = [EXAMPLES[name]]
    return dict(sorted(schemas.items()))


def _responses() -> dict[str, Any]:
    """Every refusal in both forms."""
    wait = {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}
    return {
        f"{form}{status}": {
            "description": text,
            "content": {media_type: {"schema": schema, "example": body(_refusal(status))}},
            **({"headers": {"Retry-After": wait}} if status in (429, 503) else {}),
        }
        for form, (media_type, schema, body) in _FORMS.items()
        for status, (_, text) in _REFUSALS.items()
    }


def _refusal(status: int) -> TorporError:
    code, text = _REFUSALS[status]
    error = BadRequest(text, "body") if status in (400, 408, 413, 415, 422) else TorporError(text)
    error.status, error.code = status, code  # type: ignore[misc]  # of this one
    return error
