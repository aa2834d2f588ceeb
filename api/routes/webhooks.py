"""`/v1/webhook_endpoints`, as OpenAI's client expects it, and the delivery log.

Called by `api.wiring`. Must not know how deliveries are sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.responses import Response

from api.auth.principal import Scope
from api.http.body import parse_object
from api.http.parameter import AFTER, LIMIT, Whole
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.page import Deleted, page_of
from api.view.webhook import (
    EventTypeList,
    WebhookDeliveryList,
    WebhookDeliveryView,
    WebhookEndpointList,
    WebhookEndpointView,
    WebhookTestView,
    delivery_view,
    endpoint_view,
    with_secret,
)
from api.webhook.service import WebhookService
from api.webhook.webhook import (
    OVERLAP_S,
    PER_JOB,
    Endpoint,
    EventType,
    Message,
    Secret,
    delivery_of,
    new_endpoint_id,
    new_secret,
)
from eventing.errors import InvalidJob, NotFound, Unavailable, WrongState
from eventing.job.call.rule import FLAG, check
from eventing.process.egress import AllowList, check_url


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDeps:
    """The dependencies of `/v1/webhook_endpoints` and `/v1/webhook_deliveries`."""

    webhooks: WebhookService
    allowed: AllowList


routes: Routes[WebhookDeps] = Routes("webhooks")

_MOST_ENDPOINTS: Final = 50
_LONGEST_NAME: Final = 256
_KEEP: Final = "keep_old_secret_active_for_24_hours"
_BEFORE: Final = Whole(
    "before", "`next_before` of the page before", least=1, most=10**15, default=0
)
_OFF: Final = (404,)
"""What every call answers where webhooks are switched off."""
_SETTINGS: Final = {
    "url": {"type": "string", "description": "https, to a public host"},
    "name": {"type": "string", "maxLength": _LONGEST_NAME},
    "event_types": {
        "type": "array",
        "minItems": 1,
        "items": {"enum": list(EventType)},
        "description": "all of them when it is left out",
    },
}
_CREATE: Final = Body(
    "WebhookEndpointRequest", {"type": "object", "required": ["url"], "properties": _SETTINGS}
)
_UPDATE: Final = Body("WebhookEndpointUpdate", {"type": "object", "properties": _SETTINGS})
_ROTATE: Final = Body(
    "RotateSecretRequest",
    {"type": "object", "properties": {_KEEP: FLAG.schema}},
    is_required=False,
)
_TEST: Final = Body(
    "WebhookTestRequest",
    {
        "type": "object",
        "required": ["event_type"],
        "properties": {"event_type": {"enum": list(EventType)}},
    },
)


@routes.operation(
    "POST",
    "/v1/webhook_endpoints",
    Scope.ADMIN,
    body=_CREATE,
    answers=WebhookEndpointView,
    refuses=_OFF,
    replays=True,
)
async def create_webhook_endpoint(call: Call[WebhookDeps]) -> Response:
    """Create an endpoint.

    The signing secret is in this answer only.
    """
    store, body = call.deps.webhooks.store, await call.read_object()
    if len(await store.endpoints(call.principal.tenant)) >= _MOST_ENDPOINTS:
        raise WrongState(f"a tenant has at most {_MOST_ENDPOINTS} endpoints")
    now_s = await store.now_ms() // 1000
    endpoint = Endpoint(
        id=new_endpoint_id(),
        tenant=call.principal.tenant,
        url=_url(call, body.get("url")),
        name=_name(body.get("name", "")),
        event_types=_event_types(body.get("event_types")),
        secrets=(Secret(text=new_secret()),),
        created_s=now_s,
        updated_s=now_s,
    )
    await store.add(endpoint)
    return json_response(with_secret(endpoint))


@routes.operation(
    "GET",
    "/v1/webhook_endpoints",
    Scope.JOBS_READ,
    parameters=(LIMIT, AFTER),
    answers=WebhookEndpointList,
    refuses=_OFF,
)
async def list_webhook_endpoints(call: Call[WebhookDeps]) -> Response:
    """List the tenant's endpoints, oldest first."""
    query = call.request.query_params
    endpoints = await call.deps.webhooks.store.endpoints(call.principal.tenant)
    views = [endpoint_view(endpoint) for endpoint in endpoints]
    return json_response(page_of(views, query, LIMIT.of(query), "an endpoint"))


@routes.operation("GET", "/v1/webhook_endpoints/{id}", Scope.JOBS_READ, answers=WebhookEndpointView)
async def retrieve_webhook_endpoint(call: Call[WebhookDeps]) -> Response:
    """Retrieve an endpoint. `we_jobs` signs the webhooks of jobs that have a `webhook` of their own."""
    return json_response(endpoint_view(await _endpoint(call)))


@routes.operation(
    "POST",
    "/v1/webhook_endpoints/{id}",
    Scope.ADMIN,
    body=_UPDATE,
    answers=WebhookEndpointView,
    refuses=(409,),
    replays=True,
)
async def update_webhook_endpoint(call: Call[WebhookDeps]) -> Response:
    """Update an endpoint; any change also re-enables it after a 410."""
    body, current = await call.read_object(), await _endpoint(call)
    if current.id == PER_JOB:
        raise WrongState("this endpoint has nothing to change but its secret")
    now_s = await call.deps.webhooks.store.now_ms() // 1000
    fields: dict[str, Any] = {"updated_s": now_s, "switched_off": ""}
    if "url" in body:
        fields["url"] = _url(call, body["url"])
    if "name" in body:
        fields["name"] = _name(body["name"])
    if "event_types" in body:
        fields["event_types"] = _event_types(body["event_types"])
    changed = await call.deps.webhooks.store.change(
        call.principal.tenant, current.id, lambda endpoint: replace(endpoint, **fields)
    )
    return json_response(endpoint_view(changed))


