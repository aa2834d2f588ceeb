"""The exact cache and followers over real HTTP: OpenAI's client, jobs, streams, batches, limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from api.app import create_app
from api.batch import runner as batch_runner
from api.settings import ApiSettings, TenantLimits
from api.wiring.parts import make_parts
from api.wiring.routers import routers
from eventing.job.job import JobId
from eventing.outbox.outbox import sweep_once
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, headers_of, rig_over
from tests.integration.api.fakes import USAGE, FakeBroker, FakeEngine, chat_result, serving

CHAT: Final = "/v1/chat/completions"
NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
ACCEPTING: Final = {"cache-control": "max-age=600"}


def body(text: str = "why?", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0} | more


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text("m: {cache: {exact: {ttl_s: 600}}}")
    return path


@pytest.fixture
async def cached(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, rules: Path
) -> AsyncIterator[Rig]:
    settings = ApiSettings(**api_settings.model_dump() | {"pipelines_file": rules})
    async with rig_over(settings, store, broker) as made:
        yield made


@pytest.fixture
async def thinker(cached: Rig) -> AsyncIterator[FakeEngine]:
    """Answers every job that is published."""
    async with asyncio.TaskGroup() as group:
        yield FakeEngine(cached.store, cached.broker, group)


@pytest.fixture
async def client(cached: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{cached.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def asked(rig: Rig) -> list[str]:
    """The jobs that the broker was given."""
    return [e.subject for e in rig.broker.events if e.type.endswith("requested.v1")]


async def job_of(rig: Rig, job_id: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = (await rig.client.get(f"/v1/jobs/{job_id}", params=query)).json()
    return found


async def test_the_client_is_answered_again_without_a_predictor(
    cached: Rig, thinker: FakeEngine, client: AsyncOpenAI
) -> None:
    first = await client.chat.completions.with_raw_response.create(**body())
    assert first.headers["cache-status"].startswith("torpor; fwd=uri-miss; stored; key=")
    again = await client.chat.completions.with_raw_response.create(**body())
    one, two = first.parse(), again.parse()
    assert again.headers["cache-status"].startswith("torpor; hit; ttl=")
    assert again.headers["cache-status"].endswith("detail=exact")
    assert again.headers["age"] in ("0", "1", "2")
    assert one.choices == two.choices
    assert two.id != one.id
    assert two.usage is not None
    assert two.usage.total_tokens == 0
    assert len(thinker.played) == 1
    job = await job_of(cached, again.headers["torpor-job-id"])
    assert (job["state"], job["usage"], job["saved_usage"]) == ("completed", NO_USAGE, USAGE)
    assert job["cache"]["source_job"] == first.headers["torpor-job-id"]
    assert (job["cache"]["status"], job["cache"]["kind"]) == ("hit", "exact")


async def test_a_kept_answer_is_streamed_as_it_was(
    cached: Rig, thinker: FakeEngine, client: AsyncOpenAI
) -> None:
    texts = []
    for _ in range(2):
        stream = await client.chat.completions.create(
            **body(), stream=True, stream_options={"include_usage": True}
        )
        texts.append([chunk async for chunk in stream])
    words = [[c.choices[0].delta.content for c in each if c.choices] for each in texts]
    assert words[0] == words[1] == ["Hello ", "there ", "friend"]
    assert texts[1][-1].usage is not None
    assert texts[1][-1].usage.total_tokens == 0
    assert {chunk.id for chunk in texts[0]}.isdisjoint(chunk.id for chunk in texts[1])
    assert len(thinker.played) == 1


async def test_stream_and_whole_share_one_entry(
    cached: Rig, thinker: FakeEngine, client: AsyncOpenAI
) -> None:
    whole = await client.chat.completions.create(**body())
    stream = await client.chat.completions.create(**body(), stream=True)
    told = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(told) == whole.choices[0].message.content
    assert len(thinker.played) == 1


async def test_a_response_is_answered_again_and_streams_every_event(
    cached: Rig, thinker: FakeEngine, client: AsyncOpenAI
) -> None:
    kinds = []
    for _ in range(2):
        stream = await client.responses.create(
            model="m", input="why?", temperature=0, stream=True, background=True
        )
        kinds.append([event.type async for event in stream])
    assert kinds[0] == kinds[1]
    assert len(thinker.played) == 1
    await client.chat.completions.create(**body())
    assert len(thinker.played) == 2  # another API


async def test_jobs_are_submitted_followed_and_listed_as_any_other(
    cached: Rig, thinker: FakeEngine
) -> None:
    line = {"url": CHAT, "body": body()}
    first = await cached.client.post("/v1/jobs", json=line)
    assert first.status_code == 202
    assert (await job_of(cached, first.json()["id"], wait="5"))["state"] == "completed"
    hit = await cached.client.post("/v1/jobs", json=line)
    assert (hit.status_code, hit.json()["state"]) == (200, "completed")
    job_id = hit.json()["id"]
    listed = (await cached.client.get("/v1/jobs")).json()["data"]
    assert {each["id"] for each in listed} == {first.json()["id"], job_id}
    async with cached.client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        text = "".join([chunk async for chunk in stream.aiter_text()])
    assert text.count("event: tokens") == 3
    assert text.count("event: state") == 2  # what it is now, and the end
    result = (await cached.client.get(f"/v1/jobs/{job_id}/result")).json()
    assert result["usage"] == NO_USAGE
    assert result["id"] == "engine-" + job_id.removeprefix("job_")
    await cached.until_told()
    results = [e for e in cached.broker.events if e.type.endswith("completed.v1")]
    assert [e.subject for e in results] == [job_id]
    data = orjson.loads(results[0].data)
    assert (data["cache"]["kind"], data["usage"], data["saved_usage"]) == ("exact", NO_USAGE, USAGE)


@pytest.mark.parametrize("directive", ["no-cache", "no-store", "max-age=0"])
async def test_a_caller_who_wants_no_cached_answer_is_given_none(
    cached: Rig, thinker: FakeEngine, directive: str
) -> None:
    for headers in ({}, {"cache-control": directive}):
        answer = await cached.client.post(CHAT, json=body(), headers=headers)
        assert answer.status_code == 200
    assert len(thinker.played) == 2
    expected = "fwd=bypass; detail=no-store" if directive == "no-store" else "fwd=request; stored"
    assert expected in answer.headers["cache-status"]


async def test_no_store_leaves_nothing(cached: Rig, thinker: FakeEngine, redis: Redis) -> None:
    headers = {"cache-control": "no-store"}
    await cached.client.post(CHAT, json=body(), headers=headers)
    assert [key async for key in redis.scan_iter(match="torpor:cache:*")] == []
    await cached.client.post(CHAT, json=body())
    assert len(thinker.played) == 2


async def test_only_if_cached_is_a_504_and_no_job(cached: Rig, thinker: FakeEngine) -> None:
    only = {"cache-control": "only-if-cached"}
    for path, sent in ((CHAT, body()), ("/v1/jobs", {"url": CHAT, "body": body()})):
        answer = await cached.client.post(path, json=sent, headers=only)
        assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_cached"
    assert (await cached.client.get("/v1/jobs")).json()["data"] == []
    await cached.client.post(CHAT, json=body())
    assert (await cached.client.post(CHAT, json=body(), headers=only)).status_code == 200


async def test_without_a_rule_the_caller_asks(rig: Rig, engine: FakeEngine) -> None:
    plain = await rig.client.post(CHAT, json=body())
    assert "cache-status" not in plain.headers
    assert "cache" not in await job_of(rig, plain.headers["torpor-job-id"])
    for _ in range(2):
        answer = await rig.client.post(CHAT, json=body(temperature=1), headers=ACCEPTING)
    assert "hit" in answer.headers["cache-status"]
    assert len(engine.played) == 2


async def test_another_tenant_with_the_same_bytes_is_answered_by_itself(
    cached: Rig, thinker: FakeEngine, redis: Redis, api_settings: ApiSettings, rules: Path
) -> None:
    settings = ApiSettings(
        **api_settings.model_dump()
        | {"pipelines_file": rules, "keys_source": "redis", "anonymous_access": "off"}
    )
    async with rig_over(settings, cached.store, cached.broker) as keyed:
        for tenant in ("acme", "other"):
            headers = await headers_of(redis, tenant)
            for expected in ("fwd=uri-miss", "hit"):
                answer = await keyed.client.post(CHAT, json=body(), headers=headers)
                assert expected in answer.headers["cache-status"]
    assert len(thinker.played) == 2
    name = answer.headers["cache-status"].split('key="')[1].split('"')[0]
    async with rig_over(settings, cached.store, cached.broker) as keyed:
        for tenant, status in (("acme", 404), ("other", 200), ("other", 404)):
            headers = await headers_of(redis, tenant)
            path = f"/v1/cache/entries/{name}"
            assert (await keyed.client.delete(path, headers=headers)).status_code == status


async def test_the_cache_is_invalidated_after_a_dry_run(cached: Rig, thinker: FakeEngine) -> None:
    await cached.client.post(CHAT, json=body())
    for sent, dry, count in (({}, True, 1), ({"dry_run": False}, False, 1), ({}, True, 0)):
        answer = (await cached.client.post("/v1/cache/invalidate", json=sent)).json()
        assert (answer["dry_run"], answer["entries"]) == (dry, count)
    await cached.client.post(CHAT, json=body())
    assert len(thinker.played) == 2
    refused = await cached.client.post("/v1/cache/invalidate", json={"dryrun": True})
    assert refused.status_code == 400


async def test_erasing_a_response_erases_its_entry(
    cached: Rig, thinker: FakeEngine, client: AsyncOpenAI
) -> None:
    first = await client.responses.create(model="m", input="why?", temperature=0)
    await client.responses.delete(first.id)
    await client.responses.create(model="m", input="why?", temperature=0)
    assert len(thinker.played) == 2


async def test_calls_at_once_are_one_generation(cached: Rig) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(cached.client.post(CHAT, json=body())) for _ in range(20)]
        while len((await cached.client.get("/v1/jobs")).json()["data"]) < 20:
            await asyncio.sleep(0.01)
        (leader,) = asked(cached)
        predictor = await cached.predictor(leader)
        await predictor.chat("four", "stop")
        await predictor.finish(chat_result("four"))
    answers = [call.result() for call in calls]
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {"four"}
    assert len({answer.json()["id"] for answer in answers}) == 20
    statuses = sorted(answer.headers["cache-status"].split("; ")[-1] for answer in answers)
    assert statuses[:19] == ["detail=coalesced"] * 19
    assert asked(cached) == [leader]
    total = sum(answer.json()["usage"]["total_tokens"] for answer in answers)
    assert total == USAGE["total_tokens"]


async def follow(rig: Rig, job_id: str) -> str:
    """The whole of a job's event stream."""
    async with rig.client.stream("GET", f"/v1/jobs/{job_id}/events", timeout=120) as stream:
        return "".join([chunk async for chunk in stream.aiter_text()])


