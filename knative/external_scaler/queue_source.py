"""Looks at Torpor's own broker: what waits, what runs, what came and went since the last look.

Called by the server. It takes nothing from the queue. It must not know policies. Prompt lengths
are told from the events' sizes (about four bytes a token), answers' from the job record's usage.
"""

from typing import Final

from redis.asyncio import Redis

from eventing import keys
from eventing.broker.queue import QueueView
from eventing.connection import failures_named
from eventing.job import derive_job_id
from eventing.replica import ReplicaDirectory
from eventing.store import Store
from knative.external_scaler.scaler import Finished, Look

_BYTES_PER_TOKEN: Final = 4
# A record is base64 of the data, and attributes of about this size around it.
_RECORD_OVERHEAD: Final = 300
_READY_PHASE: Final = "ready"


class QueueSource:
    """Remembers, per queue, the jobs of the last look."""

    def __init__(self, redis: Redis, store: Store) -> None:
        self._redis = redis
        self._store = store
        self._view = QueueView(redis)
        self._replicas = ReplicaDirectory(redis)
        self._known: dict[str, dict[bytes, int]] = {}

    async def look(self, queue: str, model: str) -> Look:
        """The queue now. Raises `StoreUnavailable`; the next look tells what it missed."""
        depth = await self._view.depth(queue)
        replicas = await self._replicas.list(model)
        members = await self._members(queue)
        before = self._known.get(queue, {})
        prompts = await self._prompts(queue, members, before)
        arrived = tuple(size for name, size in prompts.items() if name not in before)
        gone = {name: size for name, size in before.items() if name not in prompts}
        finished = tuple([await self._finished(name, size) for name, size in gone.items()])
        self._known[queue] = prompts
        waiting = depth.total_waiting + depth.retrying
        now_ms = await self._now_ms()
        # The oldest jobs run, the youngest wait: which is which the queue does not say.
        waits = tuple(list(prompts.values())[-waiting:]) if waiting else ()
        oldest = (now_ms - depth.oldest_ms) / 1000 if depth.oldest_ms else 0.0
        return Look(
            waiting_prompts=waits,
            oldest_wait_s=max(0.0, oldest),
            running=max(0, depth.pending - depth.retrying),
            ready=sum(replica.phase == _READY_PHASE for replica in replicas),
            existing=len(replicas),
            arrived=arrived,
            finished=finished,
        )

    async def _members(self, queue: str) -> list[bytes]:
        async with failures_named():
            names: list[bytes] = await self._redis.hkeys(keys.queue(queue, "events"))
        return names

    async def _prompts(
        self, queue: str, members: list[bytes], before: dict[bytes, int]
    ) -> dict[bytes, int]:
        """The estimated prompt tokens of every member; only new ones are asked for."""
        prompts = {name: before[name] for name in before if name in set(members)}
        new = [name for name in members if name not in before]
        if new:
            async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
                for name in new:
                    pipe.hstrlen(keys.queue(queue, "events"), name)
                sizes = await pipe.execute()
            prompts |= {name: _tokens(size) for name, size in zip(new, sizes, strict=True)}
        return prompts

    async def _finished(self, name: bytes, prompt_tokens: int) -> Finished:
        source, _, event_id = name.decode().partition("\0")
        job = await self._store.get(derive_job_id(source, event_id))
        usage = job.usage if job is not None and job.usage is not None else {}
        output = usage.get("completion_tokens")
        return Finished(
            int(usage.get("prompt_tokens", prompt_tokens)), None if output is None else int(output)
        )

    async def _now_ms(self) -> int:
        async with failures_named():
            seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


def _tokens(record_bytes: int) -> int:
    return max(1, (record_bytes - _RECORD_OVERHEAD) * 3 // 4 // _BYTES_PER_TOKEN)
