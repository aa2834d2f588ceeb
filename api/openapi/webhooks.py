"""What the OpenAPI document says of webhooks. Called by `api.routes.webhooks`."""

from typing import Final

from api.openapi import examples
from api.openapi.doc import Doc
from api.openapi.operation import Schema, answer, body, parameter, problems
from api.webhook.webhook import EventType

_ID: Final = parameter("id", {"type": "string"}, "Id", where="path", required=True)
_TYPES: Final[Schema] = {"type": "array", "minItems": 1, "items": {"enum": list(EventType)}}
_URL: Final[Schema] = {"type": "string", "description": "https, to a public host"}
_NAME: Final[Schema] = {"type": "string", "maxLength": 256}
ENDPOINT: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "url", "event_types", "created_at"],
    "properties": {
        "id": {"type": "string", "example": "we_0123456789abcdef01234567"},
        "object": {"const": "webhook_endpoint"},
        "url": {"type": "string"},
        "name": {"type": "string"},
        "event_types": {"type": "array", "items": {"type": "string"}},
        "created_at": {"type": "integer"},
        "updated_at": {"type": "integer"},
        "signing_secret_hint": {"type": "string"},
        "signing_secret": {"type": "string", "description": "shown once"},
        "switched_off": {"type": ["string", "null"], "description": "why nothing is sent"},
    },
}
DELIVERY: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "state", "tries"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "webhook_delivery"},
        "state": {"enum": ["pending", "delivered", "failed", "gone", "refused", "dropped"]},
        "tries": {"type": "array", "items": {"type": "object"}},
    },
}
_EXAMPLE: Final = {
    "name": "orders",
    "url": "https://hooks.example.com/torpor",
    "event_types": ["response.completed", "response.failed"],
}
_SHOWN: Final = {
    **_EXAMPLE,
    "id": "we_0123456789abcdef01234567",
    "object": "webhook_endpoint",
    "created_at": 1_764_000_000,
    "updated_at": 1_764_000_000,
    "signing_secret_hint": "whsec_...9Zk=",
    "switched_off": None,
}
_SHOWN_ONCE: Final = _SHOWN | {"signing_secret": "whsec_..."}
_GONE: Final = {
    "id": _SHOWN["id"],
    "object": "webhook_endpoint.deleted",
    "deleted": True,
}
_TRIED: Final = {
    "object": "webhook_endpoint.test",
    "event_type": "response.completed",
    "status_code": 204,
    "success": True,
    "webhook_endpoint_id": _SHOWN["id"],
}
_DELIVERED: Final = {
    "id": "whd_0123456789abcdef01234567",
    "object": "webhook_delivery",
    "endpoint": _SHOWN["id"],
    "url": _EXAMPLE["url"],
    "type": "response.completed",
    "data": {"id": "resp_0123456789abcdef01234567"},
    "state": "delivered",
    "created_ms": 1_764_000_000_000,
    "tries": [
        {
            "at_ms": 1_764_000_000_100,
            "status": 204,
            "error": None,
            "duration_ms": 35,
            "next_ms": None,
        }
    ],
}
_WRITES: Final = (400, 401, 403, 404, 408, 409, 413, 415, 422, 503)

CREATE_ENDPOINT: Final = Doc(
    tag="webhooks",
    body=body(
        {
            "type": "object",
            "required": ["url"],
            "properties": {"url": _URL, "name": _NAME, "event_types": _TYPES},
        },
        orders=_EXAMPLE,
    ),
    answers={
        200: answer("The endpoint, with its secret", ENDPOINT, _SHOWN_ONCE),
        **problems(*_WRITES),
    },
)
UPDATE_ENDPOINT: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    body=body(
        {"type": "object", "properties": {"url": _URL, "name": _NAME, "event_types": _TYPES}},
        fewer={"event_types": ["response.failed"]},
    ),
    answers={200: answer("The endpoint", ENDPOINT, _SHOWN), **problems(*_WRITES)},
)
_PAGE: Final = (
    parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Entries a page"),
)
LIST_ENDPOINTS: Final = Doc(
    tag="webhooks",
    parameters=(*_PAGE, parameter("after", {"type": "string"}, "Last id of the page before")),
    answers={
        200: answer("Endpoints", None, examples.listed(_SHOWN)),
        **problems(400, 401, 403, 404, 503),
    },
)
GET_ENDPOINT: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    answers={200: answer("The endpoint", ENDPOINT, _SHOWN), **problems(401, 403, 404, 503)},
)
DELETE_ENDPOINT: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    answers={200: answer("It is gone", None, _GONE), **problems(401, 403, 404, 503)},
)
ROTATE_SECRET: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    body={
        **body(
            {
                "type": "object",
                "properties": {"keep_old_secret_active_for_24_hours": {"type": "boolean"}},
            },
            overlap={"keep_old_secret_active_for_24_hours": True},
        ),
        "required": False,
    },
    answers={
        200: answer("The endpoint, with its new secret", ENDPOINT, _SHOWN_ONCE),
        **problems(*_WRITES),
    },
)
TEST_ENDPOINT: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    body=body(
        {
            "type": "object",
            "required": ["event_type"],
            "properties": {"event_type": {"enum": list(EventType)}},
        },
        sample={"event_type": "response.completed"},
    ),
    answers={200: answer("What the receiver answered", None, _TRIED), **problems(*_WRITES)},
)
EVENT_TYPES: Final = Doc(
    tag="webhooks",
    answers={
        200: answer("Event types", None, {"object": "list", "data": list(EventType)}),
        **problems(401, 403, 503),
    },
)
LIST_DELIVERIES: Final = Doc(
    tag="webhooks",
    parameters=(
        *_PAGE,
        parameter("before", {"type": "integer", "minimum": 1}, "`next_before` of the page before"),
    ),
    answers={
        200: answer("Deliveries, newest first", None, examples.listed(_DELIVERED)),
        **problems(400, 401, 403, 404, 503),
    },
)
GET_DELIVERY: Final = Doc(
    tag="webhooks",
    parameters=(_ID,),
    answers={200: answer("The delivery", DELIVERY, _DELIVERED), **problems(401, 403, 404, 503)},
)
