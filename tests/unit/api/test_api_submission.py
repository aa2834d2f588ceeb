"""Taking a job in, with the store in memory: what is promised whatever the broker does."""

import asyncio
from dataclasses import replace

import pytest

from api.auth.principal import Principal
from api.job.catalog import Catalog
from api.job.concurrency_limiter import ConcurrencyLimiter
from api.job.submission import (
    NEVER_ACCEPTED,
    SubmitDeps,
    SubmitOptions,
    keyed_job_id,
    parse_submit_options,
    submit,
)
from api.settings import ModelCard
from api.webhook.address import AllowList
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable, IdempotencyConflict, InvalidJob, StoreUnavailable
from eventing.job.job import Job, JobError, JobId, JobState, Lane
from eventing.job.store import Ending, NewJob
from eventing.outbox.published import PublishedJobs
from eventing.store.memory_store import MemoryStore

TENANT = Principal(tenant="t")
LINE = {
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


class FakeBroker:
    def __init__(self, *, is_down: bool = False, is_mute: bool = False) -> None:
        self.events: list[Event] = []
        self.is_down = is_down
        self.is_mute = is_mute

    async def publish(self, event: Event) -> None:
        if self.is_mute:
            await asyncio.sleep(3600)
        if self.is_down:
            raise BrokerUnavailable("down")
        self.events.append(event)


class MuteStore(MemoryStore):
    """Accepts connections and never answers."""

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        await asyncio.sleep(3600)
        return await super().create(new)


class RacingStore(MemoryStore):
    """The event did arrive, though the broker's answer did not: a predictor takes the job."""

    async def conclude(self, *args: object) -> object:  # type: ignore[override]
        await self.acquire(args[0], "predictor", can_resume=True)  # type: ignore[arg-type]
        return await super().conclude(*args)  # type: ignore[arg-type]


class SilentStore(MemoryStore):
    """Ends a job, and its answer comes too late."""

    async def conclude(self, *args: object) -> object:  # type: ignore[override]
        await super().conclude(*args)  # type: ignore[arg-type]
        await asyncio.sleep(3600)
        return None


class AdmitAll:
    """No limits."""

    async def admit(self, principal: Principal, new: NewJob) -> None:
        return None

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        return None

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        return None


def deps(broker: FakeBroker, store: MemoryStore | None = None) -> SubmitDeps:
    return SubmitDeps(
        catalog=Catalog((ModelCard(name="m"),)),
        store=store or MemoryStore(),
        publisher=broker,
        intake=None,
        published=PublishedJobs(),
        admission=AdmitAll(),
        limiter=ConcurrencyLimiter(),
        clock=SystemClock(),
        webhook_allow=AllowList(),
        submit_timeout_s=0.5,
    )


async def test_a_job_is_recorded_and_published() -> None:
    broker = FakeBroker()
    job, is_new = await submit(deps(broker), TENANT, LINE, SubmitOptions())

    assert is_new
    assert job.state is JobState.QUEUED
    assert [event.subject for event in broker.events] == [job.id]


async def test_a_broker_that_is_down_is_a_refusal_and_the_job_never_runs() -> None:
    made = deps(FakeBroker(is_down=True))

    with pytest.raises(BrokerUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions())

    (job,) = (await made.store.list_jobs("t")).jobs
    assert job.state is JobState.CANCELLED


async def test_a_broker_that_never_answers_is_given_up_in_time() -> None:
    started_s = asyncio.get_running_loop().time()

    with pytest.raises(BrokerUnavailable):
        await submit(deps(FakeBroker(is_mute=True)), TENANT, LINE, SubmitOptions())

    assert asyncio.get_running_loop().time() - started_s < 0.6


async def test_a_store_that_never_answers_is_given_up_in_time() -> None:
    started_s = asyncio.get_running_loop().time()

    with pytest.raises(StoreUnavailable):
        await submit(deps(FakeBroker(), MuteStore()), TENANT, LINE, SubmitOptions())

    assert asyncio.get_running_loop().time() - started_s < 0.6


async def test_a_job_that_runs_in_spite_of_the_brokers_silence_is_accepted() -> None:
    made = deps(FakeBroker(is_down=True), RacingStore())

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions())

    current = await made.store.get(job.id)
    assert is_new
    assert current is not None
    assert current.state is JobState.IN_PROGRESS


class FakeIntake:
    """Records; then fails as it is told."""

    def __init__(self, store: MemoryStore, failure: Exception | None = None) -> None:
        self._store = store
        self._failure = failure

    async def take(self, new: NewJob) -> Job:
        job, _ = await self._store.create(new)
        if self._failure is not None:
            raise self._failure
        return job


class Places(AdmitAll):
    """Limits that remember who gave a place back."""

    def __init__(self) -> None:
        self.given_back: list[JobId] = []

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        self.given_back.append(job_id)


async def test_a_job_without_a_key_goes_the_short_way() -> None:
    store, broker = MemoryStore(), FakeBroker()
    made = replace(deps(broker, store), intake=FakeIntake(store))

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions())

    assert is_new
    assert await store.get(job.id) is not None
    assert not broker.events


async def test_a_job_with_a_key_does_not() -> None:
    store, broker = MemoryStore(), FakeBroker()
    made = replace(deps(broker, store), intake=FakeIntake(store, AssertionError()))

    job, _ = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    assert [event.subject for event in broker.events] == [job.id]


