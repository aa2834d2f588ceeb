"""Two replicas of real vLLM on CPU and prompts that share prefixes: how much of them is found in a cache, and how long
a first token takes, in plain order and where pumps prefer what their engine has seen.

    python -m bench.prefix_replicas [--jobs 80] [--prefixes 8] [--rate 0.6] [--json prefix_replicas.json]

Real predictors, store and pumps, each pump in front of its own predictor as in its pod. Jobs come by a Poisson process,
their prefixes by Zipf's law. Each replica's cache holds fewer prefixes than there are. `one` is one replica at half the
rate. Rounds have prompts of their own, so that each begins with cold caches. Beside other programs only ratios count.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Final

from redis.asyncio import Redis

from bench.queue_growth import submit
from bench.report import machine, publish, quantile
from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import DeliverySpec
from eventing.broker.delivery.pump import Pump
from eventing.broker.queue.queue import Queue
from eventing.broker.router import Router
from eventing.broker.trigger import Trigger
from eventing.job.job import API_SOURCE, Job, JobId, JobRequest, new_job_id
from eventing.job.prompt import SeenPrefixes
from eventing.job.store import NewJob
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from eventing.store.steps.redis_tools import RedisToolStore
from predictor.model_files.weights import DEFAULT_MODEL
from tests.integration.predictor_process import answers_ready
from tests.redis_server import RedisServer, die_with_parent, free_port

_CONCURRENCY: Final = 4
_ARGS: Final = f"--max-model-len 1024 --max-num-seqs {_CONCURRENCY} --kv-cache-memory-bytes"
_START_S: Final = 300.0
_PREFIX_BYTES: Final = 2_400


def prefix(salt: str, number: int) -> str:
    """About 600 tokens that no other prefix begins with."""
    draw = random.Random(f"{salt} {number}")
    words = ("nest", "wing", "leaf", "rain", "branch", "flower", "night", "heart", "sun", "tree")
    text = f"{salt} {number}: "
    while len(text) < _PREFIX_BYTES:
        text += draw.choice(words) + " "
    return text


class Round:
    """Jobs by one rule, one after the other in time."""

    def __init__(self, redis: Redis, urls: list[str], rule: str, round_number: int) -> None:
        self._name = f"requests-{rule}-{round_number}"
        self._salt = f"{rule}{round_number}"
        self._redis = redis
        self._store = RedisStore(redis)
        urls = urls[:1] if rule == "one" else urls
        self._queues = [
            Queue(redis, self._name, f"pump-{n}", seen=SeenPrefixes() if rule == "ours" else None)
            for n in range(len(urls))
        ]
        spec = DeliverySpec(retry=3, timeout_s=_START_S)
        self._triggers = [
            Trigger(
                name=self._name,
                subscriber=f"{url}/events",
                delivery=spec,
                parallelism=_CONCURRENCY,
            )
            for url in urls
        ]

    @asynccontextmanager
    async def _pumping(self) -> AsyncIterator[None]:
        steps, pumps = RedisToolStore(self._redis), []
        for trigger, queue in zip(self._triggers, self._queues, strict=True):
            await queue.ensure()
            router = Router([(trigger, queue)])
            pumps.append(
                Pump(trigger, queue, router, DeadLetterHandler(self._redis, steps, router))
            )
        async with asyncio.TaskGroup() as group:
            for pump in pumps:
                group.create_task(pump.run())
            try:
                yield
            finally:
                for pump in pumps:
                    pump.stop()

    async def run(self, jobs: int, prefixes: int, rate: float) -> list[Job]:
        """The ended jobs."""
        draw = random.Random(1)  # the same arrivals in each round
        weights = list(accumulate(1 / (rank + 1) for rank in range(prefixes)))
        rate *= len(self._queues) / 2
        ids: list[JobId] = []
        loop = asyncio.get_running_loop()
        async with self._pumping():
            due_s = loop.time()
            for number in range(jobs):
                due_s += draw.expovariate(rate)
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                which = draw.choices(range(prefixes), cum_weights=weights)[0]
                ids.append(await self._submit(f"{prefix(self._salt, which)} {number}: go on."))
            return [await self._ended(job_id) for job_id in ids]

    async def _submit(self, prompt: str) -> JobId:
        job_id = new_job_id()
        body = {"model": DEFAULT_MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0}
        request = JobRequest(url="/v1/completions", body=body)
        new = NewJob(id=job_id, source=API_SOURCE, event_id=job_id, request=request)
        await submit(self._store, self._queues[0], new)
        return job_id

    async def _ended(self, job_id: JobId) -> Job:
        async with asyncio.timeout(_START_S):
            while True:
                job = await self._store.get(job_id, with_result=False)
                if job is not None and job.state.is_terminal:
                    return job
                await asyncio.sleep(0.2)


def row(jobs: list[Job]) -> dict[str, float]:
    """What a round gave; its first fifth warms up."""
    counted = jobs[len(jobs) // 5 :]
    usages = [job.usage or {} for job in counted]
    cached = sum((u.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for u in usages)
    firsts_s = [(job.first_token_ms - job.created_ms) / 1000 for job in counted]
    return {
        "found": round(cached / sum(u["prompt_tokens"] for u in usages), 3),
        "first_token_p50_s": round(median(firsts_s), 2),
        "first_token_p95_s": round(quantile(firsts_s, 0.95), 2),
    }


async def measure(args: argparse.Namespace, url: str, predictors: list[str]) -> dict[str, Any]:
    redis = connect(url, timeout_s=30)
    report: dict[str, Any] = {}
    try:
        for number in range(args.rounds):
            for rule in ("one", "first", "ours"):
                ran = Round(redis, predictors, rule, number)
                jobs = args.jobs // 2 if rule == "one" else args.jobs
                report[f"{rule} {number}"] = row(await ran.run(jobs, args.prefixes, args.rate))
                print(rule, report[f"{rule} {number}"], flush=True)
    finally:
        await redis.aclose()
    return report | {"machine": machine()}


@contextmanager
def replicas(folder: Path, store_url: str, kv_mib: int) -> Iterator[list[str]]:
    """Two predictors that serve."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")
    }
    environment |= {"TORPOR_REDIS_URL": store_url, "OMP_NUM_THREADS": "1"}
    environment["TORPOR_MODELS_DIR"] = str(Path(".torpor/models").resolve())
    started: list[subprocess.Popen[bytes]] = []
    urls = []
    try:
        for number in range(2):  # one after the other: they share two cores
            port = free_port()
            flags = ["--engine", "vllm", "--host", "127.0.0.1", "--http_port", str(port)]
            flags += ["--replica-id", f"p{number}", *_ARGS.split(), str(kv_mib << 20)]
            with (folder / f"p{number}.log").open("wb") as log:
                command = [sys.executable, "-m", "predictor", *flags]
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent
                    )
                )
            urls.append(f"http://127.0.0.1:{port}")
            _wait_ready(started[-1], urls[-1], folder / f"p{number}.log")
        yield urls
    finally:
        for each in started:
            each.kill()
            each.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while not answers_ready(url, DEFAULT_MODEL):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(log.read_text())
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=80)
    parser.add_argument("--prefixes", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.6, help="jobs a second of both replicas")
    parser.add_argument("--kv-mib", type=int, default=120, help="KV cache of each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-bench-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            with replicas(Path(folder), server.url, args.kv_mib) as predictors:
                publish(asyncio.run(measure(args, server.url, predictors)), args.json)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
