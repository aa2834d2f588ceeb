"""A predictor is replaced while jobs come: nobody waits for the pod that loads, nor for what the old one still does.

What a job waits beside the store's own time is counted, not timed: a delivery that the subscriber refused and that is
tried later (`Retry`), or a claim by a pump whose engine is not ready (`Nack`).
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.replica import ReplicaDirectory
from tests.faults.programs import QUEUE, Program, Zygote, port_of, zygote_in
from tests.redis_server import free_port

PARALLELISM = 4
TRIGGER = {
    "apiVersion": "eventing.knative.dev/v1",
    "kind": "Trigger",
    "metadata": {"name": QUEUE, "annotations": {"torpor.dev/parallelism": str(PARALLELISM)}},
    "spec": {
        "broker": "torpor",
        "filter": {"attributes": {"type": "dev.torpor.inference.requested.v1"}},
        "delivery": {"retry": 50, "backoffPolicy": "linear", "backoffDelay": "PT2S"},
    },
}
LOADING_S = 4


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with zygote_in(tmp_path_factory.mktemp("zygote")) as made:
        yield made


async def outcomes(pump: Program) -> Counter[str]:
    """The deliveries of a pump, by what came of them."""
    url = pump.health.replace("/healthz", "/metrics")
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "torpor_deliveries_total":
                found[sample.labels["outcome"]] += int(sample.value)
    return found


@dataclass
class Rollout:
    """A broker, an api, and the pods of one predictor."""

    zygote: Zygote
    folder: Path
    redis: Redis
    redis_url: str
    programs: list[Program] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)

    def program(
        self, module: str, name: str, health: str, port: int, *argv: str, **env: str
    ) -> Program:
        base = {
            "TORPOR_REDIS_URL": self.redis_url,
            "TORPOR_ANONYMOUS_ACCESS": "loopback",
            "TORPOR_FILES_URL": f"file://{self.folder}/files",
            "TORPOR_MODELS": '[{"name": "seeded", "context_tokens": 4096}]',
            "TORPOR_HOST": "127.0.0.1",
            "TORPOR_DRAIN_GRACE_S": "30",
        }
        url = f"http://127.0.0.1:{port}{health}"
        made = Program(self.zygote, module, name, self.folder, base | env, url, argv)
        self.programs.append(made)
        made.start()
        return made

    def triggers(self, name: str, engine_port: int) -> str:
        path = self.folder / f"{name}.yaml"
        subscriber = {"uri": f"http://127.0.0.1:{engine_port}/events"}
        path.write_text(
            json.dumps(TRIGGER | {"spec": {**TRIGGER["spec"], "subscriber": subscriber}})
        )
        return str(path)

    async def front(self) -> None:
        """Broker and api."""
        broker, self.api_port = free_port(), free_port()
        file = self.triggers("broker", 9)
        started = [
            self.program(
                "eventing.broker.__main__", "broker", "/readyz", broker,
                TORPOR_PORT=str(broker), TORPOR_TRIGGERS_FILE=file, TORPOR_TRIGGER="results",
            ),
            self.program(
                "api.__main__", "api", "/readyz", self.api_port,
                TORPOR_PORT=str(self.api_port), TORPOR_QUEUE_TRIGGERS_FILE=file,
                TORPOR_BROKER_URL=f"http://127.0.0.1:{broker}",
            ),
        ]  # fmt: skip
        await asyncio.gather(*(each.ready() for each in started))

    async def engine(self, name: str, loads_s: float = 0) -> Program:
        """The engine of a pod; it loads."""
        port = free_port()
        argv = ("--engine", "seeded", "--http_port", str(port), "--host", "127.0.0.1")
        return self.program(
            "predictor.__main__",
            name,
            "/v2/models/seeded/ready",
            port,
            *argv,
            "--replica-id",
            name,
            TORPOR_SEEDED_START_UP_S=str(loads_s),
        )

    async def pump(self, engine: Program) -> Program:
        """The pump beside an engine."""
        port = free_port()
        made = self.program(
            "eventing.pump",
            f"{engine.name}-pump",
            "/healthz",
            port,
            TORPOR_TRIGGERS_FILE=self.triggers(engine.name, port_of(engine)),
            TORPOR_METRICS_PORT=str(port),
        )
        await made.ready()
        return made

    async def submit(self, **seeded: float) -> None:
        body = {"model": "seeded", "prompt": "hi", "max_tokens": 40, "seeded": seeded}
        line = {"url": "/v1/completions", "body": body}
        url = f"http://127.0.0.1:{self.api_port}/v1/jobs"
        async with aiohttp.ClientSession() as session, session.post(url, json=line) as said:
            assert said.status == 202, await said.text()
            self.accepted.append((await said.json())["id"])

    async def fields(self, name: str) -> list[int]:
        """A field of every job, in the order of their submits."""
        return [int(await self.redis.hget(keys.job(each), name) or 0) for each in self.accepted]

    async def until_draining(self, replica: str) -> None:
        """It has signed off: whoever waits is not told of it as a replica any more."""
        async with asyncio.timeout(60):
            while not any(
                each.id == replica and each.is_draining
                for each in await ReplicaDirectory(self.redis).list("seeded")
            ):
                await asyncio.sleep(0.02)

    async def until_started(self, count: int) -> None:
        await self._until("started_ms", count)

    async def until_completed(self, count: int) -> None:
        await self._until("finished_ms", count)
        states = {await self.redis.hget(keys.job(each), "state") for each in self.accepted}
        assert states == {b"completed"}

    async def _until(self, name: str, count: int) -> None:
        async with asyncio.timeout(60):
            while sum(map(bool, await self.fields(name))) < count:
                await asyncio.sleep(0.02)


@pytest.fixture
async def rollout(
    zygote: Zygote, redis: Redis, redis_url: str, tmp_path: Path
) -> AsyncIterator[Rollout]:
    made = Rollout(zygote, tmp_path, redis, redis_url)
    await made.front()
    yield made
    for each in made.programs:
        await each.kill()


async def test_a_pod_that_loads_takes_no_job_from_the_one_that_is_ready(rollout: Rollout) -> None:
    old = await rollout.engine("old")
    await old.ready()
    old_pump = await rollout.pump(old)
    new = await rollout.engine("new", loads_s=LOADING_S)
    new_pump = await rollout.pump(new)

    loading = asyncio.create_task(new.ready())
    while not loading.done():
        await rollout.submit(tokens_per_s=1000)
        await rollout.until_completed(len(rollout.accepted))
        if not loading.done():
            assert await outcomes(new_pump) == {}
    await loading

    assert len(rollout.accepted) > 1
    told = await outcomes(old_pump) + await outcomes(new_pump)
    assert told == {"Delivered": len(rollout.accepted)}  # and none refused or tried again


async def test_waiting_jobs_start_on_the_new_pod_while_the_old_one_ends_its_own(
    rollout: Rollout,
) -> None:
    old, new = await rollout.engine("old"), await rollout.engine("new")
    await asyncio.gather(old.ready(), new.ready())
    old_pump = await rollout.pump(old)
    for _ in range(PARALLELISM):
        await rollout.submit(tokens_per_s=5)
    await rollout.until_started(PARALLELISM)
    for _ in range(PARALLELISM):  # more than the old pod takes at once
        await rollout.submit(tokens_per_s=1000)

    for each in (old_pump, old):
        each.signal(signal.SIGTERM)
    await rollout.until_draining("old")
    new_pump = await rollout.pump(new)
    await rollout.until_completed(2 * PARALLELISM)
    await old_pump.gone()
    await old.gone()

    ended = await rollout.fields("finished_ms")
    assert max(ended[PARALLELISM:]) < min(ended[:PARALLELISM])
    assert await rollout.fields("attempt") == [1] * 2 * PARALLELISM
    assert await outcomes(new_pump) == {"Delivered": PARALLELISM}
