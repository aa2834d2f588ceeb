"""A durable queue on Redis: the order of events, their claims and their retries.

Called by the ingress (put) and the pump (claim, settle, defer, keep); `view` reads. One queue a trigger. A *ticket*
stream with a consumer group counts the work (KEDA's redis-streams scaler reads its lag and pending); a sorted set for
each lane decides which event the next ticket stands for (docs/adr/0003). Must not know HTTP, triggers or jobs.
"""

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any, Final

import structlog
from redis.exceptions import ResponseError

from eventing.broker.queue.claim import CLAIM_BYTES, Claimed, claimed_from
from eventing.cloudevent.event import Event, to_record
from eventing.job.job import JobId, Lane, event_identity
from eventing.job.prompt import PASS_MS, SeenPrefixes
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.script import Argument, Call, run, run_all

_log = structlog.get_logger()

LANE_WEIGHTS: Final = {Lane.INTERACTIVE: 16, Lane.DEFAULT: 4, Lane.BATCH: 1}
"""Weights of the lottery for the next event, among lanes that have one: batch gets at least 1 in 21, so it is never
starved.
"""
_MOST_LOOKS: Final = 64
_WAKE_STREAM_S: Final = 3600
"""How long the stream by which one consumer is woken outlives it; claims renew it."""
_GATHER_TURNS: Final = 2
"""Answers that come together are taken within a turn or two of the event loop."""
_FAIR: Final = tuple(f"fair:{lane}" for lane in Lane)
_PARTS: Final = ("tickets", "events", "held", "retry", "tries", "pace", "dead", *keys.READY, *_FAIR)


