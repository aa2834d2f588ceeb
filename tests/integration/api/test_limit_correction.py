"""What a job was charged is corrected by what it took: once, from whichever process hears of it."""

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from api.limit.window import LimitMeter, Windows
from eventing.job.job import JobId, JobState
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import FakePredictor, chat_result

EARLIER = """
for _, key in ipairs(KEYS) do
  local at = redis.call('PEXPIRETIME', key)
  if at > 0 then redis.call('PEXPIREAT', key, at - ARGV[1]) end
end
"""
JOB = JobId("job_" + "a" * 24)
OTHER = JobId("job_" + "b" * 24)
METER = LimitMeter(name="tokens", tenant="t", limit=1000)
ASKED = 41
"""What `chat(40)` is charged: «hi» is one token."""


@pytest.fixture
def api_with(redis_url: str, store: RedisStore, redis: Redis) -> Any:
    def make(**fields: Any) -> AbstractAsyncContextManager[ApiWithJobs]:
        fields = {"limit_tokens_per_minute": 1000} | fields
        return api_with_jobs(settings_for(redis_url, **fields), store)

    return make


def chat(max_tokens: int | None) -> dict[str, Any]:
    line = chat_line()
    if max_tokens:
        line["body"]["max_tokens"] = max_tokens
    return line


async def used(api: ApiWithJobs) -> int:
    """Tokens of the tenant that the window holds now, as a caller is told."""
    answer = await api.client.post("/v1/jobs", json=chat(1))
    return 1000 - int(answer.headers["x-ratelimit-remaining-tokens"]) - 2


async def submit(api: ApiWithJobs, line: dict[str, Any], **headers: str) -> httpx.Response:
    return await api.client.post("/v1/jobs", json=line, headers=headers)


@pytest.mark.parametrize(
    ("max_tokens", "took"),
    [
        pytest.param(40, 10, id="less than asked: given back"),
        pytest.param(None, 10, id="no limit asked: what it took of the context"),
    ],
)
async def test_an_end_corrects_the_estimate(
    api_with: Any, max_tokens: int | None, took: int
) -> None:
    async with api_with() as api:
        job_id = (await submit(api, chat(max_tokens))).json()["id"]
        await api.answer(job_id)

        assert await used(api) == took


async def test_an_end_heard_twice_and_by_two_processes_corrects_once(api_with: Any) -> None:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(api_with()) for _ in range(2)]
        job_id = (await submit(first, chat(40))).json()["id"]
        await first.answer(job_id)
        await asyncio.gather(*(api.deliver(job_id) for api in (first, second) for _ in range(3)))

        assert await used(second) == 10


@pytest.mark.parametrize("has_run", [False, True], ids=["while it waited", "after three tokens"])
async def test_a_cancelled_job_costs_what_it_took(api_with: Any, has_run: bool) -> None:
    async with api_with() as api:
        job_id = (await submit(api, chat(40))).json()["id"]
        if has_run:
            await (await FakePredictor(api.store, job_id).start()).say({"index": 0}, tokens=3)
        await api.client.delete(f"/v1/jobs/{job_id}")
        await api.deliver(job_id)

        assert await used(api) == (4 if has_run else 0)


async def test_a_repeated_key_is_charged_once_and_its_headers_say_so(api_with: Any) -> None:
    key = {"idempotency-key": "k"}
    async with api_with() as api:
        answers = [await submit(api, chat(40), **key) for _ in range(3)]

    told = [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers]
    assert told == [str(1000 - ASKED)] * 3


async def test_the_job_of_a_key_is_corrected_under_its_own_id(api_with: Any) -> None:
    async with api_with() as api:
        job_id = (await submit(api, chat(40), **{"idempotency-key": "k"})).json()["id"]
        await api.answer(job_id)

        assert await used(api) == 10


async def test_a_submit_that_was_refused_is_not_charged(api_with: Any) -> None:
    async with api_with() as api:
        await submit(api, chat(None), **{"idempotency-key": "k"})
        before = await used(api)
        clash = await submit(api, chat(40), **{"idempotency-key": "k"})
        await fill_the_outbox(api)
        refused = await submit(api, chat(40))

        assert (clash.status_code, refused.status_code) == (409, 503)
        assert await used(api) == before + 2  # the look itself


