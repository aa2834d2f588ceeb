"""What large results leave in Redis once they are archived.

    python -m bench.large_results [--gib 1] [--result-kib 1024]

Starts a server of its own, ends jobs with results of that size, archives them as the api does, and
tells by how much the server's memory grew beside what went to the folder of objects.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from redis.asyncio import Redis

from bench.queue_growth import new_job
from eventing.job.job import JobState
from eventing.job.store import Ending, TokenBatch
from eventing.redis.connection import connect
from eventing.store.archive import Archive
from eventing.store.objects.object_store import ObjectStore
from eventing.store.redis_store import RedisStore
from tests.redis_server import RedisServer

_BATCH_TOKENS = 20


async def end_job(store: RedisStore, number: int, result_bytes: int) -> None:
    """One job from submit to an answer of `result_bytes`, four bytes a token, as a predictor does."""
    new = new_job(number)
    await store.submit(new)
    taken = await store.acquire(new.id, "bench", can_resume=True)
    text = "word" * (result_bytes // 4)
    tokens = result_bytes // 4
    batches = [
        TokenBatch(
            index=start,
            token_ids=tuple(range(start, min(start + _BATCH_TOKENS, tokens))),
            delta='[{"index":0,"delta":{"content":"' + "word" * _BATCH_TOKENS + '"}}]',
        )
        for start in range(0, tokens, _BATCH_TOKENS)
    ]
    for start in range(0, len(batches), 1_000):
        await store.append_all([(taken.lease, one) for one in batches[start : start + 1_000]])
    result = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    await store.finish(taken.lease, Ending(state=JobState.COMPLETED, result=result))


async def used_bytes(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


async def measure(gib: float, result_bytes: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="torpor-bench-"))
    server = RedisServer(folder / "redis", options=["--appendonly", "no"])
    server.start()
    redis = connect(server.url, timeout_s=30.0)
    archive = Archive(redis, ObjectStore(f"file://{folder}/objects"))
    store = RedisStore(redis, archive=archive)
    count = int(gib * 2**30 / result_bytes)
    before, peak, began_s, archiving_s = await used_bytes(redis), 0, time.perf_counter(), 0.0
    try:
        for number in range(count):
            await end_job(store, number, result_bytes)
            peak = max(peak, await used_bytes(redis))
            start_s = time.perf_counter()
            for job_id in await archive.take_due(10):
                await archive.archive(job_id)
            archiving_s += time.perf_counter() - start_s
        after = await used_bytes(redis)
    finally:
        await store.close()
        server.kill()
        stored = sum(path.stat().st_size for path in (folder / "objects").rglob("*.*"))
        shutil.rmtree(folder)
    mib = 2**20
    sys.stdout.write(
        f"{count} results of {result_bytes / mib:.2f} MiB: Redis grew by {(after - before) / mib:.1f} MiB"
        f" (highest {(peak - before) / mib:.1f}), objects hold {stored / mib:.0f} MiB;"
        f" archiving took {1000 * archiving_s / count:.1f} ms a job"
        f" of {1000 * (time.perf_counter() - began_s) / count:.0f}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--result-kib", type=int, default=1024)
    asked = parser.parse_args()
    asyncio.run(measure(asked.gib, asked.result_kib * 1024))


if __name__ == "__main__":
    main()
