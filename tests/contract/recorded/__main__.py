"""Records what a version keeps in its store, for `tests/contract/test_store_before.py`:
`PYTHONPATH=TREE_OF_THAT_VERSION python tests/contract/recorded REDIS_URL > tests/contract/recorded/COMMIT.json`.

It uses only what that version and this one have in common.
"""

import asyncio
import base64
import json
import sys
from typing import Any

from redis.asyncio import Redis

from api.batch.batch import Batch
from api.batch.store import BatchStore
from api.webhook.store import WebhookStore
from api.webhook.webhook import Endpoint, Secret
from eventing.api_key import RedisKeys, mint
from eventing.broker.delivery.decision import DeliverySpec
from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import REQUESTED, job_of
from eventing.job.job import JobError, JobRequest, JobState
from eventing.job.store import Ending, ReleaseReason, TokenBatch
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.time_limits import STORE_S

QUEUE = "requests-m"
BODY = {"model": "m", "messages": [{"role": "user", "content": "why?"}]}


async def fill(redis: Any) -> None:
    """One of each: jobs in every state of their life, a claimed event, a batch, a webhook, a key."""
    store = RedisStore(redis)
    trigger = Trigger(name=QUEUE, subscriber="http://127.0.0.1:9/", delivery=DeliverySpec())
    intake = Intake(store, DirectPublisher(redis, [trigger]))
    queue = Queue(redis, QUEUE, "pump")
    await queue.ensure()
    jobs = {}
    for name in ("claimed", "running", "completed", "failed", "cancelled", "waiting"):
        line = JobRequest(url="/v1/chat/completions", body=BODY, custom_id=name)
        event = Event(
            id=name,
            source="/shop",
            type=REQUESTED,
            extensions={"tenant": "acme"},
            datacontenttype="application/json",
            data=line.to_json(),
        )
        jobs[name], _ = await intake.submit(job_of(event))
    await queue.claim(1)
    for name in ("running", "completed", "failed"):
        lease = (await store.acquire(jobs[name].id, "worker", can_resume=True)).lease
        tokens = TokenBatch(
            index=0, token_ids=(1, 2), delta='[{"index":0,"delta":{"content":"b"}}]'
        )
        await store.append_all([(lease, tokens)])
        if name == "completed":
            usage = {"total_tokens": 3}
            await store.finish(
                lease, Ending(state=JobState.COMPLETED, result={"a": 1}, usage=usage)
            )
        elif name == "failed":
            error = JobError(code="e", message="it broke")
            await store.release(lease, ReleaseReason.FAILURE, error)
            ending = Ending(state=JobState.FAILED, error=error, is_dead_letter=True)
            await store.conclude(jobs[name].id, ending)
    await store.cancel(jobs["cancelled"].id)
    await BatchStore(redis).create(
        Batch(
            id="batch_1",
            tenant="acme",
            endpoint="/v1/chat/completions",
            input_file_id="file-1",
            output_file_id="file-2",
            error_file_id="file-3",
            created_at=1,
        )
    )
    await WebhookStore(redis).add(
        Endpoint(
            id="we_1",
            tenant="acme",
            url="https://example.org/",
            secrets=(Secret(text="whsec_eA=="),),
        )
    )
    key, _ = mint("acme", now_s=1)
    await RedisKeys(redis).put(key)


def text(raw: Any) -> str:
    return base64.b64encode(raw if isinstance(raw, bytes) else str(raw).encode()).decode()


async def dump(redis: Redis) -> dict[str, Any]:
    """All keys with their type and content; base64, since a queue's entries hold NULs."""
    found = {}
    for key in sorted(await redis.keys("*")):
        kind = (await redis.type(key)).decode()
        content: Any = None
        match kind:
            case "string":
                content = text(await redis.get(key))
            case "hash":
                content = [[text(k), text(v)] for k, v in (await redis.hgetall(key)).items()]
            case "set":
                content = [text(member) for member in await redis.smembers(key)]
            case "zset":
                content = [[text(m), s] for m, s in await redis.zrange(key, 0, -1, withscores=True)]
            case "stream":
                content = [
                    [entry.decode(), [[text(k), text(v)] for k, v in fields.items()]]
                    for entry, fields in await redis.xrange(key)
                ]
                groups = await redis.xinfo_groups(key)
                content = [content, [[text(g["name"]), int(g["pending"])] for g in groups]]
        found[text(key)] = [kind, content]
    return found


async def main(url: str) -> None:
    redis = connect(url, timeout_s=STORE_S)
    await redis.flushall()
    await fill(redis)
    json.dump(await dump(redis), sys.stdout, indent=0)
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