@pytest.mark.parametrize("failure", [StoreUnavailable("full", 2.0), TimeoutError()], ids=repr)
async def test_what_may_not_have_arrived_is_withdrawn(failure: Exception) -> None:
    store = MemoryStore()
    made = replace(deps(FakeBroker(), store), intake=FakeIntake(store, failure))

    with pytest.raises(StoreUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions())

    (job,) = (await store.list_jobs("t")).jobs
    assert job.state is JobState.CANCELLED


async def test_what_was_withdrawn_gives_its_place_among_the_tenants_jobs_back() -> None:
    store, places = MemoryStore(), Places()
    intake = FakeIntake(store, StoreUnavailable("full", 2.0))
    made = replace(deps(FakeBroker(), store), intake=intake, admission=places)

    with pytest.raises(StoreUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions())

    (job,) = (await store.list_jobs("t")).jobs
    assert places.given_back == [job.id]


async def test_what_runs_though_nobody_heard_that_it_arrived_is_accepted() -> None:
    store = RacingStore()
    away = StoreUnavailable("the answer was lost")
    made = replace(deps(FakeBroker(), store), intake=FakeIntake(store, away))

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions())

    assert is_new
    found = await store.get(job.id)
    assert found is not None
    assert found.state is JobState.IN_PROGRESS


async def test_a_job_that_may_have_been_withdrawn_is_not_promised() -> None:
    # 200 submits at once on a busy machine found it: 202 for jobs that ended as never accepted.
    broker = FakeBroker(is_down=True)
    made = deps(broker, SilentStore())
    with pytest.raises(BrokerUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    broker.is_down = False

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    assert is_new
    assert (job.state, job.id) == (JobState.QUEUED, keyed_job_id("t", "k", 1))


async def test_a_key_goes_on_behind_a_withdrawn_try() -> None:
    broker = FakeBroker(is_down=True)
    made = deps(broker)
    with pytest.raises(BrokerUnavailable):
        await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    broker.is_down = False

    first, _ = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    again, is_new = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    assert first.id == again.id == keyed_job_id("t", "k", 1)
    assert not is_new


async def test_a_key_outlives_any_number_of_refused_tries() -> None:
    # A client that asks every 2 s, as it is told to, had used its key up after half a minute.
    broker = FakeBroker(is_down=True)
    made = deps(broker)
    for _ in range(37):
        with pytest.raises(BrokerUnavailable):
            await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    broker.is_down = False

    job, is_new = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    again, _ = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    assert is_new
    assert job.id == again.id == keyed_job_id("t", "k", 37)


class CountingStore(MemoryStore):
    """Counts reads, and how often somebody waits for reads that go out together."""

    reads = round_trips = _under_way = 0

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        self.asked_for = new
        return await super().create(new)

    async def refuse(self, key: str, generations: range) -> None:
        """As a submit leaves them that was withdrawn."""
        refusal = Ending(state=JobState.CANCELLED, error=JobError(code=NEVER_ACCEPTED, message=""))
        for generation in generations:
            job_id = keyed_job_id("t", key, generation)
            await self.create(replace(self.asked_for, id=job_id, event_id=job_id))
            await self.conclude(job_id, refusal)

    async def get(self, job_id: JobId) -> Job | None:
        self.reads += 1
        self.round_trips += not self._under_way
        self._under_way += 1
        await asyncio.sleep(0)
        self._under_way -= 1
        return await super().get(job_id)


@pytest.mark.parametrize("tries", [1, 2, 15, 16, 17, 300, 2_000])
async def test_a_key_is_found_behind_many_refused_tries_in_few_round_trips(tries: int) -> None:
    # F17 on a busy machine: 22 reads one after another took longer than a submit may, each time.
    store = CountingStore()
    with pytest.raises(BrokerUnavailable):
        await submit(
            deps(FakeBroker(is_down=True), store), TENANT, LINE, SubmitOptions(idempotency_key="k")
        )
    await store.refuse("k", range(1, tries))
    store.reads = store.round_trips = 0

    job, _ = await submit(
        deps(FakeBroker(), store), TENANT, LINE, SubmitOptions(idempotency_key="k")
    )

    assert job.id == keyed_job_id("t", "k", tries)
    assert store.round_trips <= 4
    assert store.reads <= 80


async def test_a_key_belongs_to_its_tenant() -> None:
    made = deps(FakeBroker())

    mine, _ = await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))
    yours, _ = await submit(made, Principal(tenant="u"), LINE, SubmitOptions(idempotency_key="k"))

    assert mine.id != yours.id


async def test_a_key_with_another_body_is_a_conflict() -> None:
    made = deps(FakeBroker())
    await submit(made, TENANT, LINE, SubmitOptions(idempotency_key="k"))

    with pytest.raises(IdempotencyConflict):
        await submit(made, TENANT, LINE | {"custom_id": "x"}, SubmitOptions(idempotency_key="k"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True, id="well-formed"),
        pytest.param("00-" + "A" * 32 + "-" + "b" * 16 + "-01", False, id="capitals"),
        pytest.param("00-" + "a" * 31 + "-" + "b" * 16 + "-01", False, id="short"),
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
