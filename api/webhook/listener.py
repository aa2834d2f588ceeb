"""Creates webhook deliveries for an ended job: one for each receiver that is subscribed.

Called by `eventing.live.ended` for each ended job, and by the batch runner. Idempotent: the same end gives the same
deliveries. Must not know how they are sent.
"""

from collections.abc import Callable

from api.webhook.store import WebhookStore
from api.webhook.webhook import PER_JOB, Message, delivery_of, message_of
from eventing.job.job import Job


class WebhookListener:
    """An `EndListener`. `wake` is called when a delivery is due at once."""

    def __init__(self, store: WebhookStore, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake

    async def ended(self, job: Job) -> None:
        """Return once every delivery is recorded. Raises `StoreUnavailable`; the call must then be repeated."""
        message = message_of(job)
        if message is not None:
            await self.tell(message)

    async def tell(self, message: Message) -> None:
        """As `ended`, for any other message, such as a batch's."""
        wanted = [
            (endpoint.id, endpoint.url)
            for endpoint in await self._store.endpoints(message.tenant)
            if endpoint.wants(message.type)
        ]
        if message.url:
            wanted.append((PER_JOB, message.url))
        if wanted:
            await self._store.put([delivery_of(message, *receiver) for receiver in wanted])
            self._wake()
