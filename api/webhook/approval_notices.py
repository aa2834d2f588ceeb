"""Tells that a person is asked about a call of a tool, or has decided: by webhook, and by an event to the broker.

A background loop of the api. What is to be told stands in the store, put there by the script that asked or decided, and
leaves it when receivers were told: at least once, always under the same ids. Must not know how it is decided.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio import Redis

from api.webhook.webhook import EventType, Message
from eventing.clock import Clock
from eventing.cloudevent.publisher import Publisher
from eventing.cloudevent.tool_event import approval_event
from eventing.errors import EventRefused, Unavailable
from eventing.job.job import JobId
from eventing.job.store import JobReader
from eventing.redis import keys
from eventing.redis.connection import failures_named

_EVERY_S: Final = 1.0
_BATCH: Final = 100
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalNotices:
    """Store, publisher and webhooks belong to the caller."""

    redis: Redis
    store: JobReader
    publisher: Publisher
    notify: Callable[[Message], Awaitable[None]]
    clock: Clock

    async def run(self) -> None:
        """Tell what is to be told, until cancelled."""
        while True:
            try:
                while await self.sweep() == _BATCH:
                    pass
            except Unavailable as error:
                _log.debug("will tell again", action="approval_notices", reason=error.code)
            await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> int:
        """Tell what is to be told now; how much that was."""
        async with failures_named():
            members = await self.redis.zrange(keys.APPROVALS_UNTOLD, 0, _BATCH - 1)
        for member in members:
            await self._tell(member.decode())
            async with failures_named():
                await self.redis.zrem(keys.APPROVALS_UNTOLD, member)
        return len(members)

    async def _tell(self, member: str) -> None:
        kind, job_id, where, approval_id = member.split(" ", 3)
        turn, _, place = where.partition(".")
        job = await self.store.get(JobId(job_id), with_result=False)
        turns = job.turns if job else ()
        if job is None or int(turn) > len(turns):
            return  # deleted, or begun anew
        call = turns[int(turn) - 1].calls[int(place)]
        is_answer = kind == "answered"
        event = approval_event(job, call, approval_id, is_answer=is_answer)
        await self.notify(
            Message(
                tenant=job.tenant,
                type=EventType.APPROVAL_ANSWERED if is_answer else EventType.APPROVAL_REQUESTED,
                subject=approval_id,
                key=event.id,
                created_s=self.clock.wall_ms() // 1000,
            )
        )
        try:
            await self.publisher.publish(event)
        except EventRefused as error:
            _log.info(
                "the broker takes no such event", action="approval_notices", reason=error.code
            )
