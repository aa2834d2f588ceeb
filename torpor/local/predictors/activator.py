"""Holds requests while no predictor can take them, and sends each to the least busy one.

Called by the broker's pump over HTTP, as Knative's activator is. It never sends to a draining replica, never more
than the container concurrency to one, and holds a bounded number; it reports held and running requests as
concurrency. Nothing here is durable: the pump keeps the event until an answer comes. After knative/serving
`pkg/activator`.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

import aiohttp
import structlog
from starlette.requests import Request
from starlette.responses import Response

from eventing.errors import Overloaded
from eventing.telemetry import trace
from torpor.local.predictors.replica import LocalReplica, ReplicaState, least_busy

_log = structlog.get_logger()
QUEUE_LIMIT: Final = 10_000
"""Knative's activator queue depth."""
_EVENTS: Final = "/events"
"""Where a predictor takes deliveries."""
_TRIES: Final = 3
"""Replicas that a request is offered to when one turns out to be gone or full."""
_DEATH_KNOWN_S: Final = 2.0
"""A process whose connections broke is seen to end within this time, or it has not ended."""
OnLost = Callable[[str, Mapping[str, str], bytes], Awaitable[None]]
"""Called for a replica that died with a request: its id, and the request."""
_PASSED_ON: Final = frozenset(
    {"authorization", "content-type", "prefer", "retry-after", "traceparent", "tracestate"}
)


class Activator:
    """The requests held and in flight."""

    def __init__(
        self,
        replicas: Mapping[str, LocalReplica],
        *,
        concurrency: int,
        timeout_s: float,
        on_waiting: Callable[[], None],
        on_lost: OnLost | None = None,
    ) -> None:
        self._replicas = replicas
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=2)
        self._on_waiting = on_waiting
        self._on_lost = on_lost
        self._room = asyncio.Condition()
        self._session: aiohttp.ClientSession | None = None
        self._is_closing = False
        self._held: dict[object, tuple[float, float]] = {}
        self.in_flight = 0
        self.busy_at = -math.inf

    @property
    def waiting(self) -> int:
        """Held requests."""
        return len(self._held)

    def left_s(self, allowed_s: float) -> float:
        """How long until a held request has waited for `allowed_s` or its event expires; infinite without one."""
        now = asyncio.get_running_loop().time()
        limits = (min(since + allowed_s, void_at) for since, void_at in self._held.values())
        return min(limits, default=math.inf) - now

    @property
    def concurrency(self) -> int:
        """The autoscaler's metric: held requests and requests in replicas."""
        return self.waiting + self.in_flight

    async def handle(self, request: Request) -> Response:
        """Forward one delivery. 503 with Retry-After when the hold is full or the wait is over."""
        body = await request.body()
        for _ in range(_TRIES):
            try:
                replica = self._take() if not self._held else None
                replica = replica or await self._unless_left(request)
            except (Overloaded, TimeoutError):
                return Response(status_code=503, headers={"retry-after": "1"})
            if replica is None:
                return Response(status_code=499)
            try:
                answer = await self._forward(replica, request, body)
            finally:
                await self._release(replica)
            if answer is not None:
                return answer
        return Response(status_code=503, headers={"retry-after": "1"})

    async def changed(self) -> None:
        """Notify waiting requests that a replica became ready or free."""
        async with self._room:
            self._room.notify_all()

    async def turn_away(self) -> None:
        """Hold nothing any more: waiting requests are answered 503 and delivered again to the next stack."""
        self._is_closing = True
        await self.changed()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _unless_left(self, request: Request) -> LocalReplica | None:
        """A replica for the request; None when its caller disconnects before there is one, so that none is started
        for it. Once a replica has the request, a disconnect changes nothing.
        """
        held = asyncio.ensure_future(asyncio.wait_for(self._woken(request), self._timeout.total))
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((held, left), return_when=asyncio.FIRST_COMPLETED)
            if held.done():
                return held.result()
            return None
        finally:
            left.cancel()
            if not held.done():
                held.cancel()
                await asyncio.wait((held,))
                if not held.cancelled() and held.exception() is None:
                    await self._release(held.result())  # it came in the same moment

    async def _woken(self, request: Request) -> LocalReplica:
        """As `_reserve`; the wait for a starting replica is a span in the job's trace."""
        void_at = _void_at(request.headers.get("ce-expirytime", ""))
        if any(replica.state is ReplicaState.READY for replica in self._replicas.values()):
            return await self._reserve(void_at)
        with trace.span("wake", parent=request.headers.get("traceparent", "")) as span:
            replica = await self._reserve(void_at)
            span.set(replica=replica.id)
            return replica

    def _take(self) -> LocalReplica | None:
        """A replica with a free slot, which is taken; None where there is none."""
        replica = least_busy(self._replicas.values(), concurrency=self._concurrency)
        if replica is not None:
            replica.in_flight += 1
            self.in_flight += 1
        return replica

    async def _reserve(self, void_at: float) -> LocalReplica:
        """A replica with a free slot, which is taken. Waits for one; wakes the autoscaler when there is none."""
        async with self._room:
            if self.waiting >= QUEUE_LIMIT:
                raise Overloaded("the activator holds all it may")
            place = object()
            self._held[place] = asyncio.get_running_loop().time(), void_at
            try:
                while (replica := self._take()) is None:
                    if self._is_closing:
                        raise Overloaded("the stack is ending")
                    self._on_waiting()
                    await self._room.wait()
            finally:
                del self._held[place]
            return replica

    async def _release(self, replica: LocalReplica) -> None:
        replica.in_flight -= 1
        self.in_flight -= 1
        self.busy_at = asyncio.get_running_loop().time()
        await self.changed()

    async def _forward(
        self, replica: LocalReplica, request: Request, body: bytes
    ) -> Response | None:
        """The replica's answer; None when it did not accept the request, so that another may."""
        headers = {
            k: v for k, v in request.headers.items() if k.startswith("ce-") or k in _PASSED_ON
        }
        url = replica.url + _EVENTS
        try:
            async with self._open().post(url, data=body, headers=headers) as answer:
                content = await answer.read()
        except aiohttp.ClientConnectorError:
            replica.state = (
                ReplicaState.DRAINING
            )  # it ended between two checks; the fleet will notice
            return None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # It may have accepted the job: only the broker may retry, and the lease decides.
            _log.info(
                "replica lost", action="activate", replica=replica.id, reason=type(error).__name__
            )
            await self._report_lost(replica, headers, body)
            return Response(status_code=502)
        if answer.status == 503 and replica.state is not ReplicaState.READY:
            return None
        kept = {
            k.lower(): v
            for k, v in answer.headers.items()
            if k.lower().startswith("ce-") or k.lower() in _PASSED_ON
        }
        return Response(content, status_code=answer.status, headers=kept)

    async def _report_lost(
        self, replica: LocalReplica, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Called once the replica's process is seen to have ended; a running one may still answer."""
        if self._on_lost is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_KNOWN_S), self._room:
                await self._room.wait_for(lambda: replica.state is ReplicaState.ENDED)
        if replica.state is ReplicaState.ENDED:
            await self._on_lost(replica.id, headers, body)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=False)
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector)
        return self._session


def _void_at(expirytime: str) -> float:
    """When an event expires, on the loop's clock; never for none, or a time that is none."""
    try:
        moment = datetime.fromisoformat(expirytime)
    except ValueError:
        return math.inf
    if moment.tzinfo is None:
        return math.inf
    return asyncio.get_running_loop().time() + moment.timestamp() - time.time()


async def _left(request: Request) -> None:
    """Return when the caller has disconnected; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
