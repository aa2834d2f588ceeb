"""Limits over HTTP: counted on Redis, told in headers, refused with an honest Retry-After."""

import asyncio
import math
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError
from redis.asyncio import Redis

from api.limit.in_flight import InFlightJobs
from api.limit.window import LimitMeter, Windows
from eventing.broker.queue.queue import Queue
from eventing.cloudevent.event import Event
from eventing.job.job import JobId, Lane
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from tests.awake import awake_s
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor


@pytest.fixture
def api_with(redis_url: str, store: RedisStore, redis: Redis) -> Any:
    def make(**fields: Any) -> AbstractAsyncContextManager[ApiWithJobs]:
        return api_with_jobs(settings_for(redis_url, **fields), store)

    return make


def meter(tenant: str, limit: int) -> LimitMeter:
    return LimitMeter(name="tokens", tenant=tenant, limit=limit)


async def test_requests_over_the_limit_are_429_with_the_time_to_wait(api_with: Any) -> None:
    async with api_with(limit_requests_per_minute=3) as api:
        answers = [await api.client.post("/v1/jobs", json=chat_line()) for _ in range(4)]

    assert [a.status_code for a in answers] == [202, 202, 202, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["2", "1", "0", "0"]
    assert 1 <= int(answers[3].headers["retry-after"]) <= 120
    assert answers[3].json()["code"] == "rate_limit_exceeded"


async def test_looking_is_free(api_with: Any) -> None:
    async with api_with(limit_requests_per_minute=1) as api:
        job_id = await api.submit()
        answers = [await api.client.get(f"/v1/jobs/{job_id}") for _ in range(5)]

    assert {a.status_code for a in answers} == {200}


async def test_the_brokers_deliveries_are_no_tenants_requests(api_with: Any) -> None:
    async with api_with(limit_requests_per_minute=1, delivery_token="b" * 24) as api:
        job_id = await api.submit()
        await (await FakePredictor(api.store, job_id).start()).finish({"choices": []})
        answers = [await api.deliver(job_id, "b" * 24) for _ in range(3)]

    assert {a.status_code for a in answers} == {202}


async def test_openais_client_understands_the_refusal(api_with: Any) -> None:
    async with (
        api_with(limit_tokens_per_minute=20) as api,
        AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client,
    ):
        wish: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        answer = await client.responses.with_raw_response.create(
            model="m", input="hi", background=True, max_output_tokens=16
        )
        with pytest.raises(RateLimitError) as refused:
            await client.chat.completions.create(**wish, max_tokens=10)

    assert answer.headers["x-ratelimit-limit-tokens"] == "20"
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["retry-after"]


async def test_a_call_over_a_whole_minutes_limit_is_refused_for_good(
    api_with: Any,
) -> None:
    line = chat_line()
    line["body"]["max_tokens"] = 60
    async with api_with(limit_tokens_per_minute=50) as api:
        answer = await api.client.post("/v1/jobs", json=line)

    assert answer.status_code == 422
    assert answer.json()["field"] == "body.max_tokens"
    assert "retry-after" not in answer.headers


async def test_jobs_in_flight_are_counted_until_they_end(api_with: Any) -> None:
    async with api_with(limit_jobs_in_flight=2) as api:
        first = await api.submit()
        await api.submit()
        refused = await api.client.post("/v1/jobs", json=chat_line())
        await api.answer(first)
        accepted = await api.client.post("/v1/jobs", json=chat_line())

    assert (refused.status_code, accepted.status_code) == (429, 202)


async def test_a_repeated_key_takes_one_place(api_with: Any) -> None:
    headers = {"idempotency-key": "k"}
    async with api_with(limit_jobs_in_flight=2) as api:
        for _ in range(4):
            await api.submit(headers=headers)
        accepted = await api.client.post("/v1/jobs", json=chat_line())

    assert accepted.status_code == 202


async def test_a_job_whose_end_was_never_heard_of_gives_its_place_back(api_with: Any) -> None:
    async with api_with(limit_jobs_in_flight=1) as api:
        job_id = await api.submit()
        await (await FakePredictor(api.store, job_id).start()).finish({"choices": []})
        accepted = await api.client.post("/v1/jobs", json=chat_line())

    assert accepted.status_code == 202


async def test_a_place_given_back_between_the_count_and_the_look_is_free(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    flight = InFlightJobs(redis)
    first, second = JobId("job_" + "a" * 24), JobId("job_" + "b" * 24)
    await flight.take("t", first, 1)
    look = redis.zrange

    async def look_too_late(*args: Any, **options: Any) -> Any:
        await InFlightJobs(redis).leave("t", first)
        return await look(*args, **options)

    monkeypatch.setattr(redis, "zrange", look_too_late)

    assert await flight.take("t", second, 1)


async def test_a_burst_at_once_never_gets_more_places_than_there_are(redis: Redis) -> None:
    flight = InFlightJobs(redis)

    taken = await asyncio.gather(*(flight.take("t", f"job_{n:024x}", 10) for n in range(50)))  # type: ignore[arg-type]

    assert sum(taken) <= 10


async def test_limits_of_tenants_are_independent(redis: Redis) -> None:
    windows = Windows(redis)

    first = [(await windows.take(meter("a", 2), 1))[0] for _ in range(3)]
    other, _ = await windows.take(meter("b", 2), 1)

    assert first == [True, True, False]
    assert other


async def test_a_burst_at_once_never_gets_more_than_the_limit(redis: Redis) -> None:
    windows = Windows(redis)

    answers = await asyncio.gather(*(windows.take(meter("t", 20), 1) for _ in range(60)))

    assert sum(is_taken for is_taken, _ in answers) == 20


async def test_the_window_says_when_there_is_room(redis: Redis) -> None:
    windows = Windows(redis)
    await windows.take(meter("t", 100), 100)

    is_taken, window = await windows.take(meter("t", 100), 50)

    assert not is_taken
    assert window.used == 100
    assert 85 < window.wait_s(50) <= 90  # the rest of this minute, then half of the next


async def fill(
    redis: Redis, count: int, *, age_s: float, per_minute: int, lane: Lane = Lane.DEFAULT
) -> None:
    """A queue of `count` that has stood for `age_s` while `per_minute` were settled."""
    queue = Queue(redis, "requests-m", "test")
    await queue.ensure()
    events = [Event(id=str(n), source="/test", type="t", data=b"{}") for n in range(count)]
    await queue.send([queue.put_call(e, lane=lane, tenant="x") for e in events])
    head = keys.queue("requests-m", "events")
    for member, record in (await redis.hgetall(head)).items():
        _, rest = record.split(b" ", 1)
        stamp = int((time.time() - age_s) * 1000)
        await redis.hset(head, member, b"%d %s" % (stamp, rest))
    minute = int(time.time()) // 60
    pace = keys.queue("requests-m", "pace")
    await redis.hset(pace, mapping={str(minute - n): per_minute for n in range(6)})


async def test_a_job_that_cannot_make_its_deadline_is_refused_at_submit(
    api_with: Any, redis: Redis
) -> None:
    await fill(redis, 100, age_s=120, per_minute=10)
    async with api_with() as api:
        refused = await api.client.post("/v1/jobs", json=chat_line(expires_after=60))
        accepted = await api.client.post("/v1/jobs", json=chat_line(expires_after=3600))
        listed = await api.client.get("/v1/jobs")

    assert refused.status_code == 503
    assert refused.json()["code"] == "deadline_unreachable"
    assert 300 < int(refused.headers["retry-after"]) < 700
    assert [job["id"] for job in listed.json()["data"]] == [accepted.json()["id"]]


@pytest.mark.parametrize(
    ("share", "status"), [(1.25, 202), (0.75, 503)], ids=["after the time it said", "too early"]
)
async def test_the_time_to_wait_for_a_deadline_is_neither_too_short_nor_too_long(
    api_with: Any, redis: Redis, share: float, status: int
) -> None:
    await fill(redis, 100, age_s=120, per_minute=10)
    async with api_with() as api:
        refused = await api.client.post("/v1/jobs", json=chat_line(expires_after=60))
    await redis.flushall()

    # The queue as its own pace leaves it after that time; a share more or less, because the pace
    # of the present minute is not the same a moment later.
    expected_s = int(refused.json()["detail"].split()[3])
    settled = 101 * int(refused.headers["retry-after"]) / expected_s
    left = 100 - min(99, math.ceil(share * settled))
    await fill(redis, left, age_s=120, per_minute=10)
    async with api_with() as api:
        again = await api.client.post("/v1/jobs", json=chat_line(expires_after=60))

    assert again.status_code == status, (left, again.text)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(("/v1/jobs", chat_line(), {"torpor-expires-after": "60"}), id="a job"),
        pytest.param(
            ("/v1/chat/completions", chat_line()["body"], {"torpor-expires-after": "60"}),
            id="a chat completion",
        ),
        pytest.param(
            (
                "/v1/responses",
                {"model": "m", "input": "x", "background": True},
                {"torpor-expires-after": "60"},
            ),
            id="a response",
        ),
    ],
)
async def test_every_way_in_refuses_a_job_that_would_miss_its_deadline(
    api_with: Any, redis: Redis, way: tuple[str, dict[str, Any], dict[str, str]]
) -> None:
    path, body, headers = way
    await fill(redis, 100, age_s=120, per_minute=10, lane=Lane.INTERACTIVE)
    async with api_with() as api:
        refused = await api.client.post(path, json=body, headers=headers)
        listed = await api.client.get("/v1/jobs")

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 300
    assert listed.json()["data"] == []
    assert api.broker.events == []