@routes.operation("DELETE", "/v1/webhook_endpoints/{id}", Scope.ADMIN, answers=Deleted)
async def delete_webhook_endpoint(call: Call[WebhookDeps]) -> Response:
    """Delete an endpoint; its pending deliveries are dropped."""
    endpoint_id = call.request.path_params["id"]
    if endpoint_id == PER_JOB or not await call.deps.webhooks.store.remove(
        call.principal.tenant, endpoint_id
    ):
        raise NotFound("no such webhook endpoint")
    return json_response({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@routes.operation(
    "POST",
    "/v1/webhook_endpoints/{id}/rotate_secret",
    Scope.ADMIN,
    body=_ROTATE,
    answers=WebhookEndpointView,
    replays=True,
)
async def rotate_webhook_secret(call: Call[WebhookDeps]) -> Response:
    """Rotate the signing secret.

    With `keep_old_secret_active_for_24_hours` every delivery has two signatures for a day, so that the receiver can
    switch at any time.
    """
    body = await _optional_body(call)
    keep = body.get(_KEEP, False)
    check("", keep, FLAG, _KEEP)
    store, endpoint = call.deps.webhooks.store, await _endpoint(call)
    now_s = await store.now_ms() // 1000
    secret = new_secret()
    rotated = await store.change(
        call.principal.tenant,
        endpoint.id,
        lambda current: current.rotated(secret, now_s, OVERLAP_S if keep else 0),
    )
    return json_response(with_secret(rotated))


@routes.operation(
    "POST",
    "/v1/webhook_endpoints/{id}/test",
    Scope.ADMIN,
    body=_TEST,
    answers=WebhookTestView,
    replays=True,
)
async def test_webhook_endpoint(call: Call[WebhookDeps]) -> Response:
    """Send one sample event now, and return the receiver's answer."""
    body, endpoint = await call.read_object(), await _endpoint(call)
    (event_type,) = _event_types([body.get("event_type")], "event_type")
    if endpoint.id == PER_JOB:
        raise WrongState("this endpoint has no URL of its own")
    now_ms = await call.deps.webhooks.store.now_ms()
    message = Message(
        tenant=endpoint.tenant,
        type=event_type,
        subject="resp_test",
        key=f"test:{now_ms}",
        created_s=now_ms // 1000,
    )
    delivery = delivery_of(message, endpoint.id, endpoint.url)
    outcome = await call.deps.webhooks.sender.try_once(endpoint, delivery)
    if not outcome.status:
        raise Unavailable(f"the receiver did not answer: {outcome.error}", 5.0)
    return json_response(
        {
            "object": "webhook_endpoint.test",
            "event_type": event_type,
            "status_code": outcome.status,
            "success": True,
            "webhook_endpoint_id": endpoint.id,
        }
    )


@routes.operation(
    "GET", "/v1/webhook_event_types", Scope.JOBS_READ, answers=EventTypeList, refuses=_OFF
)
async def list_webhook_event_types(call: Call[WebhookDeps]) -> Response:
    """List the event types."""
    return json_response({"object": "list", "data": list(EventType)})


@routes.operation(
    "GET",
    "/v1/webhook_deliveries",
    Scope.JOBS_READ,
    parameters=(LIMIT, _BEFORE),
    answers=WebhookDeliveryList,
    refuses=_OFF,
)
async def list_webhook_deliveries(call: Call[WebhookDeps]) -> Response:
    """List deliveries, newest first: every try with its answer, and the time of the next."""
    query = call.request.query_params
    limit, store = LIMIT.of(query), call.deps.webhooks.store
    found = await store.log(call.principal.tenant, limit, _BEFORE.of(query))
    next_before = found[-1].created_ms if len(found) >= limit else None
    return json_response(
        {
            "object": "list",
            "data": [delivery_view(delivery) for delivery in found],
            "next_before": next_before,
        }
    )


@routes.operation(
    "GET", "/v1/webhook_deliveries/{id}", Scope.JOBS_READ, answers=WebhookDeliveryView
)
async def retrieve_webhook_delivery(call: Call[WebhookDeps]) -> Response:
    """Retrieve a delivery. Its id is the `webhook-id` header."""
    delivery = await call.deps.webhooks.store.delivery(
        call.principal.tenant, call.request.path_params["id"]
    )
    if delivery is None:
        raise NotFound("no such delivery")
    return json_response(delivery_view(delivery))


async def _optional_body(call: Call[WebhookDeps]) -> Mapping[str, Any]:
    """The body, if there is one: OpenAI's client sends none for a plain rotation."""
    raw = await call.read()
    return parse_object(raw) if raw else {}


async def _endpoint(call: Call[WebhookDeps]) -> Endpoint:
    endpoint_id, tenant = call.request.path_params["id"], call.principal.tenant
    store = call.deps.webhooks.store
    if endpoint_id == PER_JOB:
        return await store.per_job(tenant)
    endpoint = await store.endpoint(tenant, endpoint_id)
    if endpoint is None:
        raise NotFound("no such webhook endpoint")
    return endpoint


def _url(call: Call[WebhookDeps], value: Any) -> str:
    check_url(value, call.deps.allowed, "url")
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise InvalidJob(f"name must be text of at most {_LONGEST_NAME} characters", "name")
    return value


def _event_types(value: Any, where: str = "event_types") -> tuple[str, ...]:
    if value is None:
        return tuple(EventType)
    if not isinstance(value, list) or not value or any(v not in list(EventType) for v in value):
        raise InvalidJob(f"{where} must be of: {', '.join(EventType)}", where)
    return tuple(dict.fromkeys(value))
