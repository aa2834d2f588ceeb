"""KEDA's side of the external scaler: real gRPC, and a real queue behind it."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from eventing.broker.queue.queue import Queue
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.errors import StoreUnavailable
from eventing.job.job import API_SOURCE, Lane, new_job_id
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.replica import ReplicaDirectory
from knative.deploy.first_secrets import SCALER_MAY
from knative.external_scaler import protocol
from knative.external_scaler.queue_source import QueueSource
from knative.external_scaler.scaler import (
    Finished,
    QueueSnapshot,
    Scaler,
    WaitingJob,
    WorkSource,
    read_metadata,
)
from knative.external_scaler.server import ScalerServer
from tests.time_limits import HANG_S

NOW = {"coldStartSeconds": "30", "p95WaitSeconds": "0", "slots": "2"}
IDLE = QueueSnapshot((), 0, 0, 0)


@dataclass
class Scripted:
    """A queue that shows what the test puts there."""

    shown: QueueSnapshot | None = field(default_factory=lambda: IDLE)

    async def look(self, queue: str, model: str) -> QueueSnapshot:
        if self.shown is None:
            raise StoreUnavailable("away")
        return self.shown


class Keda:
    """KEDA's calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def ref(self, metadata: dict[str, str]) -> Any:
        return protocol.ScaledObjectRef(name="p", namespace="n", scalerMetadata=metadata)

    async def call(self, method: str, request: Any, answer: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{protocol.SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=HANG_S)

    async def is_active(self, metadata: dict[str, str] | None = None) -> bool:
        ref = self.ref(NOW if metadata is None else metadata)
        answer = await self.call("IsActive", ref, protocol.IsActiveResponse)
        return bool(answer.result)

    async def replicas(self) -> float:
        request = protocol.GetMetricsRequest(
            scaledObjectRef=self.ref(NOW), metricName="torpor-replicas"
        )
        answer = await self.call("GetMetrics", request, protocol.GetMetricsResponse)
        return float(answer.metricValues[0].metricValueFloat)

    def stream(self) -> Any:
        call = self._channel.unary_stream(
            f"/{protocol.SERVICE}/StreamIsActive",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=protocol.IsActiveResponse.FromString,
        )
        return call(self.ref(NOW), timeout=HANG_S)


@asynccontextmanager
async def served(source: WorkSource) -> AsyncIterator[Keda]:
    server = ScalerServer(source, SystemClock(), queue="jobs", model="m", tick_s=0.02)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.run("127.0.0.1:0", port.set_result))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await port}") as channel:
            yield Keda(channel)
        task.cancel()


@asynccontextmanager
async def scaler_user(redis: Redis, may: str) -> AsyncIterator[Redis]:
    """A client of a user that may only do that."""
    rules = ["reset", "on", ">pw", "resetchannels", "%R~torpor:*", "-@all", *may.split()]
    await redis.execute_command("ACL", "SETUSER", "scaler", *rules)
    address = redis.connection_pool.connection_kwargs
    client = connect(f"redis://scaler:pw@{address['host']}:{address['port']}")
    try:
        yield client
    finally:
        await client.aclose()
        await redis.execute_command("ACL", "DELUSER", "scaler")


