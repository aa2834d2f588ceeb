"""The routes that every process has: liveness, readiness, metrics.

Called by the api, the broker, the pump and the local stack. Must not know what they do.
"""

import asyncio
from typing import Final, Protocol

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from eventing.errors import Unavailable

_RETRY_AFTER: Final = {"retry-after": "1"}


class SupportsPing(Protocol):
    """A store whose availability can be checked."""

    async def ping(self) -> None:
        """Raises `Unavailable` when the store does not accept writes."""


async def alive(_: Request) -> Response:
    """200: the event loop runs."""
    return PlainTextResponse("ok")


async def readiness(store: SupportsPing, *, timeout_s: float) -> Response:
    """200 while the store accepts writes, else 503, within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await store.ping()
    except (Unavailable, TimeoutError):
        return PlainTextResponse("store unavailable", status_code=503, headers=_RETRY_AFTER)
    return PlainTextResponse("ready")


class ReadyOnceStarted:
    """Readiness of a process that itself answers 503 with Retry-After while the store is unavailable.

    Ready once the store has answered, and from then on. Leaving the Service while the store is away would turn that
    503 into a refused connection, for all replicas at once (docs/adr/0166).
    """

    def __init__(self, store: SupportsPing, *, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._has_started = False

    async def answer(self) -> Response:
        if self._has_started:
            return PlainTextResponse("ready")
        first = await readiness(self._store, timeout_s=self._timeout_s)
        self._has_started = first.status_code == 200
        return first


def metrics_page(request: Request) -> Response:
    """The process's metrics in the format that the scraper asks for: Prometheus text, or OpenMetrics."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"content-type": media_type})
