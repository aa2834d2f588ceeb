"""A large result lies in the object store a moment after its job has ended; callers see no difference."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from openai import AsyncOpenAI

from eventing.job.job import JobId
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.fakes import FakePredictor, chat_result, names_of, sse_events

WORDS = [f"word-{number} ☃ " for number in range(6_000)]
TEXT = "".join(WORDS)


@pytest.fixture
async def api(redis_url: str, store: RedisStore, tmp_path: Path) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(
        settings_for(redis_url, files_url=f"file://{tmp_path}"), store
    ) as made:
        yield made


async def archived_job(api: ApiWithJobs) -> str:
    """A job whose long answer has left Redis."""
    job_id = await api.submit()
    predictor = await FakePredictor(api.store, job_id).start()
    for start in range(0, len(WORDS), 300):
        await predictor.chat("".join(WORDS[start : start + 300]))
    await predictor.finish(chat_result(TEXT))
    async with asyncio.timeout(60):
        while not await api.store.redis.hexists(keys.job(JobId(job_id)), "object"):
            await asyncio.sleep(0.02)
    assert not await api.store.redis.hexists(keys.job(JobId(job_id)), "result")
    assert await api.store.redis.xlen(keys.tokens(JobId(job_id))) == 1
    return job_id


async def test_a_job_shows_its_archived_result_and_where_to_fetch_it(api: ApiWithJobs) -> None:
    job_id = await archived_job(api)

    job = (await api.client.get(f"/v1/jobs/{job_id}")).json()
    listed = (await api.client.get("/v1/jobs?include=result")).json()["data"]
    result = await api.client.get(job["links"]["result"])

    assert job["result"]["choices"][0]["message"]["content"] == TEXT
    assert listed[0]["result"] == job["result"]
    assert result.json() == job["result"]
    assert job["links"]["result"] == f"/v1/jobs/{job_id}/result"


async def test_its_stream_is_replayed_from_the_start_and_from_any_event(api: ApiWithJobs) -> None:
    job_id = await archived_job(api)

    whole = await events_of(api, job_id)
    tokens = [event for event in whole if event["event"] == "tokens"]
    rest = await events_of(api, job_id, after=tokens[7]["id"])

    shown = "".join(
        choice["delta"]["content"]
        for event in tokens
        for choice in orjson.loads(event["data"])["delta"]
    )
    assert shown == TEXT
    assert names_of(whole)[-1] == "result"
    assert [e["id"] for e in rest if e["event"] == "tokens"] == [e["id"] for e in tokens[8:]]
    assert not {"gap", "archived", "attempt"} & {*names_of(rest)}


async def events_of(api: ApiWithJobs, job_id: str, after: str = "") -> list[dict[str, str]]:
    """What the job's stream tells, to its end."""
    headers = {"last-event-id": after} if after else {}
    url = f"/v1/jobs/{job_id}/events"
    async with api.client.stream("GET", url, headers=headers) as answer:
        return [event async for event in sse_events(answer.aiter_lines()) if "event" in event]


async def test_openais_client_gets_an_archived_response(api: ApiWithJobs) -> None:
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client:
        response = await client.responses.create(model="m", input="hi", background=True)
        job_id = next(event.subject for event in api.broker.events)
        await (await FakePredictor(api.store, job_id).start()).finish(chat_result(TEXT))
        async with asyncio.timeout(60):
            while not await api.store.redis.hexists(keys.job(JobId(job_id)), "object"):
                await asyncio.sleep(0.02)
        found = await client.responses.retrieve(response.id)

    assert found.output_text == TEXT


