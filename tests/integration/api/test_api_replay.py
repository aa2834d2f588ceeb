"""An Idempotency-Key on calls whose things have ids of their own: made once, answered twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response

from api.http.idempotency import Replay
from eventing.errors import Overloaded
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.fakes import FakePredictor

KEY = {"idempotency-key": "k"}
ENDPOINT = {"name": "n", "url": "http://127.0.0.1:9/hook", "event_types": ["response.completed"]}


@pytest.fixture
async def api(redis_url: str, store: RedisStore) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(settings_for(redis_url), store) as made:
        yield made


async def create(api: ApiWithJobs, **body: Any) -> Any:
    return await api.client.post("/v1/webhook_endpoints", json=ENDPOINT | body, headers=KEY)


async def test_a_repeated_call_has_the_same_answer_and_makes_one_thing(api: ApiWithJobs) -> None:
    first, second = await create(api), await create(api)

    assert first.status_code == 200
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len((await api.client.get("/v1/webhook_endpoints")).json()["data"]) == 1


async def test_the_same_key_with_another_body_is_a_conflict(api: ApiWithJobs) -> None:
    await create(api)

    assert (await create(api, name="other")).status_code == 409


async def test_a_refused_call_can_be_mended_under_its_key(api: ApiWithJobs) -> None:
    assert (await create(api, url="gopher://x")).status_code == 422
    assert (await create(api)).status_code == 200


async def test_a_repeated_redrive_says_again_what_it_did(api: ApiWithJobs) -> None:
    job_id = await api.submit()
    await (await FakePredictor(api.store, job_id).start()).fail("engine_died")
    path = f"/v1/dead-letters/{job_id}/redrive"
    first = await api.client.post(path, headers=KEY)
    second = await api.client.post(path, headers=KEY)

    assert [first.status_code, second.status_code] == [202, 202]
    assert second.json() == first.json()


async def test_a_call_under_way_is_not_made_a_second_time(store: RedisStore) -> None:
    replay, begun, go_on = Replay(store.redis), asyncio.Event(), asyncio.Event()

    async def slow() -> Response:
        begun.set()
        await go_on.wait()
        return PlainTextResponse("done")

    first = asyncio.create_task(replay.once("s", "k", b"", slow))
    await begun.wait()
    with pytest.raises(Overloaded):
        await replay.once("s", "k", b"", slow)
    go_on.set()

    assert (await first).body == b"done"