class Queue:
    """A queue by name, for one consumer."""

    def __init__(
        self,
        redis: SharedRedis,
        name: str,
        consumer: str,
        *,
        draw: random.Random | None = None,
        seen: SeenPrefixes | None = None,
    ) -> None:
        self._redis = redis
        self._name = name
        self._consumer = consumer
        self._draw = draw or random.Random()  # noqa: S311 (a lottery among lanes, not a secret)
        self._key = {part: keys.queue(name, part) for part in _PARTS}
        self.prefix: Final = keys.queue(name, "")  #: prefix of the queue's keys
        self._woken_by = ""  #: the ticket that ended the last wait, until the next claim
        self._search = ""
        self._seen = seen  #: of the engine that this consumer alone delivers to
        self._has_others = False
        self._may_wait = False  #: the last claim left events, as far as it knows
        self._looks_s: list[float] = []  #: a heap, by the clock of the event loop
        self._tail_connection = redis.dedicated_connection()
        self._ended: list[str] = []
        self._before_end: list[Call] = []
        self._settling: asyncio.Future[None] | None = None

    @property
    def holder(self) -> str:
        """Its engine's name among the holders of prefixes; empty where it is of no engine."""
        return self._seen.holder if self._seen is not None else ""

    @property
    def redis(self) -> SharedRedis:
        """The client, for commands that belong to an event but not to the queue."""
        return self._redis

    async def ensure(self) -> None:
        """Create stream and group, so that KEDA's triggers read a number from the start."""
        async with failures_named():
            await self._redis.sadd(keys.QUEUES, self._name)
            for group in (keys.GROUP, keys.WAKE_GROUP):
                await self._create_group(group)

    async def _create_group(self, group: str) -> None:
        try:
            await self._redis.xgroup_create(self._key["tickets"], group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    @property
    def is_searching(self) -> bool:
        """The last claim did not see all events of other consumers; the next one with `claim_idle_ms` goes on."""
        return bool(self._search)

    async def claim(
        self,
        count: int,
        *,
        most_bytes: int = CLAIM_BYTES,
        claim_idle_ms: int = 0,
        search_every_ms: int = 0,
    ) -> list[Claimed]:
        """Up to `count` events, fewer once they hold `most_bytes`; with `claim_idle_ms` also those whose consumer
        has been silent for that long, unless another consumer has searched for them within `search_every_ms`.
        """
        names = ("tickets", "events", "held", "retry", "tries", *keys.READY, *_FAIR)
        args: list[Argument] = [keys.GROUP, self._consumer, count, most_bytes]
        args += [claim_idle_ms, self._search, self._woken_by, search_every_ms]
        args += [LANE_WEIGHTS[lane] for lane in Lane]
        args += [repr(self._draw.random()) for _ in range(count)]
        while self._looks_s and self._looks_s[0] <= asyncio.get_running_loop().time():
            heappop(self._looks_s)
        if self._seen is not None and (self._has_others or claim_idle_ms):
            args += [self._seen.words(with_prefixes=self._may_wait), self._seen.holder]
        async with failures_named():
            try:
                answer = await run(self._redis, "claim", [self._key[n] for n in names], args)
            except ResponseError as error:
                await self._make_again(error)
                return []
        self._woken_by = ""
        self._search = answer[0].decode()
        self._has_others = answer[1] == b"1" if answer[1] else self._has_others
        self._look_again_in(answer[2])
        rows = answer[3:]
        self._may_wait = len(rows) >= count
        return [self._with_prefix(claimed_from(row), row[6].decode()) for row in rows]

    def _with_prefix(self, claimed: Claimed, prefix: str) -> Claimed:
        if self._seen is None:
            return claimed
        is_seen = self._seen.claim(claimed.ticket, prefix)
        return replace(claimed, is_prefix_seen=is_seen) if prefix else claimed

    def _look_again_in(self, delay_ms: int) -> None:
        """Look again after this time: something can be claimed then, and no event announces it."""
        if delay_ms > 0 and len(self._looks_s) < _MOST_LOOKS:
            heappush(self._looks_s, asyncio.get_running_loop().time() + delay_ms / 1000)

    async def wait(self, timeout_ms: int) -> bool:
        """Return when an event was put since the last claim, when one was left to this consumer, after the timeout,
        or when it is time to look again; True for the one consumer that an event wakes. One that cannot claim it then
        has to `wake` another.
        """
        if self._looks_s:
            left_s = self._looks_s[0] - asyncio.get_running_loop().time()
            timeout_ms = max(1, min(timeout_ms, math.ceil(left_s * 1000)))  # 0 would be for ever
        streams = [self._key["tickets"]]
        if self._seen is not None and self._has_others:
            streams.append(f"{self.prefix}wake:{self._seen.holder}")
        words = ("XREADGROUP", "GROUP", keys.WAKE_GROUP, "all", "COUNT", 1, "BLOCK", timeout_ms)
        async with failures_named():
            try:
                (answer,) = await self._tail_connection.send(
                    [(*words, "NOACK", "STREAMS", *streams, *">" * len(streams))]
                )
            except ResponseError as error:
                # Redis 7.0 says UNBLOCKED where a stream is lost during the wait.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                await self._create_wake_groups(streams)
                return False
        for stream, entries in answer or ():
            if stream == streams[0].encode():
                self._woken_by = entries[0][0].decode()
        return bool(answer)

    async def _create_wake_groups(self, streams: Sequence[str]) -> None:
        """Of a queue that the store lost, the next claim makes both groups."""
        for stream in streams:
            is_own = stream != streams[0]
            with suppress(ResponseError):
                await self._redis.xgroup_create(stream, keys.WAKE_GROUP, id="0", mkstream=is_own)
            if is_own:
                await self._redis.expire(stream, _WAKE_STREAM_S)

    async def wake(self) -> None:
        """Wake another consumer that waits: by a ticket that stands for nothing, which a claim drops."""
        async with failures_named():
            await self._redis.xadd(self._key["tickets"], {"t": "1"})

    def put_call(self, event: Event, *, lane: Lane, tenant: str, is_reply: bool = False) -> Call:
        """The script call that puts `event`; idempotent while the event is in the queue. Send it with
        `eventing.redis.script.run_all`.

        An event put while it is being delivered is delivered once more, unless it is its own reply.
        """
        words = (self.prefix, lane, member_of(event), to_record(event), tenant, int(is_reply))
        return ("enqueue", [self._key["tickets"]], words)

    def settle_call(self, *tickets: str) -> Call:
        """The script call that removes events."""
        names = ("tickets", "events", "held", "retry", "tries", "pace")
        return ("settle", [self._key[n] for n in names], [keys.GROUP, *tickets])

    async def settle(self, ticket: str, before: Sequence[Call] = ()) -> None:
        """End an event's stay, after the calls `before`; those of the same turns of the loop in one round trip."""
        self._ended.append(ticket)
        self._before_end += before
        if self._settling is None:
            self._settling = asyncio.ensure_future(self._settle_ended())
        await asyncio.shield(self._settling)

    async def _settle_ended(self) -> None:
        for _ in range(_GATHER_TURNS):
            await asyncio.sleep(0)
        calls = [*self._before_end, self.settle_call(*self._ended)]
        self._ended, self._before_end, self._settling = [], [], None
        await self.send(calls)

    async def send(self, calls: Sequence[Call]) -> list[Any]:
        """Run script calls of this and other queues, in order, in one round trip."""
        async with failures_named():
            return await run_all(self._redis, calls)

    async def defer(
        self, ticket: str, delay_ms: int, *, is_tried: bool = True, by_any: bool = True
    ) -> None:
        """Deliver the event again after `delay_ms`, by any pump; not `is_tried` takes back the try that it counted.
        With `by_any` false the other pumps leave it to this one for `PASS_MS` more, since its engine may have begun it.
        """
        names = [self._key[name] for name in ("held", "retry", "tries")]
        if self._seen is not None and self._has_others:
            self._seen.defer(ticket, is_ours=not by_any)
            if by_any:
                delay_ms -= PASS_MS
            else:
                self._look_again_in(delay_ms + 1)
        async with failures_named():
            await run(self._redis, "defer", names, [ticket, delay_ms, 0 if is_tried else 1])

    async def nack(self, ticket: str, lane: Lane) -> None:
        """Give back an event that was not accepted, without counting a try; it is the next of its lane."""
        names = ("tickets", "events", "held", "retry", "tries", f"ready:{lane}", f"fair:{lane}")
        args: list[Argument] = [keys.GROUP, ticket]
        if self._seen is not None and self._has_others:
            args.append(self._seen.holder)
        async with failures_named():
            await run(self._redis, "nack", [self._key[n] for n in names], args)

    def forget_seen(self) -> None:
        """Forget the prefixes that the engine had cached: it has gone."""
        if self._seen is not None:
            self._seen.forget()

    async def keep(self, tickets: Sequence[str]) -> None:
        """Renew the claims of these events."""
        if not tickets:
            return
        async with failures_named():
            try:
                await self._redis.xclaim(
                    self._key["tickets"], keys.GROUP, self._consumer, 0, list(tickets), justid=True
                )
            except ResponseError as error:
                await self._make_again(error)

    async def cancelled(self, job_ids: Sequence[JobId]) -> list[JobId]:
        """Those of the jobs that were cancelled."""
        if not job_ids:
            return []
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(keys.job(job_id), "state")
            states = await pipe.execute()
        # The job of another producer's event has no record until a predictor has received it.
        return [id_ for id_, state in zip(job_ids, states, strict=True) if state == b"cancelled"]

    async def tidy(self, *, gone_after_ms: int = 0) -> None:
        """Trim the stream's entries that every consumer has acked, see if other consumers are at work, and forget
        those without events that were silent for `gone_after_ms`; 0 leaves them.
        """
        async with failures_named():
            try:
                args: list[Argument] = [keys.GROUP, gone_after_ms, self._consumer]
                others = await run(self._redis, "tidy", [self._key["tickets"]], args)
                self._has_others |= others == 1
            except ResponseError as error:
                await self._make_again(error)

    async def _make_again(self, error: ResponseError) -> None:
        """Create the queue again after the store lost it, and let the sweep check at once the jobs that were in it.
        Raises any other error.
        """
        if "NOGROUP" not in str(error):
            raise error
        _log.warning("the store came back without this queue", action="queue")
        await self.ensure()
        await self._redis.zunionstore(keys.UNSTARTED, {keys.UNSTARTED: 0})


def member_of(event: Event) -> str:
    """The name of an event inside a queue: its identity, so that a second put is recognised."""
    return event_identity(event.source, event.id, event.extensions.get("tenant", ""))