class TestRanges:
    async def test_a_result_is_fetched_in_pieces_that_fit(self, api: ApiWithJobs) -> None:
        path = f"/v1/jobs/{await archived_job(api)}/result"
        whole = await api.client.get(path)
        size, found = len(whole.content), b""
        while len(found) < size:
            piece = await api.client.get(
                path,
                headers={
                    "range": f"bytes={len(found)}-{len(found) + 9_999}",
                    "if-range": whole.headers["etag"],
                },
            )
            assert piece.status_code == 206
            assert piece.headers["content-range"].startswith(f"bytes {len(found)}-")
            found += piece.content

        assert found == whole.content

    async def test_what_has_not_changed_is_not_sent_again(self, api: ApiWithJobs) -> None:
        path = f"/v1/jobs/{await archived_job(api)}/result"
        etag = (await api.client.get(path)).headers["etag"]

        again = await api.client.get(path, headers={"if-none-match": etag})

        assert (again.status_code, again.content) == (304, b"")

    async def test_head_tells_the_size(self, api: ApiWithJobs) -> None:
        path = f"/v1/jobs/{await archived_job(api)}/result"
        size = len((await api.client.get(path)).content)

        head = await api.client.head(path)

        assert (head.headers["content-length"], head.headers["accept-ranges"]) == (
            str(size),
            "bytes",
        )

    async def test_a_range_behind_the_end_is_416_with_the_size(self, api: ApiWithJobs) -> None:
        path = f"/v1/jobs/{await archived_job(api)}/result"

        refused = await api.client.get(path, headers={"range": "bytes=99999999-"})

        assert refused.status_code == 416
        assert refused.headers["content-range"].startswith("bytes */")

    async def test_a_job_without_a_result_says_why(self, api: ApiWithJobs) -> None:
        job_id = await api.submit()
        path = f"/v1/jobs/{job_id}/result"
        assert (await api.client.get(path)).status_code == 409

        await api.client.delete(f"/v1/jobs/{job_id}")
        assert (await api.client.get(path)).status_code == 404


class TestObjectThatIsGone:
    """Only who wants the result is told so."""

    @pytest.fixture
    async def job_id(self, api: ApiWithJobs, tmp_path: Path) -> str:
        made = await archived_job(api)
        shutil.rmtree(tmp_path / "results")
        return made

    async def test_the_result_is_410(self, api: ApiWithJobs, job_id: str) -> None:
        for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/result"):
            answer = await api.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (410, "result_gone")

    async def test_its_stream_ends_with_a_link_as_it_did_before(
        self, api: ApiWithJobs, tmp_path: Path
    ) -> None:
        job_id = await api.submit()
        predictor = await FakePredictor(api.store, job_id).start()
        text = "x" * 70_000  # fits into a line, and is archived
        await predictor.finish(chat_result(text))
        before = await events_of(api, job_id)
        async with asyncio.timeout(60):
            while not await api.store.redis.hexists(keys.job(JobId(job_id)), "object"):
                await asyncio.sleep(0.02)
        shutil.rmtree(tmp_path / "results")

        after = await events_of(api, job_id)

        assert orjson.loads(before[-1]["data"]) == orjson.loads(after[-1]["data"])
        told = orjson.loads(after[-1]["data"])
        assert (told["state"], told["result"]) == ("completed", None)
        assert told["links"]["result"] == f"/v1/jobs/{job_id}/result"
        assert names_of(after) == ["state", "result"]

    async def test_tokens_that_are_gone_are_a_gap(self, api: ApiWithJobs, job_id: str) -> None:
        entries = await events_of(api, job_id)
        resumed = await events_of(api, job_id, after=entries[-1]["id"].removesuffix(".end"))

        assert names_of(entries) == ["state", "gap", "result"]
        assert names_of(resumed)[-1] == "result"

    async def test_its_end_stays_in_the_feed(self, api: ApiWithJobs, job_id: str) -> None:
        async with api.client.stream("GET", "/v1/events?after=0-0") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    break

        assert orjson.loads(line[6:])["dataref"] == f"/v1/jobs/{job_id}/result"

    async def test_a_response_is_deleted_all_the_same(
        self, api: ApiWithJobs, tmp_path: Path
    ) -> None:
        body = {"model": "m", "input": "hi", "background": True}
        response = (await api.client.post("/v1/responses", json=body)).json()["id"]
        job_id = JobId(api.broker.events[-1].subject)
        await (await FakePredictor(api.store, job_id).start()).finish(chat_result(TEXT))
        async with asyncio.timeout(60):
            while not await api.store.redis.hexists(keys.job(job_id), "object"):
                await asyncio.sleep(0.02)
        shutil.rmtree(tmp_path / "results")

        deleted = await api.client.delete(f"/v1/responses/{response}")

        assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