async def submitted(rig: Rig, text: str = "why?", **headers: str) -> str:
    line = {"url": CHAT, "body": body(text)}
    answer = await rig.client.post("/v1/jobs", json=line, headers=headers)
    assert answer.status_code == 202
    return str(answer.json()["id"])


def told(text: str) -> str:
    """What the tokens of a stream say."""
    said = []
    for event in text.split("\n\n"):
        if "event: tokens" in event:
            data = orjson.loads(event.split("data: ", 1)[1])
            said += [choice["delta"]["content"] for choice in data["delta"]]
    return "".join(said)


async def test_a_followers_readers_read_the_leaders_stream(cached: Rig) -> None:
    leader, follower = await submitted(cached), await submitted(cached)
    assert (await job_of(cached, follower))["follows"] == leader
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(follow(cached, follower))
        predictor = await cached.predictor(leader)
        for word in ("one ", "two ", "three"):
            await predictor.chat(word)
        await predictor.finish(chat_result("one two three"))
    text = reading.result()
    assert told(text) == "one two three"
    assert "event: gap" not in text
    assert orjson.loads(text.split("event: result")[1].split("data: ")[1])["id"] == follower
    # Read again later, from its own stream: the same events under the same cursors.
    again = await follow(cached, follower)
    cursors = [line for line in text.split("\n") if line.startswith("id: ")]
    assert cursors == [line for line in again.split("\n") if line.startswith("id: ")]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_reader_of_a_follower_misses_nothing_when_the_leader_ends_without_an_answer(
    cached: Rig, how: str
) -> None:
    leader, heir, last = [await submitted(cached) for _ in range(3)]
    predictor = await cached.predictor(leader)
    async with asyncio.TaskGroup() as group:
        reading = [group.create_task(follow(cached, each)) for each in (heir, last)]
        await predictor.chat("one ")
        if how == "cancelled":
            await cached.client.delete(f"/v1/jobs/{leader}")
        else:
            await predictor.fail("engine_error")
        await cached.broker.until_asked_for(heir)
        # It goes on from the tokens that were written.
        successor = await cached.predictor(heir)
        assert successor.index == 1
        await successor.chat("two")
        await successor.finish(chat_result("one two"))
    for each in reading:
        assert told(each.result()) == "one two"
        assert "event: gap" not in each.result()
    assert (await job_of(cached, leader))["state"] == how
    assert (await job_of(cached, last))["cache"]["source_job"] == heir


