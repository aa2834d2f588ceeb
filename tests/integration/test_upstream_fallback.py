"""A provider that fails, is limited or is late, and those that stand in for it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from eventing.errors import StoreUnavailable
from eventing.redis.connection import connect
from predictor.engine.engine import EngineRequest
from predictor.engine.upstream.engine import UpstreamEngine, UpstreamSettings
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamUnavailable,
)
from predictor.engine.upstream.provider import (
    CallResult,
    Report,
    Reservation,
    SharedProvider,
    UnlimitedProvider,
)
from predictor.engine.upstream.target import Endpoint
from tests.integration.engine_calls import all_steps, body_of
from tests.integration.scripted_provider import refuses, says
from tests.integration.upstream_rig import FAST, INSIDE, asked, engine_at, said_in, two_providers
from tests.unit.predictor.harness import asking, open_harness, text_of


async def test_a_provider_that_fails_is_stood_in_for_and_the_answer_says_so(
    redis_url: str,
) -> None:
    """Ten failed calls, and from then on none; after a while one probe at a time, and three close the breaker."""
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, rules=FAST) as engine,
    ):
        first.answers = [refuses(500)]
        bodies = [body_of(await all_steps(engine, asked())) for _ in range(20)]
        sent = len(first.bodies)
        first.answers = [says("back")]
        await asyncio.sleep(1.15)
        later: list[str] = []
        while (
            later[-5:] != ["back"] * 5
        ):  # until it is closed, a call beside a probe goes to the other
            later.append(said_in(body_of(await all_steps(engine, asked()))))

    assert {said_in(body) for body in bodies} == {"from the other"}
    assert bodies[0]["routing"]["reason"] == "upstream_failed"
    assert bodies[-1]["routing"]["reason"] == "breaker_open"
    assert bodies[-1]["routing"]["asked"] == "seeded"
    assert sent == 10


async def test_a_caller_who_wants_no_fallback_waits_for_the_provider_that_was_asked(
    redis_url: str,
) -> None:
    event = asking(extensions={"fallback": "none"})
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, rules=FAST) as engine,
        open_harness(running=engine, is_store_shared=False) as harness,
    ):
        first.answers = [refuses(503), says("from", " the", " first")]
        assert (await harness.deliver(event)).status == 503
        while (answer := await harness.deliver(event)).status == 503:
            await asyncio.sleep(0.05)

    assert text_of(answer) == "from the first"
    assert second.bodies == []


async def until_waits(engine: UpstreamEngine, call: EngineRequest) -> UpstreamUnavailable:
    """Why the call waits at last, after failures that are noted beside it."""
    while True:
        try:
            await all_steps(engine, call)
        except UpstreamUnavailable as error:
            return error
        except UpstreamFailed:
            continue


async def test_without_a_fallback_an_open_breaker_and_a_broken_answer_lead_to_no_other_provider(
    redis_url: str,
) -> None:
    call = replace(asked(), allows_fallback=False)
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
    ):
        first.answers = [refuses(500)]
        refused = [await until_waits(engine, call)]
        refused.append(await until_waits(engine, replace(call, starts_over=True)))

    assert all("breaker" in error.message for error in refused)
    assert second.bodies == []


async def test_a_stand_in_is_asked_to_answer_itself_and_so_is_the_first_where_the_caller_wants_no_other(
    redis_url: str,
) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
    ):
        first.answers = [refuses(500), says("Paris")]
        await all_steps(engine, asked())
        await all_steps(engine, replace(asked(), allows_fallback=False))

    assert [each.get("torpor-fallback") for each in first.headers] == [None, "none"]
    assert [each.get("torpor-fallback") for each in second.headers] == ["none"]


async def test_an_answer_that_has_begun_is_never_glued_to_anothers(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
    ):
        first.answers = [says("half", breaks_after=1)]
        with pytest.raises(UpstreamFailed):
            await all_steps(engine, asked())
        again = body_of(await all_steps(engine, replace(asked(), starts_over=True)))

    assert said_in(again) == "from the other"
    assert len(first.bodies) == 1


async def test_a_used_up_limit_waits_and_wakes_no_other_provider(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url) as engine,
    ):
        first.answers = [refuses(429, retry_after="5")]
        for _ in range(2):
            with pytest.raises(UpstreamRateLimited):
                await all_steps(engine, asked())

    assert second.bodies == []


async def test_all_open_breakers_wait_as_long_as_the_last_ones(redis_url: str) -> None:
    gone = ("http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1")
    async with engine_at(*gone, redis_url=redis_url) as engine:
        for _ in range(5):
            with pytest.raises(UpstreamUnavailable, match="reached"):
                await all_steps(engine, asked())
        with pytest.raises(UpstreamUnavailable, match="breaker") as refused:
            await all_steps(engine, asked())

    assert 50 < refused.value.retry_after_s <= 66


async def used_to(redis_url: str, url: str, seconds: float, calls: int = 100) -> None:
    """Many calls at a provider whose first token came after `seconds`."""
    state = SharedProvider(connect(redis_url, timeout_s=5), url=url, model="theirs")
    for _ in range(calls):
        right = await state.reserve(1, 1, "")
        assert isinstance(right, Reservation)
        await state.settle(right, Report(result=CallResult.OK, first_token_s=seconds))
    await state.close()


async def test_a_late_call_is_asked_of_the_next_and_the_first_to_show_something_answers(
    redis_url: str,
) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, hedges=True) as engine,
    ):
        await used_to(redis_url, first.url, 0.1)
        first.answers = [says("late", delay_s=30)]
        answer = body_of(await all_steps(engine, asked()))
        await asyncio.wait_for(first.dropped.wait(), 10)

    assert said_in(answer) == "from the other"
    assert answer["routing"]["reason"] == "late"
    assert len(second.bodies) == 1
    (lost,) = answer["extra_usage"]  # the first one's provider takes money for its prompt
    assert (lost["kind"], lost["completion_tokens"]) == ("hedged", 0)
    assert lost["prompt_tokens"] > 0


async def test_a_late_call_that_shows_something_first_after_all_is_the_answer(
    redis_url: str,
) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, hedges=True) as engine,
    ):
        await used_to(redis_url, first.url, 0.1)
        first.answers = [says("late", " but", " here", delay_s=0.5)]
        second.answers = [says("even", " later", delay_s=30)]
        answer = body_of(await all_steps(engine, asked()))
        await asyncio.wait_for(second.dropped.wait(), 10)

    assert said_in(answer) == "late but here"
    assert "routing" not in answer
    assert [each["kind"] for each in answer["extra_usage"]] == ["hedged"]


async def test_a_call_that_is_not_late_has_spent_nothing_beside_its_answer(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, hedges=True) as engine,
    ):
        await used_to(redis_url, first.url, 5.0)
        answer = body_of(await all_steps(engine, asked()))
    assert "extra_usage" not in answer


async def test_second_calls_are_a_few_of_a_hundred_answers_at_most(redis_url: str) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, hedges=True) as engine,
    ):
        await used_to(redis_url, first.url, 0.02, calls=110)  # earns six
        await used_to(redis_url, second.url, 0.02, calls=1)  # its limits are known
        first.answers = [says("late", delay_s=0.3)]
        await asyncio.gather(*[all_steps(engine, asked(request_id=f"r{i}")) for i in range(20)])

    assert len(second.bodies) == 6


@pytest.mark.parametrize(
    "body", [{"tools": [{"type": "function", "function": {"name": "pay"}}]}, {"n": 2}]
)
async def test_a_call_that_may_act_or_has_several_answers_is_never_sent_twice(
    redis_url: str, body: dict[str, Any]
) -> None:
    async with (
        two_providers() as (first, second),
        engine_at(first.url, second.url, redis_url=redis_url, hedges=True) as engine,
    ):
        await used_to(redis_url, first.url, 0.02)
        first.answers = [says("late", delay_s=0.3)]
        await all_steps(engine, asked(**body))

    assert second.bodies == []


class NoBudget(UnlimitedProvider):
    """A provider whose calls are late at once, and whose store is away when a second call is asked for."""

    async def reserve(self, *_: object) -> Reservation:
        return Reservation(late_after_s=0.05)

    async def take_hedge(self) -> bool:
        raise StoreUnavailable("away")


async def test_a_store_that_is_away_ends_no_call_that_is_only_late() -> None:
    async with two_providers() as (first, second):
        first.answers = [says("late", delay_s=0.3)]
        settings = UpstreamSettings(
            model_name="seeded",
            endpoints=tuple(Endpoint(url=each.url, model="m") for each in (first, second)),
            tenants=frozenset({"*"}),
            allowed=INSIDE,
            hedges=True,
        )
        engine = UpstreamEngine(settings, lambda _: NoBudget())
        await engine.start(lambda _: None)
        answer = body_of(await all_steps(engine, asked()))
        await engine.stop()

    assert said_in(answer) == "late"
