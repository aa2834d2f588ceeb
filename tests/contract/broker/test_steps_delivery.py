"""The steps process beside brokers: ours, whose queues it writes, and another's, which gets events by notes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from eventing.broker.advance import Advance
from eventing.broker.delivery.dead_letter import DeadLetterHandler
from eventing.broker.delivery.decision import DeliverySpec, SubscriberResponse
from eventing.broker.queue.claim import Claimed
from eventing.broker.trigger import Trigger
from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import PLANNED, PREPARED, REQUESTED, request_event
from eventing.job.job import Job, JobId, JobState, derive_job_id
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import StepStatus
from eventing.job.step import StepRun
from eventing.job.store import NewJob
from eventing.outbox.publisher import OutboxPublisher
from eventing.store.steps.redis_steps import RedisStepStore
from steps.server import StepServer
from steps.settings import StepsSettings
from tests.contract.broker.stack import FAST, Subscriber, build, pumping, says, until
from tests.contract.rig import job_id, new_job

PIPELINES: dict[str, Any] = {"m": {"steps": ["no-op", {"step": "away", "on_failure": "continue"}]}}
PLAN = parse_pipelines(PIPELINES)["m"]


def planned(event_id: str = "1") -> NewJob:
    return replace(new_job(event_id), plan=PLAN)


@asynccontextmanager
async def serving(
    redis: Redis,
    broker: Subscriber,
    folder: Path,
    plans: str = "m: {steps: [no-op, no-op-2]}",
    **more: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, StepServer]]:
    """A steps process in this one, beside an external broker."""
    (folder / "pipelines.yaml").write_text(plans)
    settings = StepsSettings(
        redis_url=_url(redis),
        broker_url=broker.url,
        pipelines_file=folder / "pipelines.yaml",
        **more,
    )
    server = StepServer(settings)
    transport = httpx.ASGITransport(app=server.app())
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://steps") as client:
            yield client, server
    finally:
        await server.close()


def _url(redis: Redis) -> str:
    kwargs = redis.connection_pool.connection_kwargs
    return f"redis://{kwargs['host']}:{kwargs['port']}/{kwargs.get('db', 0)}"


async def post(client: httpx.AsyncClient, event: Event, **headers: str) -> httpx.Response:
    own, body = build_binary(event)
    return await client.post("/events", content=body, headers={**own, **headers})


async def job_of(store: RedisStepStore, of: JobId) -> Job:
    job = await store.get(of)
    assert job is not None
    return job


async def test_an_external_broker_gets_the_event_of_the_next_step(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, server):
        job, _ = await store.submit(planned())

        answer = await post(client, request_event(job))

        assert answer.status_code == 200
        job = await job_of(store, job_id())
        assert (job.step, job.steps[0].status) == ("away", StepStatus.COMPLETED)
        # A note until the broker has it: a process that dies now leaves it to the sweep.
        assert await redis.zrange("torpor:outbox:requests", 0, -1) == [job_id().encode()]
        assert isinstance(server.route, OutboxPublisher)
        publishing = asyncio.ensure_future(server.run_background())
        await until(lambda: _is_empty(redis))
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        (event,) = broker.got
        assert (event.type, event.extensions["step"]) == (PLANNED, "away")
        assert event.identity == request_event(job).identity


async def _is_empty(redis: Redis) -> bool:
    return not await redis.zcard("torpor:outbox:requests")


async def test_a_second_delivery_of_a_step_sends_the_same_event_again(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, _):
        job, _ = await store.submit(planned())
        first = request_event(job)
        await post(client, first)
        before = await job_of(store, job_id())

        answer = await post(client, first)

        assert answer.status_code == 200
        assert await job_of(store, job_id()) == before
        (event,) = broker.got
        assert (event.type, event.extensions["step"]) == (PLANNED, "away")


async def test_a_strangers_request_through_an_external_broker_gets_its_plan(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, server):
        data = new_job().request.to_json()
        asked = Event(
            id="7", source="/shop", type=REQUESTED, datacontenttype="application/json", data=data
        )

        first = await post(client, asked)
        again = await post(client, asked)

        assert (first.status_code, again.status_code) == (200, 200)
        job = await job_of(store, derive_job_id("/shop", "7"))
        assert (job.step, job.state) == ("no-op", JobState.QUEUED)
        (event,) = broker.got  # of the duplicate; the first is with the outbox of this process
        assert (event.type, event.extensions["step"]) == (PLANNED, "no-op")
        assert server.route is not None


async def test_a_request_that_is_no_job_fails_and_is_not_delivered_again(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber()
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, _):
        asked = Event(id="8", source="/shop", type=REQUESTED, data=b"{no")

        answer = await post(client, asked)

        assert answer.status_code == 200
        job = await job_of(store, derive_job_id("/shop", "8"))
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)


async def test_a_job_from_before_its_model_had_steps_goes_to_its_predictor(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, server):
        job, _ = await store.submit(new_job())

        await post(client, request_event(job))

        job = await job_of(store, job_id())
        assert request_event(job).type == PREPARED
        assert await redis.zcard("torpor:outbox:requests") == 1
        assert server.route is not None


async def test_a_delivery_without_the_token_is_refused(redis: Redis, tmp_path: Path) -> None:
    broker = Subscriber()
    async with (
        broker.serving(),
        serving(redis, broker, tmp_path, delivery_token="secret") as (client, _),
    ):
        job, _ = await RedisStepStore(redis).submit(planned())

        refused = await post(client, request_event(job))
        taken = await post(client, request_event(job), authorization="Bearer secret")

        assert (refused.status_code, taken.status_code) == (401, 200)


async def test_a_step_that_this_process_does_not_have_is_tried_again(
    redis: Redis, tmp_path: Path
) -> None:
    store = RedisStepStore(redis)
    broker = Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, _):
        job, _ = await store.submit(planned())
        await post(client, request_event(job))

        answer = await post(client, request_event(await job_of(store, job_id())))

        assert answer.status_code == 404
        assert (await job_of(store, job_id())).step == "away"


def triggers_of(subscriber: str, delivery: DeliverySpec = FAST) -> list[Trigger]:
    return [
        Trigger(
            name=name,
            subscriber=subscriber,
            delivery=delivery,
            filters=({"exact": wanted},),
            parallelism=4,
        )
        for name, wanted in (
            ("step-no-op", {"type": PLANNED, "step": "no-op"}),
            ("step-away", {"type": PLANNED, "step": "away"}),
            ("requests-m", {"type": PREPARED}),
        )
    ]


@pytest.mark.parametrize(("failing", "ends"), [("away", "queued"), ("no-op", "failed")])
async def test_a_step_whose_tries_are_used_up_is_skipped_or_fails_its_job(
    redis: Redis, failing: str, ends: str
) -> None:
    subscriber = Subscriber(answers=[says(500)])
    async with subscriber.serving():
        stacks = build(redis, *triggers_of(subscriber.url, replace(FAST, retry=1)))
        store, router = stacks[0].store, stacks[0].router
        made, _ = await store.submit(planned())
        if failing == "away":
            begun = await store.begin_step(made.id, "no-op")
            assert begun.job is not None
            made = begun.job
            await Advance(store, router).go_on(
                made, StepRun.of(made, "no-op"), StepStatus.COMPLETED, {}
            )
        else:
            await router.route(request_event(made))
        steps = [each for each in stacks if each.trigger.name != "requests-m"]
        async with pumping(*steps):
            await until(lambda: _is_settled(store, made.id, failing))

        job = await job_of(store, made.id)
        assert job.state == ends
        shown = {each.step: (each.status, dict(each.detail)) for each in job.steps}
        if failing == "away":
            assert shown["away"] == (StepStatus.SKIPPED, {"reason": "unavailable"})
            assert job.step == ""
            assert await redis.hlen("torpor:{requests-m}:events") == 1
        else:
            assert shown["no-op"][0] is StepStatus.FAILED
            assert job.is_dead_letter
            assert job.error is not None
            assert job.error.code == "undeliverable"
            assert "no-op" in job.error.message


async def test_a_step_that_is_unavailable_is_waited_for_long_after_its_retries_and_spends_no_try(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventing.broker.delivery.pump.CLAIM_IDLE_MS", 10)
    monkeypatch.setattr("eventing.process.readiness._LONGEST_PAUSE_S", 0.01)
    away = [says(503)] * 40
    subscriber = Subscriber(answers=[*away, says(500), says(204)])
    async with subscriber.serving():
        (step, *_) = build(redis, *triggers_of(subscriber.url, replace(FAST, retry=2)))
        made, _ = await step.store.submit(planned())
        await step.router.route(request_event(made))
        async with pumping(step):
            await until(step.is_drained, timeout_s=120)

    assert len(subscriber.got) == len(away) + 2
    job = await job_of(step.store, made.id)
    assert (job.state, job.step) == (JobState.QUEUED, "no-op")


@pytest.mark.parametrize("ends", ["late", "skipped"])
async def test_a_step_that_is_unavailable_is_given_up_when_its_job_is_late_or_may_go_on(
    redis: Redis, ends: str
) -> None:
    subscriber = Subscriber(answers=[says(503)])
    plan = {"steps": [{"step": "no-op", "on_failure": "continue"}]} if ends == "skipped" else None
    new = replace(
        planned(),
        plan=parse_pipelines({"m": plan})["m"] if plan else PLAN,
        deadline_ms=0 if plan else 1,
    )
    async with subscriber.serving():
        (step, *_) = build(redis, *triggers_of(subscriber.url, replace(FAST, retry=1)))
        made, _ = await step.store.submit(new)
        await step.router.route(request_event(made))
        async with pumping(step):
            await until(lambda: _is_settled(step.store, made.id, "no-op"))

    job = await job_of(step.store, made.id)
    status = StepStatus.SKIPPED if plan else StepStatus.FAILED
    assert next(each.status for each in job.steps) is status


@pytest.mark.parametrize(("code", "ends"), [("503", "queued"), ("500", "failed")])
async def test_a_step_that_another_broker_gave_up_as_unavailable_is_published_again(
    redis: Redis, code: str, ends: str
) -> None:
    subscriber = Subscriber()
    async with subscriber.serving():
        (step, *_) = build(redis, *triggers_of(subscriber.url))
        made, _ = await step.store.submit(planned())
        event = request_event(made)
        given_up = replace(event, extensions={**event.extensions, "knativeerrorcode": code})
        relay = replace(step.trigger, retry_span_s=0.001)
        await asyncio.sleep(0.002)
        handler = DeadLetterHandler(redis, step.store, step.router)
        claimed = Claimed(ticket="1-0", event=given_up, tries=1, enqueued_ms=0)

        assert await handler.record(relay, claimed, "given up", SubscriberResponse(status=0))

    assert (await job_of(step.store, made.id)).state == ends


async def _is_settled(store: RedisStepStore, of: JobId, step: str) -> bool:
    job = await job_of(store, of)
    return job.step != step or job.state.is_terminal


async def test_a_late_dead_letter_of_a_step_leaves_a_job_that_went_on_alone(redis: Redis) -> None:
    """A duplicate that fails for good must not end a job whose step another delivery has done."""
    subscriber = Subscriber(answers=[says(400)])
    async with subscriber.serving():
        stacks = build(redis, *triggers_of(subscriber.url))
        store, router = stacks[0].store, stacks[0].router
        made, _ = await store.submit(planned())
        late = request_event(made)
        begun = await store.begin_step(made.id, "no-op")
        assert begun.job is not None
        await Advance(store, router).go_on(
            begun.job, StepRun.of(begun.job, "no-op"), StepStatus.COMPLETED, {}
        )
        await router.route(late)
        async with pumping(stacks[0]):
            await until(stacks[0].is_drained)

        job = await job_of(store, made.id)
        assert (job.state, job.step) == (JobState.QUEUED, "away")


async def test_a_step_costs_three_commands_and_a_result_is_read_only_of_a_job_that_may_have_ended(
    redis: Redis, tmp_path: Path
) -> None:
    """The run begins and is read in one round trip, and its outcome is stored in another."""
    store, broker = RedisStepStore(redis), Subscriber(answers=[says(202)])
    async with broker.serving(), serving(redis, broker, tmp_path) as (client, _):
        job, _ = await store.submit(planned())
        event = request_event(job)
        warm, _ = await store.submit(planned("2"))
        await post(client, request_event(warm))  # connections, and the scripts
        await redis.config_resetstat()

        first = await post(client, event)

        counted = await redis.info("commandstats")
        told = {
            name: counted[f"cmdstat_{name}"]["calls"]
            for name in ("evalsha", "hgetall")
            if f"cmdstat_{name}" in counted
        }
        assert (first.status_code, first.content) == (200, b"")
        assert told == {"evalsha": 2, "hgetall": 1}