async def until(claim: Callable[[], Awaitable[bool]], timeout_s: float = HANG_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not await claim():
            await asyncio.sleep(0.02)


async def test_an_empty_queue_is_inactive_and_wants_nothing() -> None:
    async with served(Scripted()) as keda:
        assert not await keda.is_active()
        assert await keda.replicas() == 0


async def test_waiting_work_is_active_and_says_how_many_replicas_it_takes() -> None:
    async with served(Scripted(QueueSnapshot((WaitingJob(100, 1.0),) * 7, 0, 0, 0))) as keda:
        assert await keda.is_active()
        assert await keda.replicas() == 4  # seven jobs, two places each


async def test_the_target_is_one_so_that_the_value_is_the_replicas() -> None:
    async with served(Scripted()) as keda:
        answer = await keda.call("GetMetricSpec", keda.ref(NOW), protocol.GetMetricSpecResponse)
        assert [(s.metricName, s.targetSizeFloat) for s in answer.metricSpecs] == [
            ("torpor-replicas", 1.0)
        ]


async def test_a_job_is_pushed_without_waiting_for_a_poll() -> None:
    source = Scripted()
    async with served(source) as keda:
        stream = keda.stream()
        first = await stream.read()
        source.shown = QueueSnapshot((WaitingJob(100, 0.0),), 0, 0, 0)
        second = await stream.read()
        stream.cancel()
    assert (first.result, second.result) == (False, True)


async def test_while_the_store_is_away_keda_gets_an_error_and_not_a_zero() -> None:
    async with served(Scripted(None)) as keda:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await keda.is_active()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "cannot read the queue: away"


async def test_bad_metadata_is_refused_by_name() -> None:
    async with served(Scripted()) as keda:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await keda.is_active({"slots": "0", "colour": "blue"})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "metadata.slots" in refused.value.details()
    assert "metadata.colour" in refused.value.details()


async def test_a_real_queue_activates_it_and_an_empty_one_does_not(redis: Redis) -> None:
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    event = Event(id="job-1", source="/test", type="t", data=b"x" * 4000)
    async with served(QueueSource(redis)) as keda:
        asleep = await keda.is_active()
        await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
        await until(keda.is_active)

        # In a predictor's hands it still counts: nobody is scaled away under a running job.
        await ReplicaDirectory(redis).report("m", "r1", "ready", {})
        claimed = await queue.claim(1)
        await asyncio.sleep(0.1)
        busy = await keda.is_active()

        await queue.send([queue.settle_call(claimed[0].ticket)])
        await asyncio.sleep(0.1)
        kept = await keda.is_active()  # a strict target keeps the last replica through a gap
    assert (asleep, busy, kept) == (False, True, True)


async def test_prompt_length_and_deadline_are_read_from_the_event(redis: Redis) -> None:
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    soon = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
    plain = Event(id="job-1", source="/test", type="t", data=b"x" * 4000)
    urgent = Event(id="job-2", source="/test", type="t", extensions={"expirytime": soon})
    source = QueueSource(redis)
    for event in (plain, urgent):
        await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
        await asyncio.sleep(0.01)

    look = await source.look("jobs", "m")

    first, second = look.waiting
    assert (first.prompt_tokens, first.deadline_s) == (1000, math.inf)
    assert 80 < second.deadline_s <= 90
    assert first.wait_s > second.wait_s >= 0


async def test_jobs_of_the_batch_lane_are_told_apart_and_an_older_one_is_not_taken_to_run(
    redis: Redis,
) -> None:
    # The oldest jobs were taken to be those that run, and then a held batch job stood in for one that ran.
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    batch = Event(
        id="job-1", source="/test", type="t", data=b"x" * 400, extensions={"priority": "batch"}
    )
    plain = Event(id="job-2", source="/test", type="t", data=b"x" * 4000)
    source = QueueSource(redis)
    await queue.send([queue.put_call(plain, lane=Lane.INTERACTIVE, tenant="a")])
    await queue.claim(1)
    older = replace(plain, id="job-3")
    await queue.send([queue.put_call(batch, lane=Lane.BATCH, tenant="a")])
    await queue.send([queue.put_call(older, lane=Lane.INTERACTIVE, tenant="a")])

    before = await source.look("jobs", "m")
    claimed = [event.event.id for event in await queue.claim(2)]
    await queue.send([queue.put_call(replace(batch, id="job-4"), lane=Lane.BATCH, tenant="a")])
    after = await source.look("jobs", "m")

    assert before.arrived == (1000, 1000)
    assert before.arrived_batch == (100,)
    assert sorted((job.prompt_tokens, job.is_batch) for job in before.waiting) == [
        (100, True),
        (1000, False),
    ]
    assert sorted(claimed) == ["job-1", "job-3"]
    assert [(job.prompt_tokens, job.is_batch) for job in after.waiting] == [(100, True)]
    assert (before.running, after.running) == (1, 3)


async def test_a_deep_queue_is_answered_for(redis: Redis) -> None:
    # All records came in one command: 50,000 were UNAVAILABLE for as long as they waited.
    count = 50_000
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    calls = [
        queue.put_call(
            Event(id=str(number), source="/test", type="t", data=b"x" * 400),
            lane=Lane.DEFAULT,
            tenant="a",
        )
        for number in range(count)
    ]
    for start in range(0, count, 500):
        await queue.send(calls[start : start + 500])
    source = QueueSource(redis)
    async with served(source) as keda:

        async def is_active() -> bool:
            try:
                return await keda.is_active()
            except grpc.aio.AioRpcError:  # the first look at so much may take longer than one call
                return False

        await until(is_active, timeout_s=40)
    look = await source.look("jobs", "m")
    assert len(look.waiting) == count
    assert {job.prompt_tokens for job in look.waiting} == {100}


@pytest.mark.parametrize("may_ask_sizes", [True, False])
async def test_large_events_are_read_a_few_at_a_time(redis: Redis, may_ask_sizes: bool) -> None:
    count, size = 12, 1024 * 1024
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    large = Event(id="", source="/test", type="t", data=b"x" * size)
    for number in range(count):
        event = replace(large, id=str(number))
        await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
    del event, large
    may = SCALER_MAY if may_ask_sizes else SCALER_MAY.replace("+hstrlen", "")
    async with scaler_user(redis, may) as as_scaler:
        await redis.config_resetstat()
        look = await QueueSource(as_scaler).look("jobs", "m")
        asked = (await redis.info("commandstats"))["cmdstat_hmget"]["calls"]

    assert len(look.arrived) == count
    # A record is a third larger than its data, and 4 MiB of them are read at once; unasked, 16 of any size.
    assert asked == (6 if may_ask_sizes else 1)


async def test_a_job_that_ended_is_learnt_from_by_its_usage_alone(redis: Redis) -> None:
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    job_id = new_job_id()
    event = Event(id=job_id, source=API_SOURCE, type="t", data=b"x" * 400)
    await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
    source = QueueSource(redis)
    await source.look("jobs", "m")
    usage = orjson.dumps({"prompt_tokens": 7, "completion_tokens": 9})
    await redis.hset(keys.job(job_id), mapping={"usage": usage, "result": b"x" * 1000})
    (claimed,) = await queue.claim(1)
    assert (await source.look("jobs", "m")).finished == ()

    await queue.send([queue.settle_call(claimed.ticket)])

    assert (await source.look("jobs", "m")).finished == (Finished(7, 9),)
    assert (await source.look("jobs", "m")).finished == ()


async def test_the_user_that_it_gets_in_a_cluster_is_enough_and_may_write_nothing(
    redis: Redis,
) -> None:
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    event = Event(id="job-1", source="/test", type="t", data=b"x")
    await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
    async with scaler_user(redis, SCALER_MAY) as as_scaler:
        source = QueueSource(as_scaler)
        seen = [await source.look("jobs", "m")]
        await queue.send([queue.settle_call((await queue.claim(1))[0].ticket)])
        seen.append(await source.look("jobs", "m"))
        with pytest.raises(NoPermissionError):
            await as_scaler.set("torpor:x", "1")
    assert [(len(look.waiting), len(look.finished)) for look in seen] == [(1, 0), (0, 1)]


async def test_a_draining_replica_is_not_counted(redis: Redis) -> None:
    directory = ReplicaDirectory(redis)
    await directory.report("m", "stays", "ready", {})
    await directory.report("m", "goes", "draining", {})

    look = await QueueSource(redis).look("jobs", "m")

    assert (look.ready, look.existing) == (1, 1)


async def test_a_job_with_slack_does_not_wake_it_yet(redis: Redis) -> None:
    queue = Queue(redis, "jobs", "test")
    await queue.ensure()
    event = Event(id="job-1", source="/test", type="t", data=b"x")
    patient = NOW | {"p95WaitSeconds": "600"}
    async with served(QueueSource(redis)) as keda:
        await keda.is_active(patient)
        await queue.send([queue.put_call(event, lane=Lane.DEFAULT, tenant="a")])
        seen = []
        for _ in range(15):
            await asyncio.sleep(0.02)
            seen.append(await keda.is_active(patient))
    assert not any(seen)


async def test_a_replica_is_kept_while_a_job_comes_back_to_it_from_its_tools(redis: Redis) -> None:
    await Queue(redis, "jobs", "test").ensure()
    directory, source = ReplicaDirectory(redis), QueueSource(redis)
    for name in ("pod-a", "pod-b"):
        await directory.report("m", name, "ready", {})
    scaler = Scaler(read_metadata({"coldStartSeconds": "30"}, queue="jobs", model="m"))
    expected, now_ms = keys.queue("jobs", "expected"), 1000 * (await redis.time())[0]
    elsewhere = {"pod-c job_3": now_ms + 60_000}  # it has gone
    await redis.zadd(expected, {"pod-a job_1": now_ms + 60_000, "pod-a job_2": now_ms + 60_000})
    await redis.zadd(expected, elsewhere)
    while_out = await source.look("jobs", "m")
    kept = scaler.see(while_out, 0.0), scaler.see(while_out, 100.0)
    await redis.zadd(expected, {"pod-a job_1": now_ms - 1, "pod-a job_2": now_ms - 1})
    after = await source.look("jobs", "m")

    assert (while_out.held, kept) == (1, (1, 1))
    assert (after.held, scaler.see(after, 101.0)) == (0, 0)
