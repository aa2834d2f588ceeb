"""Creates webhook deliveries for an ended job: one for each receiver that is subscribed.

Called by `eventing.live.ended` for each ended job, and by the batch runner. Idempotent: the same end gives the same
deliveries. Must not know how they are sent.
"""

import asyncio
from collections.abc import Callable

from api.webhook.store import WebhookStore
from api.webhook.webhook import PER_JOB, Endpoint, Message, delivery_of, message_of
from eventing.job.job import Job


class WebhookListener:
    """An `EndListener`. `wake` is called when a delivery is due at once."""

    def __init__(self, store: WebhookStore, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake
        self._reads: dict[str, asyncio.Future[list[Endpoint]]] = {}

    async def ended(self, job: Job) -> None:
        """Return once every delivery is recorded. Raises `StoreUnavailable`; the call must then be repeated."""
        message = message_of(job)
        if message is not None:
            await self.notify(message)

    async def notify(self, message: Message) -> None:
        """As `ended`, for any other message, such as a batch's."""
        wanted = [
            (endpoint.id, endpoint.url)
            for endpoint in await self._endpoints(message.tenant)
            if endpoint.wants(message.type)
        ]
        if message.url:
            wanted.append((PER_JOB, message.url))
        if wanted:
            await self._store.put([delivery_of(message, *receiver) for receiver in wanted])
            self._wake()

    async def _endpoints(self, tenant: str) -> list[Endpoint]:
        """The tenant's endpoints: one read for all callers of the same turn of the event loop."""
        if tenant not in self._reads:
            self._reads[tenant] = asyncio.ensure_future(self._read(tenant))
        return await asyncio.shield(self._reads[tenant])

    async def _read(self, tenant: str) -> list[Endpoint]:
        await asyncio.sleep(0)
        del self._reads[tenant]  # a later caller may need what is written from now on
        return await self._store.endpoints(tenant)