async def test_a_place_is_given_back_by_a_submit_that_was_refused(api_with: Any) -> None:
    async with api_with(limit_jobs_in_flight=1) as api:
        await fill_the_outbox(api)
        assert (await submit(api, chat(None))).status_code == 503
        await api.store.redis.delete(keys.UNPUBLISHED)

        assert (await submit(api, chat(None))).status_code == 202


async def fill_the_outbox(api: ApiWithJobs) -> None:
    """More jobs than the broker may owe: every submit is refused."""
    await api.store.redis.zadd(keys.UNPUBLISHED, {f"job_{n}": 9e12 for n in range(100)})


async def dead_letter(api: ApiWithJobs) -> str:
    job_id = await api.submit()
    await (await FakePredictor(api.store, job_id).start()).fail("broken")
    await api.deliver(job_id)
    return job_id


async def test_a_redriven_job_is_in_flight_again(api_with: Any) -> None:
    async with api_with(limit_jobs_in_flight=1) as api:
        job_id = await dead_letter(api)
        redriven = await api.client.post(f"/v1/dead-letters/{job_id}/redrive")
        refused = await submit(api, chat(None))
        await api.answer(job_id)
        accepted = await submit(api, chat(None))

    assert (redriven.status_code, refused.status_code, accepted.status_code) == (202, 429, 202)


async def test_a_redrive_beyond_the_limit_is_refused_and_stays_a_dead_letter(api_with: Any) -> None:
    async with api_with(limit_jobs_in_flight=1) as api:
        job_id = await dead_letter(api)
        await api.submit()
        one = await api.client.post(f"/v1/dead-letters/{job_id}/redrive")
        all_of_them = await api.client.post("/v1/dead-letters/redrive")
        job = await api.store.get(JobId(job_id))

    assert (one.status_code, all_of_them.status_code) == (429, 429)
    assert one.headers["retry-after"]
    assert job is not None
    assert job.state is JobState.FAILED


async def test_redriving_all_goes_as_far_as_the_limit_and_says_that_there_is_more(
    api_with: Any,
) -> None:
    async with api_with(limit_jobs_in_flight=2) as api:
        letters = {await dead_letter(api) for _ in range(3)}
        answer = (await api.client.post("/v1/dead-letters/redrive")).json()

    assert len(answer["redriven"]) == 2
    assert set(answer["redriven"]) < letters
    assert answer["has_more"]


@pytest.mark.parametrize(
    ("limit", "fields", "line"),
    [
        pytest.param(
            "requests_per_minute", {"limit_requests_per_minute": 1}, chat(None), id="calls"
        ),
        pytest.param("tokens_per_minute", {"limit_tokens_per_minute": 60}, chat(40), id="tokens"),
        pytest.param(
            "tokens_of_one_call",
            {"limit_tokens_per_minute": 20},
            chat(40),
            id="tokens of one call",
        ),
        pytest.param("jobs_in_flight", {"limit_jobs_in_flight": 1}, chat(None), id="jobs"),
    ],
)
async def test_a_refusal_is_counted_under_the_limits_name(
    api_with: Any, limit: str, fields: dict[str, Any], line: dict[str, Any]
) -> None:
    before = REGISTRY.get_sample_value("torpor_api_limited_total", {"limit": limit}) or 0.0
    async with api_with(**fields) as api:
        answers = [await submit(api, line) for _ in range(2)]

    after = REGISTRY.get_sample_value("torpor_api_limited_total", {"limit": limit})
    assert after == before + sum(answer.status_code >= 400 for answer in answers) > before


