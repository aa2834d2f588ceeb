"""`python -m tests.faults.audit_process REDIS_URL`: what of an api process audits, and a fake engine as its critic.

It listens to ended jobs, asks the critic, and plays it, until it is killed. What it tells goes to a list in the store,
so that the test sees the events of processes that are dead. Entries of a dead process are taken over sooner than in an
api, so that a test need not wait for it.
"""

import asyncio
import random
import sys
from contextlib import suppress
from dataclasses import replace

from redis.asyncio import Redis

from eventing.cloudevent.event import Event
from eventing.errors import Unavailable
from eventing.job.job import JobId
from eventing.job.pipelines.audit import audit_job_id
from eventing.live import ended
from eventing.redis.connection import connect
from tests.contract.audit_rig import CRITIC, AuditRig, RecordingRoute
from tests.contract.rig import SETTINGS

TOLD = "tests:told"
_PAUSE_S = 0.01


class TellingRoute(RecordingRoute):
    """A publisher whose events are in the store."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self._redis = redis

    async def publish(self, event: Event) -> None:
        await self._redis.rpush(TOLD, f"{event.id} {event.data.decode()}")


async def ask(rig: AuditRig) -> None:
    """Ask as the loop of the api does, without its pause."""
    while True:
        with suppress(Unavailable):
            await rig.round.ask(CRITIC)
        await asyncio.sleep(_PAUSE_S)


async def play_critic(rig: AuditRig) -> None:
    """Answer critic's jobs; one that another process plays is left to it."""
    while True:
        names = await rig.redis.zrange(f"torpor:audits:asked:{CRITIC}", 0, -1)
        for name in random.sample(names, len(names)):
            await play(rig, audit_job_id(name.decode()))
        await asyncio.sleep(_PAUSE_S)


async def play(rig: AuditRig, job_id: JobId) -> None:
    job = await rig.store.get(job_id)
    if job is not None and not job.state.is_terminal:
        said = rig.say(str(job.request.body["messages"][-1]["content"]))
        await rig.finish(job_id, said, gpu_ms=10)


async def main(url: str) -> None:
    ended._TAKEN_OVER_AFTER_MS, ended._TAKE_OVER_EVERY_S = 500, 0.1  # type: ignore[misc]
    redis = connect(url)
    rig = AuditRig(redis, route=TellingRoute(redis), settings=replace(SETTINGS, lease_ms=500))
    consumer = ended.EndedConsumer(redis, rig.store, [rig.listener])
    await asyncio.gather(consumer.run(), ask(rig), play_critic(rig))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