async def test_a_leader_whose_client_leaves_does_not_take_its_followers_along(cached: Rig) -> None:
    leaving = asyncio.create_task(cached.client.post(CHAT, json=body()))
    while not asked(cached):
        await asyncio.sleep(0.005)
    (leader,) = asked(cached)
    staying = asyncio.create_task(cached.client.post(CHAT, json=body()))
    while not await cached.store.redis.exists(keys.followers(JobId(leader))):
        await asyncio.sleep(0.005)
    leaving.cancel()
    while len(asked(cached)) < 2:
        await asyncio.sleep(0.005)
    predictor = await cached.predictor(asked(cached)[1])
    await predictor.finish(chat_result("four"))
    assert (await staying).json()["choices"][0]["message"]["content"] == "four"


async def test_a_batch_generates_each_of_its_lines_once(cached: Rig, thinker: FakeEngine) -> None:
    lines = [
        orjson.dumps(
            {"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": body(f"q{n % 3}")}
        )
        for n in range(12)
    ]
    sent = {"file": ("in.jsonl", b"\n".join(lines))}
    card = await cached.client.post("/v1/files", files=sent, data={"purpose": "batch"})
    asked_for = {"input_file_id": card.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = (await cached.client.post("/v1/batches", json=asked_for)).json()
    runner = asyncio.create_task(batch_runner.run(cached.parts.batches, turn_s=0.05))
    try:
        async with asyncio.timeout(60):
            while batch["status"] != "completed":
                await asyncio.sleep(0.05)
                batch = (await cached.client.get(f"/v1/batches/{batch['id']}")).json()
    finally:
        runner.cancel()
    assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    assert len(thinker.played) == 3
    output = (await cached.client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    answers = [orjson.loads(line)["response"] for line in output.splitlines()]
    assert {answer["body"]["choices"][0]["message"]["content"] for answer in answers} == {
        thinker.answer
    }


async def test_a_kept_answer_takes_no_tokens_of_a_limit(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, rules: Path
) -> None:
    limits = {"default": TenantLimits(tokens_per_minute=60)}
    settings = ApiSettings(
        **api_settings.model_dump() | {"pipelines_file": rules, "tenant_limits": limits}
    )
    async with rig_over(settings, store, broker) as rig, asyncio.TaskGroup() as group:
        FakeEngine(store, broker, group)
        first = await rig.client.post(CHAT, json=body(max_tokens=50))
        assert first.status_code == 200
        for _ in range(5):
            hit = await rig.client.post(CHAT, json=body(max_tokens=50))
            assert hit.status_code == 200, hit.text
            assert "hit" in hit.headers["cache-status"]
        await rig.until_told()
        other = [await rig.client.post(CHAT, json=body(f"{n}", max_tokens=50)) for n in range(2)]
        assert [each.status_code for each in other][-1] == 429
        assert (await rig.client.post(CHAT, json=body(max_tokens=50))).status_code == 200


async def test_a_job_follows_once_its_key_is_repeated(cached: Rig) -> None:
    await submitted(cached)
    follower = await submitted(cached, **{"idempotency-key": "k"})
    assert await submitted(cached, **{"idempotency-key": "k"}) == follower


async def test_a_follower_is_cancelled_alone(cached: Rig) -> None:
    leader, follower = await submitted(cached), await submitted(cached)
    assert (await cached.client.delete(f"/v1/jobs/{follower}")).json()["state"] == "cancelled"
    assert (await job_of(cached, leader))["state"] == "queued"
    predictor = await cached.predictor(leader)
    await predictor.finish(chat_result("four"))
    assert (await job_of(cached, leader))["state"] == "completed"


@asynccontextmanager
async def no_loops() -> AsyncIterator[None]:
    yield


async def test_an_api_that_died_leaves_its_followers_to_the_next(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, rules: Path
) -> None:
    settings = ApiSettings(**api_settings.model_dump() | {"pipelines_file": rules})
    parts = make_parts(settings, store.redis, broker)
    app = create_app(routers(parts), lambda _: no_loops(), ())
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        first = Rig(url, client, parts, store, broker)
        leader, follower = await submitted(first), await submitted(first)
        predictor = await first.predictor(leader)
        await predictor.finish(chat_result("four"))
        assert (await job_of(first, follower))["state"] == "queued"
    await parts.streams.close()
    async with rig_over(settings, store, broker) as second:
        assert (await job_of(second, follower, wait="4"))["state"] == "completed"


async def test_the_sweep_ends_followers_that_were_left(cached: Rig, redis: Redis) -> None:
    leader, follower = await submitted(cached), await submitted(cached)
    predictor = await cached.predictor(leader)
    await redis.xgroup_destroy(keys.ENDED, "api")  # as if it had never been told
    await predictor.finish(chat_result("four"))
    await redis.delete(keys.ENDED)
    await redis.zadd(keys.UNSTARTED, {follower: 0})
    await sweep_once(cached.store, cached.parts.route, cached.parts.followers)
    assert (await job_of(cached, follower))["state"] == "completed"
    assert asked(cached) == [leader]


async def test_calls_that_ask_for_something_else_are_not_served(
    cached: Rig, thinker: FakeEngine
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "why?"}]},
        {"seed": 7},
        {"response_format": {"type": "json_object"}},
        {"max_tokens": 5},
        {"stop": ["a"]},
    ]
    for change in changes:
        await cached.client.post(CHAT, json=body(**change))
    assert len(thinker.played) == len(changes)
