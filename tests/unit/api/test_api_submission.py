"""Submitting a job, with the store in memory: no answer claims more than was recorded, whatever store and broker
do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from api.auth.principal import Principal
from api.job.catalog import Catalog
from api.job.submission import SubmitDeps, keyed_job_id, submit
from api.job.submit_options import JOB_SCHEMA, SubmitOptions, parse_submit_options
from api.limit.concurrency_limiter import ConcurrencyLimiter
from eventing.broker.intake import Intake
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.errors import (
    BrokerUnavailable,
    EventTooLarge,
    IdempotencyConflict,
    InvalidJob,
    StoreUnavailable,
)
from eventing.job.job import Job, JobId, JobState, Lane
from eventing.job.store import ARRIVED, NewJob, Publication
from eventing.outbox.publisher import OutboxPublisher
from eventing.process.egress import AllowList
from eventing.redis.connection import connect
from eventing.settings import ModelCard
from eventing.store.conversation.store import Conversations
from eventing.store.memory_store import MemoryStore
from tests.awake import awake_s

TENANT = Principal(tenant="t")
LINE = {
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
KEYED = SubmitOptions(idempotency_key="k")


class FakeBroker:
    """Keeps what it was given; `is_mute` makes it hang."""

    def __init__(self, *, is_mute: bool = False) -> None:
        self.events: list[Event] = []
        self.is_mute = is_mute

    async def publish(self, event: Event) -> None:
        if self.is_mute:
            await asyncio.sleep(3600)
        self.events.append(event)

    async def close(self) -> None:
        """Nothing is held open."""


class MuteStore(MemoryStore):
    """Accepts connections and never answers; what it was told, it does."""

    is_mute = True

    async def submit(self, new: NewJob, publication: Publication = ARRIVED) -> tuple[Job, bool]:
        answer = await super().submit(new, publication)
        if self.is_mute:
            await asyncio.sleep(3600)
        return answer


class Places:
    """No limits, but remembers who gave a place back."""

    def __init__(self) -> None:
        self.given_back: list[JobId] = []

    @asynccontextmanager
    async def turn(self, principal: Principal, new: NewJob, wait_s: float) -> AsyncIterator[bool]:
        yield False

    async def admit(self, principal: Principal, new: NewJob) -> None:
        return None

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        return None

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        self.given_back.append(job_id)

    async def on_unrecorded(self, new: NewJob) -> None:
        self.given_back.append(new.id)


def deps(
    broker: FakeBroker | None = None,
    store: MemoryStore | None = None,
    *,
    most: int = 10,
    limit_bytes: int = 0,
) -> SubmitDeps:
    route = OutboxPublisher(
        broker or FakeBroker(), max_unpublished=most, event_limit_bytes=limit_bytes
    )
    return SubmitDeps(
        catalog=Catalog((ModelCard(name="m"),)),
        intake=Intake(store or MemoryStore(), route),
        admission=Places(),
        limiter=ConcurrencyLimiter(),
        clock=SystemClock(),
        conversations=Conversations(connect("redis://127.0.0.1:1")),  # never asked
        webhook_allow=AllowList(),
        submit_timeout_s=0.5,
    )


async def test_a_job_is_recorded_and_its_event_noted() -> None:
    store = MemoryStore()
    made = deps(store=store)

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions())

    assert is_new
    assert job.state is JobState.QUEUED
    assert await store.get(job.id) == job


async def test_its_event_is_published_right_after() -> None:
    store, broker = MemoryStore(), FakeBroker()
    route = OutboxPublisher(broker, max_unpublished=10)
    made = replace(deps(broker, store), intake=Intake(store, route))
    publishing = asyncio.ensure_future(route.run(store))

    job, _ = await submit(made, TENANT, LINE, SubmitOptions())

    async with asyncio.timeout(60):
        while store._index.unpublished:
            await asyncio.sleep(0.001)
    assert [event.subject for event in broker.events] == [job.id]
    publishing.cancel()


async def test_no_submit_waits_for_the_broker_and_none_is_taken_back() -> None:
    # A posts with a key and its publish hangs; B posts the same and has 202; A's submit failed
    # and withdrew the job that B was promised.
    store, broker = MemoryStore(), FakeBroker(is_mute=True)
    route = OutboxPublisher(broker, max_unpublished=10)
    made = replace(deps(broker, store), intake=Intake(store, route))
    publishing = asyncio.ensure_future(route.run(store))

    first, is_new = await submit(made, TENANT, LINE, KEYED)
    again, is_second_new = await submit(made, TENANT, LINE, KEYED)
    await asyncio.sleep(0)

    assert (is_new, is_second_new) == (True, False)
    assert first.id == again.id
    job = await store.get(first.id)
    assert job is not None
    assert job.state is JobState.QUEUED
    publishing.cancel()


async def test_with_too_many_unpublished_nothing_is_taken() -> None:
    store, places = MemoryStore(), Places()
    made = deps(store=store, most=1)
    made = replace(made, admission=places)
    await submit(made, TENANT, LINE, SubmitOptions())

    with pytest.raises(BrokerUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions())

    assert len((await store.list_jobs("t")).jobs) == 1
    assert len(places.given_back) == 1


async def test_a_job_over_what_the_broker_takes_is_refused_before_it_is_recorded() -> None:
    store = MemoryStore()
    made = deps(store=store, limit_bytes=64)

    with pytest.raises(EventTooLarge) as caught:
        await submit(made, TENANT, LINE, SubmitOptions())

    assert caught.value.status == 413
    assert (await store.list_jobs("t")).jobs == ()


async def test_a_store_that_never_answers_is_given_up_in_time_and_its_job_is_found_by_its_key() -> (
    None
):
    store, places = MuteStore(), Places()
    made = replace(deps(store=store), admission=places)
    started_s = awake_s()
    with pytest.raises(StoreUnavailable):
        await submit(made, TENANT, LINE, KEYED)
    assert awake_s() - started_s < 0.6
    store.is_mute = False

    job, is_new = await submit(made, TENANT, LINE, KEYED)

    assert not is_new
    assert (job.state, job.id) == (JobState.QUEUED, keyed_job_id("t", "k"))
    assert places.given_back == []  # it may run: its place mends itself, or its end gives it back


async def test_a_key_belongs_to_its_tenant() -> None:
    made = deps()

    mine, _ = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    yours, _ = await submit(made, Principal(tenant="u"), LINE, SubmitOptions(idempotency_key="k"))

    assert mine.id != yours.id


async def test_a_key_with_another_body_is_a_conflict() -> None:
    made = deps()
    await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    with pytest.raises(IdempotencyConflict):
        await submit(made, TENANT, LINE | {"custom_id": "x"}, SubmitOptions(idempotency_key="k"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True, id="well-formed"),
        pytest.param("00-" + "A" * 32 + "-" + "b" * 16 + "-01", False, id="capitals"),
        pytest.param("00-" + "a" * 31 + "-" + "b" * 16 + "-01", False, id="short"),
        pytest.param("00-" + "0" * 32 + "-" + "b" * 16 + "-01", False, id="no trace"),
        pytest.param("00-" + "a" * 32 + "-" + "0" * 16 + "-01", False, id="no span"),
        pytest.param("x", False, id="garbage"),
    ],
)
def test_a_malformed_traceparent_is_dropped(text: str, kept: bool) -> None:
    assert parse_submit_options({}, {"traceparent": text}).traceparent == (text if kept else "")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "99999999", "soon", "²"])
def test_an_expiry_that_is_no_time_names_its_header(value: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        parse_submit_options({}, {"torpor-expires-after": value})

    assert caught.value.field == "Torpor-Expires-After"


def test_the_lane_is_the_calls_unless_the_line_says() -> None:
    assert parse_submit_options({}, {}, lane=Lane.INTERACTIVE).lane is Lane.INTERACTIVE
    assert parse_submit_options({"priority": "batch"}, {}, lane=Lane.INTERACTIVE).lane is Lane.BATCH


AT_THE_BOUND = {
    "metadata": {f"k{n}": "v" for n in range(16)},
    "name": {"n" * 64: "v"},
    "text": {"k": "v" * 512},
}
OVER_THE_BOUND = {
    "metadata": {f"k{n}": "v" for n in range(17)},
    "name": {"n" * 65: "v"},
    "text": {"k": "v" * 513},
    "no object": "v" * 3,
    "a list": ["v"],
}


@pytest.mark.parametrize("metadata", AT_THE_BOUND.values(), ids=AT_THE_BOUND)
def test_metadata_at_the_bound_is_taken(metadata: dict[str, str]) -> None:
    assert parse_submit_options({"metadata": metadata}, {}).metadata == metadata


@pytest.mark.parametrize("metadata", OVER_THE_BOUND.values(), ids=OVER_THE_BOUND)
def test_metadata_over_the_bound_is_refused(metadata: object) -> None:
    with pytest.raises(InvalidJob, match="metadata"):
        parse_submit_options({"metadata": metadata}, {})


def test_a_deadline_is_at_most_thirty_days_away() -> None:
    month_s = 2_592_000

    assert parse_submit_options({"expires_after": month_s}, {}).expires_after_s == month_s
    for wrong in (month_s + 1, 0, -1, True):
        with pytest.raises(InvalidJob):
            parse_submit_options({"expires_after": wrong}, {})


def test_a_key_has_at_most_255_characters() -> None:
    assert parse_submit_options({}, {"idempotency-key": "k" * 255}).idempotency_key
    with pytest.raises(InvalidJob):
        parse_submit_options({}, {"idempotency-key": "k" * 256})


@pytest.mark.parametrize("seconds", [-1, 0, 0.5, 1, 2_592_000, 2_592_001, True, "1"])
def test_an_expiry_is_refused_exactly_where_its_schema_refuses_it(seconds: object) -> None:
    schema = JOB_SCHEMA["properties"]["expires_after"]
    is_fine = not list(Draft202012Validator(schema).iter_errors(seconds))

    if is_fine:
        assert parse_submit_options({"expires_after": seconds}, {}).expires_after_s == seconds
    else:
        with pytest.raises(InvalidJob):
            parse_submit_options({"expires_after": seconds}, {})