async def test_with_the_store_unavailable_no_call_passes_a_limit(
    redis_server: Any, redis_url: str
) -> None:
    """Limits fail closed: what cannot be counted is not let in; it says so within 2 s, and the
    count goes on where it was once the store is back.
    """
    server = redis_server(options=["--appendonly", "yes", "--appendfsync", "always"])
    server.start()
    away = RedisStore(connect(server.url, timeout_s=1.5))
    settings = settings_for(
        server.url, limit_requests_per_minute=3, limit_tokens_per_minute=1000, store_timeout_s=1.5
    )
    async with api_with_jobs(settings, away) as api:
        first = await api.client.post("/v1/jobs", json=chat_line())
        server.kill()
        began_s = awake_s()
        refused = await api.client.post("/v1/jobs", json=chat_line())
        took_s = awake_s() - began_s
        server.start()
        later = [await api.client.post("/v1/jobs", json=chat_line()) for _ in range(3)]
    await away.close()

    assert first.status_code == 202
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert took_s < 2
    assert [answer.status_code for answer in later] == [202, 202, 429]


async def test_a_full_queue_refuses_a_submit(api_with: Any, redis: Redis) -> None:
    await fill(redis, 5, age_s=1, per_minute=30)
    async with api_with(limit_queue_depth=5) as api:
        refused = await api.client.post("/v1/jobs", json=chat_line())

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


async def test_without_limits_nothing_is_counted(api_with: Any, redis: Redis) -> None:
    async with api_with() as api:
        answer = await api.client.post("/v1/jobs", json=chat_line())

    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert await redis.keys("torpor:limits*") == []
    assert await redis.keys("torpor:flight*") == []
