"""The ledger against a real Valkey: what predictors did outlives them, and nothing counts twice."""

from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from api.routes.usage import usage_view
from eventing.job.job import Job, JobId, JobRequest, JobState, new_job_id
from eventing.job.store import NewJob
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from eventing.telemetry.cost import Price
from eventing.telemetry.metric.ledger import GpuAccount, Ledger, by_name
from tests.redis_server import RedisServer
from tests.time_limits import STORE_S

MODEL = "m|odel:7b"  # names may hold anything


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    return Ledger(redis)


async def a_job(store: RedisStore) -> Job:
    job_id = new_job_id()
    request = JobRequest(url="/v1/completions", body={"model": MODEL, "prompt": "x"})
    new = NewJob(id=job_id, request=request, source="/s", event_id=job_id, tenant="acme")
    job, _ = await store.submit(new)
    return job


async def test_two_predictors_add_up(ledger: Ledger, clock: Clock) -> None:
    accounts = [GpuAccount(ledger, clock, model=MODEL, started_s=100.0) for _ in range(2)]
    clock.now_s = 103.0

    for account in accounts:
        await account.post()

    assert by_name(await ledger.since(3600), "model")[MODEL]["waking_ms"] == 6000


async def test_only_what_was_added_is_posted(ledger: Ledger, clock: Clock) -> None:
    account = GpuAccount(
        ledger, clock, model=MODEL, started_s=100.0, counters=lambda: {"output_tokens": 7}
    )

    for _ in range(3):
        clock.now_s += 1
        await account.post()

    measures = by_name(await ledger.since(3600), "model")[MODEL]
    assert measures == {"waking_ms": 3000, "output_tokens": 7}


async def test_amounts_that_could_not_be_posted_are_posted_later(
    redis_server: Callable[[], RedisServer], clock: Clock
) -> None:
    from eventing.redis.connection import connect

    server = redis_server()
    server.start()
    client = connect(server.url, timeout_s=STORE_S)
    account = GpuAccount(Ledger(client), clock, model=MODEL, started_s=100.0)
    clock.now_s = 104.0
    account.load(1)
    began = account.share_s()
    clock.now_s = 105.0
    account.take("acme", began, is_kept=True)
    server.kill()
    await account.post()

    server.start()
    await account.post()

    rows = await Ledger(client).since(3600)
    await client.aclose()
    assert by_name(rows, "model")[MODEL]["waking_ms"] == 5000
    assert by_name(rows, "tenant")["acme"]["gpu_ms"] == 1000


async def test_a_job_its_tenant_and_its_model_are_charged_its_share(
    ledger: Ledger, clock: Clock, store: RedisStore
) -> None:
    job = await a_job(store)
    account = GpuAccount(ledger, clock, model=MODEL, started_s=100.0)
    account.ready()
    account.load(2)
    began = account.share_s()
    clock.now_s = 110.0

    await account.charge(job.id, account.take(job.tenant, began, is_kept=True))
    await account.post()

    rows = await ledger.since(3600)
    found = await store.get(job.id)
    assert found is not None
    assert found.gpu_ms == 5000
    assert by_name(rows, "tenant")["acme"]["gpu_ms"] == 5000
    assert by_name(rows, "model")[MODEL]["kept_ms"] == 5000


async def test_charges_wait_for_the_next_post_and_are_posted_once(
    ledger: Ledger, clock: Clock
) -> None:
    account = GpuAccount(ledger, clock, model=MODEL, started_s=100.0)
    account.ready()
    account.load(1)
    for _ in range(2):
        began = account.share_s()
        clock.now_s += 3.0
        account.take("acme", began, is_kept=False)

    before = await ledger.since(3600)
    await account.post()
    await account.post()

    assert not by_name(before, "tenant")
    rows = await ledger.since(3600)
    assert by_name(rows, "tenant")["acme"]["gpu_ms"] == 6000
    assert by_name(rows, "model")[MODEL]["thrown_ms"] == 6000


async def test_a_charge_does_not_recreate_a_deleted_job(ledger: Ledger, redis: Redis) -> None:
    await ledger.charge(JobId("job_" + "0" * 24), 500)

    assert not await redis.exists(keys.job(JobId("job_" + "0" * 24)))


async def test_a_span_of_time_holds_what_was_posted_in_it(ledger: Ledger, redis: Redis) -> None:
    await ledger.post({("model", MODEL): {"busy_ms": 10}})
    (slice_key,) = [k async for k in redis.scan_iter("torpor:{ledger}:*")]
    await redis.rename(slice_key, b"torpor:{ledger}:300")  # as if it were long ago

    await ledger.post({("model", MODEL): {"busy_ms": 1}})

    assert by_name(await ledger.since(3600), "model")[MODEL]["busy_ms"] == 1
    assert by_name(await ledger.totals(), "model")[MODEL]["busy_ms"] == 11


async def test_slices_end_by_themselves(ledger: Ledger, redis: Redis) -> None:
    await ledger.post({("model", MODEL): {"busy_ms": 10}})

    (slice_key,) = [k async for k in redis.scan_iter("torpor:{ledger}:*")]
    assert 0 < await redis.ttl(slice_key) <= 8 * 24 * 3600


async def test_without_a_shared_store_nothing_is_kept(clock: Clock) -> None:
    account = GpuAccount(None, clock, model=MODEL, started_s=100.0)
    job = Job(
        id=new_job_id(), state=JobState.QUEUED, request=JobRequest(url="", body={}), tenant="t"
    )

    assert account.take(job.tenant, 0.0, is_kept=True) == 0
    await account.charge(job.id, 5)
    await account.post()


async def test_tenants_together_are_charged_what_everything_cost(ledger: Ledger) -> None:
    await ledger.post(
        {
            ("model", MODEL): {
                "busy_ms": 6000,
                "kept_ms": 6000,
                "idle_ms": 3000,
                "waking_ms": 3000,
            },
            ("tenant", "a"): {"gpu_ms": 4000},
            ("tenant", "b"): {"gpu_ms": 2000},
        }
    )

    view = usage_view([(0, await ledger.since(3600))], Price(per_gpu_hour=3600), 60)

    assert view["total"]["cost"]["total"] == 12.0
    assert {name: row["cost_all_in"] for name, row in view["tenants"].items()} == {
        "a": 8.0,
        "b": 4.0,
    }


async def test_the_overhead_is_what_was_paid_for_what_was_kept(ledger: Ledger) -> None:
    await ledger.post(
        {
            ("model", MODEL): {"busy_ms": 6000, "kept_ms": 4000, "idle_ms": 1500, "waking_ms": 500},
            ("model", "idle"): {"idle_ms": 1000},
        }
    )

    assert await ledger.overhead(MODEL) == 2.0
    assert await ledger.overhead("idle") is None
