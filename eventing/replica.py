"""The directory of a model's replicas that are starting or serving, with the phase of each.

Written by each predictor every few seconds; read by the api (progress of a starting predictor) and the local stack.
An entry is a hint: a replica that died disappears once it has been silent for too long. All times are store time,
since readers are on other hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.redis.connection import failures_named, store_now_ms

SILENT_AFTER_MS: Final = 15_000
"""A replica silent for this long is taken for dead; it reports every 5 s."""
_FORGOTTEN_AFTER_S: Final = 3600
_FAILURE: Final = "start-failure"
"""Field with the last failed start, beside the replicas; its `seen_ms` is 0, so that it is not read as a replica.
"""
_FAILURE_KNOWN_MS: Final = 600_000
READY: Final = "ready"
DRAINING: Final = "draining"
"""Told to end: it thinks on, and starts nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One predictor. `phases` are the seconds that each finished phase of its start took; `device` is the hardware
    that it runs on, once known.
    """

    id: str
    phase: str
    since_ms: int
    seen_ms: int
    phases: Mapping[str, float] = field(default_factory=dict)
    device: str = ""

    @property
    def is_draining(self) -> bool:
        """Whether it takes no job any more."""
        return self.phase == DRAINING


class ReplicaDirectory:
    """The replicas of every model in Redis; the client belongs to the caller."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def report(
        self,
        model: str,
        replica_id: str,
        phase: str,
        phases: Mapping[str, float],
        age_ms: int = 0,
        *,
        device: str = "",
        revision: str = "",
    ) -> None:
        """Report this replica alive, in `phase` since `age_ms`; when it is ready, also with which `revision` of the
        weights it answers. Raises `StoreUnavailable`.
        """
        key = keys.replicas(model)
        async with failures_named():
            now = await store_now_ms(self._redis)
            entry = {
                "phase": str(phase),
                "since_ms": now - age_ms,
                "seen_ms": now,
                "phases": {str(name): seconds for name, seconds in phases.items()},
                "device": device,
            }
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(key, replica_id, orjson.dumps(entry))
                if entry["phase"] == READY:
                    pipe.hdel(key, _FAILURE)
                    if revision:
                        pipe.hset(keys.REVISIONS, model, revision)
                pipe.expire(key, _FORGOTTEN_AFTER_S)
                await pipe.execute()

    async def list(self, model: str) -> tuple[Replica, ...]:
        """Replicas that reported recently, oldest phase first. Raises `StoreUnavailable`."""
        async with failures_named():
            now = await store_now_ms(self._redis)
            entries: dict[bytes, bytes] = await self._redis.hgetall(keys.replicas(model))
        known = [_parse(name.decode(), orjson.loads(entry)) for name, entry in entries.items()]
        alive = [replica for replica in known if now - replica.seen_ms <= SILENT_AFTER_MS]
        return tuple(sorted(alive, key=lambda replica: (replica.since_ms, replica.id)))

    async def report_failure(self, model: str, reason: str) -> None:
        """Report why a replica of the model failed to start. Raises `StoreUnavailable`."""
        key = keys.replicas(model)
        async with failures_named():
            entry = {"phase": "failed", "since_ms": await store_now_ms(self._redis), "seen_ms": 0}
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(key, _FAILURE, orjson.dumps({**entry, "reason": reason}))
                pipe.expire(key, _FORGOTTEN_AFTER_S)
                await pipe.execute()

    async def failure(self, model: str) -> str:
        """Why the last start failed, until one succeeds; empty without a recent failure. Raises `StoreUnavailable`."""
        async with failures_named():
            entry = await self._redis.hget(keys.replicas(model), _FAILURE)
            now = await store_now_ms(self._redis) if entry else 0
        found = orjson.loads(entry) if entry else {}
        is_recent = now - int(found.get("since_ms", 0)) <= _FAILURE_KNOWN_MS
        return str(found.get("reason", "")) if is_recent else ""

    async def remove(self, model: str, replica_id: str) -> None:
        """Remove this replica at its end. Raises `StoreUnavailable`; then it expires by its silence."""
        async with failures_named():
            await self._redis.hdel(keys.replicas(model), replica_id)


def _parse(replica_id: str, entry: dict[str, Any]) -> Replica:
    return Replica(
        id=replica_id,
        phase=str(entry["phase"]),
        since_ms=int(entry["since_ms"]),
        seen_ms=int(entry["seen_ms"]),
        phases=entry.get("phases", {}),
        device=str(entry.get("device", "")),
    )
