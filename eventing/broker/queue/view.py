"""Reads of a queue that change nothing: its size, its pace, and an event's place in it.

Called by the api, the autoscalers and the broker's metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.exceptions import ResponseError

from eventing.job.job import Lane
from eventing.redis import keys
from eventing.redis.connection import failures_named
from eventing.redis.multiplexed_connection import Command, SharedRedis
from eventing.redis.script import send


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The size of a queue. `lag` and `pending` are what KEDA reads; `oldest_ms` is when the event at the head was
    put.
    """

    waiting: dict[Lane, int]
    pending: int
    retrying: int
    lag: int | None
    settled_per_minute: float
    oldest_ms: int = 0

    @property
    def total_waiting(self) -> int:
        return sum(self.waiting.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The place of a waiting event: about `ahead` events go first; `expected_wait_s` is None without a recent pace."""

    ahead: int
    expected_wait_s: float | None


_MOST_EXPECTED: Final = 1000


class QueueView:
    """Reads queues without changing them."""

    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis

    async def depth(self, name: str) -> Depth:
        """The size of the queue now, and the age of its head: reads one whole event a lane."""
        reads = [("ZRANGE", keys.queue(name, part), 0, 0) for part in keys.READY]
        size, heads = await self._read(name, reads)
        members = [member for head in heads for member in head]
        records = []
        if members:
            async with failures_named():
                records = await self._redis.hmget(keys.queue(name, "events"), members)
        stamps = [int(record.split(b" ", 1)[0]) for record in records if record]
        return replace(size, oldest_ms=min(stamps, default=0))

    async def size(self, name: str) -> Depth:
        """As `depth`, without the age of the head."""
        return (await self._read(name, ()))[0]

    async def _read(self, name: str, more: Sequence[Command]) -> tuple[Depth, list[Any]]:
        """The size of the queue and the replies to `more` commands, in one round trip."""
        commands: list[Command] = [
            ("XINFO", "GROUPS", keys.queue(name, "tickets")),
            *(("ZCARD", keys.queue(name, part)) for part in (*keys.READY, "retry")),
            ("HGETALL", keys.queue(name, "pace")),
            ("TIME",),
            *more,
        ]
        async with failures_named():
            try:
                groups, *answers = await send(self._redis, commands)
            except ResponseError as error:
                if "no such key" not in str(error):
                    raise
                groups, answers = [], await send(self._redis, commands[1:])
        *counts, retrying, pace, now = answers[:6]
        group = _group_of(groups)
        size = Depth(
            waiting=dict(zip(Lane, counts, strict=True)),
            pending=int(group.get(b"pending", 0)),
            retrying=retrying,
            lag=group.get(b"lag", 0),
            settled_per_minute=pace_per_minute(_counts_of(pace), int(now[0])),
        )
        return size, answers[6:]

    async def expected(self, name: str) -> frozenset[str]:
        """The replicas at which jobs are expected back now, whose tools run."""
        newest = ("ZRANGE", keys.queue(name, "expected"), -_MOST_EXPECTED, -1, "WITHSCORES")
        async with failures_named():
            flat, (seconds, micros) = await send(self._redis, [newest, ("TIME",)])
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        until = zip(flat[::2], map(float, flat[1::2]), strict=True)
        return frozenset(member.decode().partition(" ")[0] for member, ms in until if ms > now_ms)

    async def position(self, name: str, member: str) -> Position | None:
        """The place of the event `member`; None when it is not waiting."""
        async with failures_named(), self._redis.pipeline(transaction=False) as pipe:
            for part in keys.READY:
                pipe.zrank(keys.queue(name, part), member)
                pipe.zcard(keys.queue(name, part))
            pipe.hgetall(keys.queue(name, "pace"))
            pipe.time()
            *pairs, pace, now = await pipe.execute()
        ranks, cards = pairs[0::2], pairs[1::2]
        for lane, rank in enumerate(ranks):
            if rank is not None:
                ahead = rank + sum(cards[:lane])
                rate = pace_per_minute({int(k): int(v) for k, v in pace.items()}, now[0])
                return Position(ahead=ahead, expected_wait_s=expected_wait_s(ahead, rate))
        return None


def _group_of(groups: Sequence[Sequence[Any]]) -> dict[bytes, Any]:
    """The pumps' group among those that XINFO GROUPS gave."""
    for flat in groups:
        group = dict(zip(flat[0::2], flat[1::2], strict=True))
        if group[b"name"] == keys.GROUP.encode():
            return group
    return {}


def _counts_of(pace: Sequence[bytes]) -> dict[int, int]:
    return {int(k): int(v) for k, v in zip(pace[0::2], pace[1::2], strict=True)}


def pace_per_minute(settled: dict[int, int], now_s: int) -> float:
    """Events settled a minute, over the last five whole minutes and the current one, from counts by minute."""
    minute = now_s // 60
    recent = {m: n for m, n in settled.items() if minute - 5 <= m <= minute}
    if not recent:
        return 0.0
    span_s = now_s - min(recent) * 60
    return sum(recent.values()) * 60 / max(span_s, 1)


def expected_wait_s(ahead: int, per_minute: float) -> float | None:
    """The expected wait at the present pace; None without a pace."""
    return round((ahead + 1) * 60 / per_minute, 1) if per_minute > 0 else None