class TestTheWindow:
    """The correction itself, where time is moved by shortening what the store keeps."""

    @staticmethod
    async def pass_time(redis: Redis, ms: int) -> None:
        """Both windows and the charge as they are `ms` later, in one step of the store."""
        await redis.eval(EARLIER, 2, METER.current, f"{METER.current}/-1", ms)
        if row := await redis.get(METER.charge(JOB)):
            cost, at_ms = row.split(b" ")
            await redis.set(METER.charge(JOB), b"%s %d" % (cost, int(at_ms) - ms))

    @staticmethod
    async def charged(redis: Redis, cost: int) -> Windows:
        windows = Windows(redis)
        assert (await windows.take(METER, cost))[0]
        await windows.charge(METER, JOB, cost)
        return windows

    @pytest.mark.parametrize(
        ("later_s", "previous", "current"),
        [
            pytest.param(1, 0, 100, id="in the same minute, from this window"),
            pytest.param(90, 100, 0, id="in the next one, from the window before"),
        ],
    )
    async def test_unused_tokens_are_returned_to_their_own_window(
        self, redis: Redis, later_s: int, previous: int, current: int
    ) -> None:
        windows = await self.charged(redis, 500)
        await self.pass_time(redis, later_s * 1000)

        back = await windows.settle(METER, JOB, 100)

        window = await windows.look(METER)
        assert (back, window.previous, window.current) == (-400, previous, current)

    @staticmethod
    async def three_minutes_later(redis: Redis, cost: int) -> Windows:
        """A charge of `cost` has faded; the last minute took 300 and this one 50."""
        windows = await TestTheWindow.charged(redis, cost)
        for ms, more in ((119_000, 300), (59_000, 50)):
            await TestTheWindow.pass_time(redis, ms)
            await windows.look(METER)
            await windows.take(METER, more)
        return windows

    @pytest.mark.parametrize(
        ("took", "given", "previous", "current"),
        [
            pytest.param(470, 30, 300, 20, id="to this minute"),
            pytest.param(350, 150, 200, 0, id="and to the last"),
            pytest.param(0, 350, 0, 0, id="as far as they go"),
        ],
    )
    async def test_tokens_of_a_faded_window_are_returned_to_the_current_ones(
        self, redis: Redis, took: int, given: int, previous: int, current: int
    ) -> None:
        windows = await self.three_minutes_later(redis, 500)

        back = await windows.settle(METER, JOB, took)

        window = await windows.look(METER)
        assert (back, window.previous, window.current) == (-given, previous, current)

    async def test_minutes_cannot_be_saved_up(self, redis: Redis) -> None:
        windows = await self.three_minutes_later(redis, 900)
        rows = {METER.charge(OTHER): await redis.get(METER.charge(JOB))}
        await redis.mset(rows)
        back = await windows.settle(METER, JOB, 0)
        await windows.take(METER, 900)
        back += await windows.settle(METER, OTHER, 0)

        assert back == -METER.limit  # and not 350 and 900
        assert 0 < await redis.ttl(f"{METER.current}/late") <= 60

    async def test_a_job_that_used_more_can_exceed_the_limit_and_later_calls_wait(
        self, redis: Redis
    ) -> None:
        windows = await self.charged(redis, 500)

        added = await windows.settle(METER, JOB, 2500)

        window = await windows.look(METER)
        assert (added, window.used, window.remaining) == (2000, 2500, 0)
        assert not (await windows.take(METER, 500))[0]
        assert 105 < window.wait_s(500) <= 108  # this minute, and 2,500 must fade to 500

    async def test_more_is_taken_from_a_window_that_is_made_for_it(self, redis: Redis) -> None:
        windows = await self.charged(redis, 500)
        await redis.delete(METER.current)

        await windows.settle(METER, JOB, 600)

        assert (await windows.look(METER)).current == 100
        assert 0 < await redis.ttl(METER.current) <= 120

    async def test_a_charge_does_not_lie_for_ever(self, redis: Redis) -> None:
        await self.charged(redis, 500)

        assert await redis.ttl(METER.charge(JOB)) > 0


async def test_a_predictor_that_counts_no_usage_is_charged_what_it_streamed(api_with: Any) -> None:
    async with api_with() as api:
        job_id = (await submit(api, chat(40))).json()["id"]
        predictor = await FakePredictor(api.store, job_id).start()
        await predictor.say({"index": 0}, tokens=5)
        result = chat_result("x")
        await predictor.finish({name: part for name, part in result.items() if name != "usage"})
        await api.deliver(job_id)

        assert await used(api) == 6


async def test_a_call_that_names_no_bound_is_charged_what_the_context_leaves(api_with: Any) -> None:
    async with api_with() as api:
        answer = await submit(api, chat(None))

    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - 64)


async def test_calls_without_a_bound_cannot_pass_a_limit_under_the_context(
    redis_url: str, store: RedisStore, redis: Redis
) -> None:
    """The first takes the whole minute; what it leaves is given back at its end."""
    settings = settings_for(redis_url, limit_tokens_per_minute=50)
    async with api_with_jobs(settings, store) as api:
        answers = [await submit(api, chat(None)) for _ in range(4)]
        await api.answer(answers[0].json()["id"])
        after = await submit(api, chat(None))
        small = await submit(api, chat(5))

    assert [answer.status_code for answer in answers] == [202, 429, 429, 429]
    assert (after.status_code, small.status_code) == (429, 202)
