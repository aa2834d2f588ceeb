"""What a console shows beyond jobs: each model's queue, and its replicas with how far they are.

Called by `api.wiring`. Reads the broker's queue and the replicas' own
announcements; with a Knative Broker there is no queue to look at, and only replicas are told of.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol

from redis.asyncio import Redis
from starlette.responses import Response

from api.auth.principal import Scope
from api.openapi.doc import Doc
from api.openapi.examples import OVERVIEW
from api.openapi.operation import answer, problems
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from eventing.broker.queue import QueueView, expected_wait_s
from eventing.clock import Clock
from eventing.replica import ReplicaDirectory


class Overview(Protocol):
    """Tells what a console shows: queues and replicas."""

    async def look(self) -> dict[str, Any]:
        """Queues and replicas of every model, as JSON."""


routes: Routes[Overview] = Routes()

_FRESH_S: Final = 0.5
_DOC: Final = Doc(
    tag="overview",
    answers={
        200: answer("Queues and replicas of every model", None, OVERVIEW),
        **problems(401, 403, 404, 503),
    },
)


@routes.operation("GET", "/v1/overview", scope=Scope.JOBS_READ, doc=_DOC)
async def get_overview(call: Call[Overview]) -> Response:
    """Look at queues and replicas: how much waits, who wakes, how long each phase took."""
    return json_response(await call.deps.look())


class RedisOverview:
    """An `Overview` on one Redis; asked by many, it looks twice a second at most."""

    def __init__(self, redis: Redis, models: Sequence[str], clock: Clock) -> None:
        self._queues = QueueView(redis)
        self._directory = ReplicaDirectory(redis)
        self._models = tuple(models)
        self._clock = clock
        self._asking = asyncio.Lock()
        self._seen: tuple[float, dict[str, Any]] = (float("-inf"), {})

    async def look(self) -> dict[str, Any]:
        """Raises `StoreUnavailable`."""
        async with self._asking:
            if self._clock.monotonic_s() - self._seen[0] > _FRESH_S:
                models = [await self._model(name) for name in self._models]
                view = {"object": "overview", "now_ms": self._clock.wall_ms(), "models": models}
                self._seen = (self._clock.monotonic_s(), view)
            return self._seen[1]

    async def _model(self, name: str) -> dict[str, Any]:
        depth = await self._queues.depth(f"requests-{name}")
        waiting = depth.total_waiting
        # The pace of a queue that nobody waits in says what was asked for, not what is possible.
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
            "replicas": [asdict(replica) for replica in await self._directory.list(name)],
        }
