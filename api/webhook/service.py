"""The dependencies of the webhook handlers. Called by `api.wiring`."""

from dataclasses import dataclass

from api.webhook.listener import WebhookListener
from api.webhook.sender import WebhookSender
from api.webhook.store import WebhookStore
from api.webhook.webhook import Message


@dataclass(frozen=True, slots=True)
class WebhookService:
    """The store of webhooks, and a sender for testing an endpoint."""

    store: WebhookStore
    sender: WebhookSender

    async def notify(self, message: Message) -> None:
        """Record a delivery for each subscribed receiver. Raises `StoreUnavailable`."""
        await WebhookListener(self.store, self.sender.wake).notify(message)

    async def notify_batch(self, tenant: str, batch_id: str, status: str, now_s: int) -> None:
        """Notify of an ended batch; repeated calls give the same message."""
        message = Message(
            tenant=tenant,
            type=f"batch.{status}",
            subject=batch_id,
            key=f"{batch_id}:{status}",
            created_s=now_s,
        )
        await self.notify(message)
