"""The queue of each model, and its replicas with their start phases.

Called by `api.wiring`. Reads the embedded broker's queues and the replica directory; with a Knative Broker only the
replicas are known.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from redis.asyncio import Redis
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.described import described
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from eventing.broker.queue.view import QueueView, expected_wait_s
from eventing.clock import Clock
from eventing.replica import Replica, ReplicaDirectory
from eventing.telemetry.metric.provider import ProviderFigures, read_providers


@described
class QueueState(TypedDict):
    """How much of a model's work waits."""

    waiting: dict[str, int]
    """By priority"""
    in_delivery: int
    retrying: int
    settled_per_minute: float
    expected_wait_s: float | None
    oldest_ms: int | None
    """When the oldest came"""


@described
class ModelState(TypedDict):
    """A model's queue, its replicas, and the providers that they ask."""

    model: str
    queue: QueueState
    replicas: list[Replica]
    providers: list[ProviderFigures]
    """Breaker and limits of each endpoint, the first and those that stand in; none for a model of your own"""


class OverviewView(TypedDict):
    """Queues and replicas of every model."""

    object: Literal["overview"]
    now_ms: int
    models: list[ModelState]


class Overview(Protocol):
    """Reads queues and replicas."""

    async def look(self) -> OverviewView:
        """Queues and replicas of every model."""


routes: Routes[Overview] = Routes("overview")

_FRESH_S: Final = 0.5


@routes.operation("GET", "/v1/overview", Scope.JOBS_READ, answers=OverviewView, refuses=(404,))
async def get_overview(call: Call[Overview]) -> Response:
    """Get queues and replicas: waiting jobs, starting replicas, duration of each phase."""
    return json_response(await call.deps.look())


class RedisOverview:
    """An `Overview` of one Redis, cached for half a second."""

    def __init__(self, redis: Redis, models: Sequence[str], clock: Clock) -> None:
        self._redis = redis
        self._queues = QueueView(redis)
        self._directory = ReplicaDirectory(redis)
        self._models = tuple(models)
        self._clock = clock
        self._asking = asyncio.Lock()
        self._seen: tuple[float, OverviewView] | None = None

    async def look(self) -> OverviewView:
        """Raises `StoreUnavailable`."""
        async with self._asking:
            now_s = self._clock.monotonic_s()
            if self._seen is None or now_s - self._seen[0] > _FRESH_S:
                providers = await read_providers(self._redis, self._models)
                models = [await self._model(name, providers) for name in self._models]
                view: OverviewView = {
                    "object": "overview",
                    "now_ms": self._clock.wall_ms(),
                    "models": models,
                }
                self._seen = (self._clock.monotonic_s(), view)
            return self._seen[1]

    async def _model(self, name: str, providers: Sequence[ProviderFigures]) -> ModelState:
        depth = await self._queues.depth(f"requests-{name}")
        waiting = depth.total_waiting
        # With an empty queue the pace measures demand, not capacity.
        wait_s = expected_wait_s(waiting, depth.settled_per_minute) if waiting else None
        return {
            "model": name,
            "queue": {
                "waiting": {str(lane): count for lane, count in depth.waiting.items()},
                "in_delivery": depth.pending,
                "retrying": depth.retrying,
                "settled_per_minute": round(depth.settled_per_minute, 2),
                "expected_wait_s": wait_s,
                "oldest_ms": depth.oldest_ms or None,
            },
            "replicas": list(await self._directory.list(name)),
            "providers": [each for each in providers if each["model"] == name],
        }
