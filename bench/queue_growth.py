"""Cost of the queue as it grows: submit and claim latency, and memory a job beside its payload.

    python -m bench.queue_growth [--sizes 1000,100000,1000000] [--server valkey|redis]

Starts a server of its own. A submit is what the api and the broker do to the store for one job
(record, event into the queue, mark as published); a claim is what the pump and the predictor do to
start it (claim, lease). Both are measured one at a time, on top of the queue of the given size.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import orjson
from redis.asyncio import Redis

from eventing.broker.queue.queue import Queue, member_of
from eventing.broker.queue.view import QueueView
from eventing.cloudevent.event import to_record
from eventing.cloudevent.job_event import request_event
from eventing.job.job import API_SOURCE, JobRequest, Lane, new_job_id
from eventing.job.store import NewJob, Publication
from eventing.redis.connection import connect
from eventing.store.job_record.parse import fresh
from eventing.store.redis_store import RedisStore
from tests.redis_server import VALKEY, RedisServer, debian_redis

_SAMPLE = 500
_AT_ONCE = 200
_NAME = "requests-bench"


def new_job(number: int) -> NewJob:
    """A job as the api makes it, of one of 50 tenants and any lane."""
    job_id = new_job_id()
    body = {"model": "bench", "messages": [{"role": "user", "content": f"question {number}"}]}
    return NewJob(
        id=job_id,
        request=JobRequest(url="/v1/chat/completions", body=body),
        source=API_SOURCE,
        event_id=job_id,
        tenant=f"tenant-{number % 50}",
        lane=list(Lane)[number % 3],
    )


async def submit(store: RedisStore, queue: Queue, new: NewJob) -> int:
    """Record and queue one job; the bytes of its payload, which are stored twice."""
    event = request_event(fresh(new, 0))
    await store.submit(new, Publication(queues=(queue.prefix,), event=to_record(event)))
    return len(new.request.to_json()) + len(to_record(event)) + len(member_of(event))


async def start(store: RedisStore, queue: Queue) -> None:
    """Claim the next event and take its job's lease."""
    (claimed,) = await queue.claim(1)
    await store.acquire(claimed.event.subject, "bench", can_resume=True)  # type: ignore[arg-type]


async def fill(store: RedisStore, queue: Queue, count: int) -> int:
    """Put `count` jobs; the bytes of their payloads."""
    payload = 0
    for first in range(0, count, _AT_ONCE):
        batch = [new_job(n) for n in range(first, min(first + _AT_ONCE, count))]
        payload += sum(await asyncio.gather(*(submit(store, queue, new) for new in batch)))
    return payload


def row(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 3),
    }


async def timed(count: int, step: object) -> list[float]:
    samples = []
    for number in range(count):
        began_s = time.perf_counter()
        await step(number)  # type: ignore[operator]
        samples.append(time.perf_counter() - began_s)
    return samples


async def used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory_dataset"])


async def measure(redis: Redis, size: int) -> dict[str, object]:
    """One size, from empty."""
    await redis.flushall()
    store, queue = RedisStore(redis), Queue(redis, _NAME, "bench")
    await queue.ensure()
    before = await used(redis)
    began_s = time.perf_counter()
    payload = await fill(store, queue, size)
    fill_s = time.perf_counter() - began_s
    grown = await used(redis) - before
    jobs = [new_job(n) for n in range(_SAMPLE)]
    submits = await timed(_SAMPLE, lambda n: submit(store, queue, jobs[n]))
    claims = await timed(_SAMPLE, lambda _: start(store, queue))
    depths = await timed(50, lambda _: QueueView(redis).depth(_NAME))
    return {
        "queued": size,
        "submit": row(submits),
        "claim_and_lease": row(claims),
        "depth": row(depths),
        "filled_per_s": round(size / fill_s),
        "bytes_a_job_beside_payload": round((grown - payload) / size),
        "payload_bytes_a_job": round(payload / size),
    }


async def main(sizes: list[int], binary: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    server = RedisServer(
        folder, binary=binary, options=["--appendonly", "yes", "--appendfsync", "everysec"]
    )
    server.start()
    try:
        redis = connect(server.url, timeout_s=30)
        version = await redis.info("server")
        name = version.get("valkey_version") or version["redis_version"]
        for size in sizes:
            line = {"server": f"{binary.name} {name}"} | await measure(redis, size)
            sys.stdout.write(orjson.dumps(line).decode() + "\n")
            sys.stdout.flush()
        await redis.aclose()
    finally:
        server.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--server", choices=["valkey", "redis"], default="valkey")
    chosen = parser.parse_args()
    asyncio.run(
        main(
            [int(size) for size in chosen.sizes.split(",")],
            (debian_redis() or VALKEY) if chosen.server == "redis" else VALKEY,
        )
    )
