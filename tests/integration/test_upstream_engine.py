"""A provider as the engine: a scripted one, and another Torpor's predictor."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventing.cloudevent.event import Event
from eventing.job.job import Job, JobState
from eventing.job.stream import EntryKind
from eventing.process.egress import AllowList
from eventing.store.redis_store import RedisStore
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamUnavailable,
)
from predictor.errors import BadRequest, EngineStartError
from tests.integration.engine_calls import all_steps, body_of, chat
from tests.integration.predictor_process import predictors
from tests.integration.scripted_provider import ScriptedProvider, refuses, says, scripted_provider
from tests.integration.upstream_rig import asked, engine_at, two_providers
from tests.unit.predictor.harness import asking, job_id_of, open_harness, read_text, text_of


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with scripted_provider() as running:
        yield running


async def test_an_answer_comes_with_the_name_of_who_answered_and_its_usage(
    provider: ScriptedProvider,
) -> None:
    async with engine_at(provider.url) as engine:
        body = body_of(await all_steps(engine, asked()))

    assert body["model"] == "theirs-4"
    assert body["choices"][0]["message"]["content"] == "Paris."
    assert body["usage"]["completion_tokens"] == 2


async def test_the_key_is_read_for_each_call_and_the_jobs_id_is_the_idempotency_key(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("first\n")
    async with engine_at(provider.url, key_file=key) as engine:
        await all_steps(engine, asked())
        key.write_text("second\n")
        await all_steps(engine, asked())

    assert [h["authorization"] for h in provider.headers] == ["Bearer first", "Bearer second"]
    assert provider.headers[0]["idempotency-key"] == "job_1"


async def test_an_answer_that_may_be_stopped_has_an_estimate_of_its_prompt_until_its_end(
    provider: ScriptedProvider,
) -> None:
    async with engine_at(provider.url) as engine:
        steps = await all_steps(engine, replace(asked("word " * 80), counts_throughout=True))

    first, *_, last = [step.chunk for step in steps if step.chunk]
    assert 80 <= first["usage"]["prompt_tokens"] <= 160
    assert last["usage"]["prompt_tokens"] == 5  # as the provider says
    assert body_of(steps)["usage"]["total_tokens"] == 7


async def test_a_stream_that_breaks_off_is_a_failed_attempt(provider: ScriptedProvider) -> None:
    provider.answers = [says("Pa", "ris", breaks_after=1)]
    async with engine_at(provider.url) as engine:
        with pytest.raises(UpstreamFailed):
            await all_steps(engine, asked())


async def test_closing_the_generator_ends_the_call_at_the_provider(
    provider: ScriptedProvider,
) -> None:
    provider.answers = [says(*["word "] * 1000, pause_s=0.02)]
    async with engine_at(provider.url) as engine:
        steps = engine.run(asked(), ())
        await anext(steps)
        await steps.aclose()

        await asyncio.wait_for(provider.dropped.wait(), 10)


async def test_a_limit_is_waited_for_before_the_next_call(
    provider: ScriptedProvider, redis_url: str
) -> None:
    provider.answers = [refuses(429, retry_after="30"), says("late")]
    async with engine_at(provider.url, redis_url=redis_url) as engine:
        with pytest.raises(UpstreamRateLimited):
            await all_steps(engine, asked())
    async with engine_at(provider.url, redis_url=redis_url) as another:  # another process
        with pytest.raises(UpstreamRateLimited) as refused:
            await all_steps(another, asked())

    assert 20 < refused.value.retry_after_s <= 30
    assert len(provider.bodies) == 1


async def test_a_provider_that_is_away_is_waited_for() -> None:
    async with engine_at("http://127.0.0.1:9/v1") as engine:
        with pytest.raises(UpstreamUnavailable):
            await all_steps(engine, asked())


async def test_a_redirect_is_not_followed(provider: ScriptedProvider) -> None:
    provider.answers = [refuses(307, location="http://169.254.169.254/")]
    async with engine_at(provider.url) as engine:
        with pytest.raises(UpstreamFailed):
            await all_steps(engine, asked())


async def test_a_tenant_whose_data_stays_inside_is_refused_before_any_call(
    provider: ScriptedProvider,
) -> None:
    async with engine_at(provider.url, tenants=frozenset({"other"})) as engine:
        with pytest.raises(BadRequest, match="may not leave"):
            await all_steps(engine, asked())
        with pytest.raises(BadRequest, match="may not leave"):  # a direct call has no tenant
            engine.validate(chat())

    assert provider.bodies == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tenants": frozenset()}, "TORPOR_UPSTREAM_TENANTS"),
        ({"allowed": AllowList()}, "TORPOR_UPSTREAM_URL"),
        ({"key_file": Path("/nowhere/key")}, "/nowhere/key"),
    ],
    ids=["no-tenant", "internal-address", "no-key"],
)
async def test_an_engine_that_could_serve_nothing_does_not_start(
    provider: ScriptedProvider, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineStartError, match=reason):
        async with engine_at(provider.url, **settings):
            pass


async def test_an_engine_does_not_start_with_a_key_that_the_provider_refuses(
    provider: ScriptedProvider,
) -> None:
    provider.models_status = 401
    with pytest.raises(EngineStartError, match="refuses our key"):
        async with engine_at(provider.url):
            pass


async def test_an_answer_that_broke_off_starts_over_and_says_so(provider: ScriptedProvider) -> None:
    provider.answers = [says("wrong ", "start", breaks_after=2), says("Paris", ".")]
    event = asking()
    async with (
        engine_at(provider.url) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        assert (await harness.deliver(event)).status == 500
        answer = await harness.deliver(event)
        entries = await harness.entries(event)

    assert text_of(answer) == "Paris."
    assert read_text(entries) == "Paris."
    assert [e.is_restart for e in entries if e.kind is EntryKind.ATTEMPT] == [False, True]
    assert len({h["idempotency-key"] for h in provider.headers}) == 1


async def test_a_job_that_waited_for_a_limit_asks_the_same_provider_again(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        first.answers = [refuses(429, retry_after="0"), says("from", " the", " first")]
        event = asking()
        assert (await harness.deliver(event)).status == 503
        while (answer := await harness.deliver(event)).status == 503:
            await asyncio.sleep(0.05)

    assert text_of(answer) == "from the first"
    assert second.bodies == []


async def test_a_job_whose_answer_broke_off_asks_the_next_provider(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        first.answers = [says("half", breaks_after=1)]
        event = asking()
        assert (await harness.deliver(event)).status == 500
        answer = await harness.deliver(event)

    assert text_of(answer) == "from the other"
    assert len(first.bodies) == len(second.bodies) == 1


async def test_a_key_that_cannot_be_read_for_a_moment_is_waited_for(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("first")
    async with engine_at(provider.url, key_file=key) as engine:
        key.unlink()
        with pytest.raises(UpstreamUnavailable, match="cannot read"):
            await all_steps(engine, asked())


async def test_a_refusal_for_good_ends_the_job_and_is_no_attempt_more(
    provider: ScriptedProvider,
) -> None:
    provider.answers = [refuses(400, "bad_value")]
    event = asking()
    async with (
        engine_at(provider.url) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        await harness.deliver(event)
        await harness.deliver(event)
        job = await harness.store.get(job_id_of(event))

    assert job is not None
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "upstream_refused"
    assert len(provider.bodies) == 1


async def test_a_rate_limited_job_is_put_off_for_as_long_as_the_provider_says(
    provider: ScriptedProvider,
) -> None:
    provider.answers = [refuses(429, retry_after="20"), says("late")]
    event = asking()
    async with (
        engine_at(provider.url) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        first = await harness.deliver(event)
        answer = await harness.deliver(event)

    assert first.status == 503
    assert first.headers["retry-after"] == "20"
    assert text_of(answer) == "late"


async def recorded(store: RedisStore, event: Event) -> Job:
    job = await store.get(job_id_of(event))
    assert job is not None
    return job


async def test_another_torpor_is_a_provider(
    tmp_path: Path, store: RedisStore, redis_url: str
) -> None:
    """Both are processes: one predictor with the test engine, and one in front of it with `--engine upstream`."""
    event = asking(seeded={"output_tokens": 12})
    async with open_harness() as harness:
        expected = text_of(await harness.deliver(event))
    with predictors(tmp_path / "far", 1) as [far]:
        settings = {
            "TORPOR_ENGINE": "upstream",
            "TORPOR_UPSTREAM_URL": f"{far.url}/v1",
            "TORPOR_UPSTREAM_MODEL": "seeded",
            "TORPOR_UPSTREAM_TENANTS": '["*"]',
            "TORPOR_UPSTREAM_ALLOW": '["127.0.0.1"]',
            "TORPOR_MODEL_NAME": "seeded",
            "TORPOR_REDIS_URL": redis_url,
        }
        with predictors(tmp_path / "near", 1, **settings) as [near]:
            answer = await near.deliver(event)
            job = await recorded(store, event)

    assert answer.text == expected
    assert job.state is JobState.COMPLETED
    assert job.usage is not None
    assert job.usage["completion_tokens"] == 13  # with the one that ends it
