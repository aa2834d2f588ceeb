"""What a waiting client is told: its place, and what wakes for it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from redis.asyncio import Redis

from api.job.waiting import QueueWaiting
from eventing.broker.queue.queue import Queue
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.job.job import JobState, Lane
from eventing.replica import ReplicaDirectory
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result, sse_events


@pytest.fixture
async def queue(rig: Rig, redis: Redis) -> AsyncIterator[Queue]:
    """The model's queue; whatever the rig publishes stands in it."""
    made = Queue(redis, "requests-m", "test")
    await made.ensure()

    async with asyncio.TaskGroup() as group:

        async def put(event: Event) -> None:
            await made.send([made.put_call(event, lane=Lane.DEFAULT, tenant="default")])

        rig.broker.on_event = lambda event: group.create_task(put(event))  # type: ignore[assignment, return-value]
        yield made


async def look(rig: Rig, job_id: str) -> dict[str, object]:
    """What is told of the wait, once the job's event stands in the queue."""
    async with asyncio.timeout(60):
        while True:
            waiting = (await rig.client.get(f"/v1/jobs/{job_id}")).json()["waiting"]
            if "position" in waiting:
                return dict(waiting)
            await asyncio.sleep(0.02)


async def test_a_waiting_job_knows_its_place(rig: Rig, queue: Queue) -> None:
    first = await rig.submit()
    assert (await look(rig, first))["position"] == 0

    assert (await look(rig, await rig.submit()))["position"] == 1


async def test_a_model_without_a_replica_is_asleep(rig: Rig, queue: Queue) -> None:
    assert (await look(rig, await rig.submit()))["phase"] == "asleep"


async def test_the_phase_is_the_one_of_the_replica_that_is_furthest(
    rig: Rig, queue: Queue, redis: Redis
) -> None:
    directory = ReplicaDirectory(redis)
    await directory.report("m", "late", "import", {}, age_ms=100)
    await directory.report("m", "early", "weights", {}, age_ms=5_000)

    waiting = await look(rig, await rig.submit())

    assert (waiting["phase"], waiting["replicas"]) == ("weights", 2)


async def test_a_draining_replica_is_not_counted_for_a_waiting_job(
    rig: Rig, queue: Queue, redis: Redis
) -> None:
    await ReplicaDirectory(redis).report("m", "leaving", "draining", {})

    waiting = await look(rig, await rig.submit())

    assert (waiting["phase"], waiting["replicas"]) == ("asleep", 0)


async def test_a_waiting_caller_sees_why_no_replica_starts_until_one_does(
    rig: Rig, queue: Queue, redis: Redis
) -> None:
    directory = ReplicaDirectory(redis)
    await directory.report_failure("m", "no such model")

    failed = await look(rig, await rig.submit())
    await directory.report("m", "other", "weights", {})
    waking = await look(rig, await rig.submit())
    await directory.report("m", "other", "ready", {})

    assert (failed["reason"], failed["replicas"], failed["phase"]) == ("no such model", 0, "asleep")
    assert waking["reason"] == "no such model"
    assert await directory.failure("m") == ""


async def test_a_stream_has_an_event_for_each_new_phase(
    rig: Rig, queue: Queue, redis: Redis
) -> None:
    job_id = await rig.submit()
    directory = ReplicaDirectory(redis)
    phases: list[str] = []

    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        async for event in sse_events(answer.aiter_lines()):
            if event.get("event") != "waking":
                continue
            phases.append(orjson.loads(event["data"])["phase"])
            assert "id" not in event
            if len(phases) == 2:
                break
            await directory.report("m", "r", "import", {})

    assert phases == ["asleep", "import"]


async def test_a_job_that_runs_does_not_wait(rig: Rig, queue: Queue) -> None:
    job_id = await rig.submit()
    await rig.predictor(job_id)

    assert "waiting" not in (await rig.client.get(f"/v1/jobs/{job_id}")).json()


async def test_with_no_queue_to_look_at_only_replicas_are_known(rig: Rig, redis: Redis) -> None:
    """A Knative Broker keeps its queue to itself."""
    job_id = await rig.submit()
    job = await rig.store.get(job_id)  # type: ignore[arg-type]
    assert job is not None

    outlook = await QueueWaiting(redis, SystemClock()).outlook(replace(job, lane=Lane.BATCH))

    assert outlook is not None
    assert (outlook.position, outlook.phase) == (None, "asleep")


async def test_the_cold_start_of_a_job_is_shown_after_its_replica_ended(
    rig: Rig, queue: Queue, redis: Redis
) -> None:
    notes = rig.parts.past_waking
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    job = await rig.store.get(predictor.job_id)
    assert job is not None
    (attempt,) = job.history
    directory = ReplicaDirectory(redis)
    await directory.report("m", attempt.owner, "ready", {"import": 2.0, "weights": 1.5})
    await predictor.finish(chat_result("x"))
    ended = replace(job, created_ms=job.created_ms - 3_000)

    await notes.ended(replace(job, started_ms=job.created_ms + 100))  # waited for nobody
    assert await notes.of(replace(job, state=JobState.COMPLETED)) == []
    await notes.ended(ended)
    await directory.remove("m", attempt.owner)
    await notes.ended(ended)  # told twice

    told = (await rig.client.get(f"/v1/jobs/{job_id}?include=timeline")).json()["timeline"]
    waking = [(s["phase"], s["duration_ms"]) for s in told["steps"] if s["step"] == "waking"]
    assert waking == [("import", 2000), ("weights", 1500)]
