"""What the handlers of webhooks need, put together once. Called by `api.assembly`."""

from dataclasses import dataclass

from redis.asyncio import Redis

from api.settings import ApiSettings
from api.webhook_address import allow_list
from api.webhook_sender import SenderSettings, WebhookSender
from api.webhook_store import WebhookStore


@dataclass(frozen=True, slots=True)
class WebhookDesk:
    """Where webhooks are kept, and a sender for tests of an endpoint."""

    store: WebhookStore
    sender: WebhookSender


def build_webhooks(settings: ApiSettings, redis: Redis) -> WebhookDesk:
    """The desk on a Redis client that it does not own."""
    store = WebhookStore(redis)
    how = SenderSettings(
        timeout_s=settings.webhook_timeout_s,
        schedule_s=settings.webhook_schedule_s,
        allowed=allow_list(settings.webhook_allow),
    )
    return WebhookDesk(store, WebhookSender(store, how))
