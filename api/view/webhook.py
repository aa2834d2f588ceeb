"""The JSON of webhooks: endpoints, and the delivery log.

Called by `api.routes.webhooks`. Pure.
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described
from api.view.page import Page
from api.webhook.schedule import TryVerdict
from api.webhook.webhook import Endpoint, EventType, WebhookDelivery


@described
class WebhookEndpointView(TypedDict):
    """A receiver."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    name: str
    event_types: list[str]
    created_at: int
    """Times are seconds since 1970"""
    updated_at: int
    signing_secret_hint: str
    switched_off: str | None
    """Why nothing is sent"""
    signing_secret: NotRequired[str]
    """Shown when it is made, and never again"""


class WebhookEndpointList(Page):
    """Receivers, oldest first."""

    data: list[WebhookEndpointView]


@described
class TryView(TypedDict):
    """One try at a delivery."""

    at_ms: int
    status: int | None
    """HTTP status that the receiver answered"""
    error: str | None
    duration_ms: int
    next_ms: int | None
    """When it is tried again"""


class Subject(TypedDict):
    """What it was about."""

    id: str


@described
class WebhookDeliveryView(TypedDict):
    """A delivery and its tries."""

    id: str
    """The `webhook-id` that the receiver saw"""
    object: Literal["webhook_delivery"]
    endpoint: str
    url: str
    type: str
    data: Subject
    state: TryVerdict
    created_ms: int
    tries: list[TryView]


@described
class WebhookDeliveryList(TypedDict):
    """Deliveries, newest first."""

    object: Literal["list"]
    data: list[WebhookDeliveryView]
    next_before: int | None
    """Go on with `?before=` this"""


class WebhookTestView(TypedDict):
    """What the receiver answered."""

    object: Literal["webhook_endpoint.test"]
    event_type: str
    status_code: int
    success: Literal[True]
    webhook_endpoint_id: str


class EventTypeList(TypedDict):
    """Event types."""

    object: Literal["list"]
    data: list[EventType]


def endpoint_view(endpoint: Endpoint) -> WebhookEndpointView:
    """The receiver, without its secret."""
    newest = endpoint.secrets[0].text
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "name": endpoint.name,
        "event_types": list(endpoint.event_types),
        "created_at": endpoint.created_s,
        "updated_at": endpoint.updated_s,
        "signing_secret_hint": f"whsec_...{newest[-4:]}",
        "switched_off": endpoint.switched_off or None,
    }


def with_secret(endpoint: Endpoint) -> WebhookEndpointView:
    """The receiver; its secret is shown once."""
    return endpoint_view(endpoint) | {"signing_secret": endpoint.secrets[0].text}


def delivery_view(delivery: WebhookDelivery) -> WebhookDeliveryView:
    """The delivery; its URL without the query, which may hold a secret."""
    return {
        "id": delivery.id,
        "object": "webhook_delivery",
        "endpoint": delivery.endpoint,
        "url": delivery.url.split("?", 1)[0],
        "type": delivery.type,
        "data": {"id": delivery.subject},
        "state": delivery.state,
        "created_ms": delivery.created_ms,
        "tries": [
            {
                "at_ms": entry.at_ms,
                "status": entry.status or None,
                "error": entry.error or None,
                "duration_ms": entry.duration_ms,
                "next_ms": entry.next_ms or None,
            }
            for entry in delivery.log
        ],
    }
