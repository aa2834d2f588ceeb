"""The broker's ingress: one test for each sentence of Knative's data-plane contract."""

import asyncio
import base64
import gzip
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import httpx
import orjson
import pytest
import zstandard
from redis.asyncio import Redis

from eventing.broker.queue.view import QueueView
from eventing.broker.server import Broker
from eventing.broker.settings import BrokerSettings
from eventing.cloudevent.event import STRUCTURED
from eventing.cloudevent.job_event import REQUESTED
from eventing.errors import StoreUnavailable
from eventing.job.job import Job, JobState, derive_job_id
from eventing.job.store import Publication
from eventing.store.redis_store import RedisStore
from tests.awake import awake_s
from tests.contract.broker.stack import NAME, trigger
from tests.contract.rig import new_job
from tests.redis_server import RedisServer
from tests.time_limits import HANG_S, STORE_S

HEADERS = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
LIMIT = 2048
CODINGS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def settings(redis_url: str, **changes: object) -> BrokerSettings:
    return BrokerSettings.model_validate(
        {"redis_url": redis_url, "event_limit_bytes": LIMIT, "triggers_file": Path("none")}
        | {"store_timeout_s": STORE_S, "body_timeout_s": HANG_S}
        | changes
    )


@pytest.fixture
async def client(redis_url: str, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    broker = Broker(settings(redis_url), [trigger("http://127.0.0.1:1/")])
    transport = httpx.ASGITransport(app=broker.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield http
    await broker.close()


async def queued(redis: Redis) -> int:
    return (await QueueView(redis).depth(NAME)).total_waiting


class TestTaken:
    async def test_an_event_is_answered_202_once_it_is_stored(
        self, client: httpx.AsyncClient, redis: Redis
    ) -> None:
        answer = await client.post("/", headers=HEADERS, content=b"x")

        assert (answer.status_code, answer.content) == (202, b"")
        assert await queued(redis) == 1

    async def test_structured_mode_is_taken(self, client: httpx.AsyncClient, redis: Redis) -> None:
        envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": 1}

        answer = await client.post(
            "/", headers={"content-type": STRUCTURED}, content=orjson.dumps(envelope)
        )

        assert answer.status_code == 202
        assert await queued(redis) == 1

    async def test_knatives_path_is_taken(self, client: httpx.AsyncClient, redis: Redis) -> None:
        answer = await client.post("/default/broker", headers=HEADERS)

        assert answer.status_code == 202
        assert await queued(redis) == 1

    async def test_a_duplicate_is_taken_and_is_one_event(
        self, client: httpx.AsyncClient, redis: Redis
    ) -> None:
        for _ in range(3):
            assert (await client.post("/", headers=HEADERS)).status_code == 202

        assert await queued(redis) == 1


class TestJobs:
    """Requests of other producers: their jobs are recorded as they are queued."""

    ASKS = HEADERS | {"ce-type": REQUESTED, "ce-id": "7", "content-type": "application/json"}
    LINE = new_job("7").request.to_json()
    JOB_ID = derive_job_id("/s", "7")

    async def test_a_job_is_listed_while_it_waits(
        self, client: httpx.AsyncClient, store: RedisStore, redis: Redis
    ) -> None:
        for _ in range(2):
            answer = await client.post("/", headers=self.ASKS, content=self.LINE)
            assert answer.status_code == 202

        (job,) = (await store.list_jobs("default")).jobs
        assert (job.id, job.state, job.event_id) == (self.JOB_ID, JobState.QUEUED, "7")
        assert await queued(redis) == 1

    async def test_an_event_that_was_answered_503_is_taken_when_it_comes_again(
        self,
        client: httpx.AsyncClient,
        redis: Redis,
        store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Its job had been withdrawn, so the second POST was answered as a duplicate of a job that
        # would never run.
        submit, heard = RedisStore.submit, iter([False])

        async def unheard(*args: Any) -> tuple[Job, bool]:
            answer = await submit(*args)
            if next(heard, True):
                return answer
            raise StoreUnavailable("the answer was lost")

        monkeypatch.setattr(RedisStore, "submit", unheard)
        first = await client.post("/", headers=self.ASKS, content=self.LINE)
        second = await client.post("/", headers=self.ASKS, content=self.LINE)

        assert (first.status_code, second.status_code) == (503, 202)
        job = await store.get(self.JOB_ID)
        assert job is not None
        assert job.state is JobState.QUEUED
        assert await queued(redis) == 1

    async def test_an_event_whose_job_another_process_recorded_is_queued(
        self, client: httpx.AsyncClient, store: RedisStore, redis: Redis
    ) -> None:
        # An api that publishes over HTTP records first, also the jobs of other producers.
        new = replace(new_job("7", tenant="default"), id=self.JOB_ID, source="/s")
        await store.submit(new, Publication(max_unpublished=9))

        for _ in range(2):
            await client.post("/", headers=self.ASKS, content=self.LINE)

        assert await queued(redis) == 1

    async def test_an_invalid_job_becomes_a_dead_letter_and_starts_no_predictor(
        self, client: httpx.AsyncClient, store: RedisStore, redis: Redis
    ) -> None:
        answer = await client.post("/", headers=self.ASKS, content=b"{no")

        assert answer.status_code == 202
        (dead,) = (await store.list_dead_letters("default")).jobs
        assert dead.id == self.JOB_ID
        assert await queued(redis) == 0

    async def test_an_event_of_a_deleted_job_is_dropped(
        self, client: httpx.AsyncClient, store: RedisStore, redis: Redis
    ) -> None:
        await client.post("/", headers=self.ASKS, content=self.LINE)
        await store.cancel(self.JOB_ID)
        await store.delete(self.JOB_ID)

        answer = await client.post("/", headers=self.ASKS, content=self.LINE)

        assert answer.status_code == 202
        assert await store.get(self.JOB_ID) is None
        assert await queued(redis) == 0

    async def test_another_request_under_the_same_identity_is_refused(
        self, client: httpx.AsyncClient, redis: Redis
    ) -> None:
        await client.post("/", headers=self.ASKS, content=self.LINE)

        other = new_job("7", prompt="how?").request.to_json()
        answer = await client.post("/", headers=self.ASKS, content=other)

        assert answer.status_code == 409
        assert await queued(redis) == 1

    async def test_the_202_of_a_request_names_its_job(
        self, client: httpx.AsyncClient, redis: Redis
    ) -> None:
        line = {"url": "/v1/completions", "body": {"model": "m", "prompt": "why?"}}
        asks = HEADERS | {"ce-type": REQUESTED, "content-type": "application/json"}

        answer = await client.post("/", headers=asks, content=orjson.dumps(line))

        job_id = derive_job_id("/s", "1")
        assert answer.status_code == 202
        assert answer.headers["torpor-job-id"] == answer.json()["id"] == job_id
        assert await RedisStore(redis).get(job_id) is not None


class TestRefused:
    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    async def test_anything_but_post_is_405(self, client: httpx.AsyncClient, method: str) -> None:
        for path in ("/", "/default/broker"):
            assert (await client.request(method, path, headers=HEADERS)).status_code == 405

    @pytest.mark.parametrize("missing", HEADERS)
    async def test_an_invalid_event_is_400_with_its_reason(
        self, client: httpx.AsyncClient, redis: Redis, missing: str
    ) -> None:
        headers = {k: v for k, v in HEADERS.items() if k != missing}

        answer = await client.post("/", headers=headers)

        assert answer.status_code == 400
        assert missing in answer.json()["message"]
        assert await queued(redis) == 0

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 1500])
    async def test_a_broken_structured_event_is_400(
        self, client: httpx.AsyncClient, content: bytes
    ) -> None:
        answer = await client.post("/", headers={"content-type": STRUCTURED}, content=content)

        assert answer.status_code == 400

    async def test_a_batch_is_415(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/", headers={"content-type": "application/cloudevents-batch+json"}, content=b"[]"
        )

        assert answer.status_code == 415

    async def test_a_body_over_the_limit_is_413(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/", headers=HEADERS, content=b"x" * (LIMIT + 1))

        assert answer.status_code == 413

    async def test_a_body_at_the_limit_is_taken(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/", headers=HEADERS, content=b"x" * LIMIT)

        assert answer.status_code == 202

    async def test_a_stream_over_the_limit_is_413(self, client: httpx.AsyncClient) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(LIMIT // 512 + 1):
                yield b"x" * 512

        answer = await client.post("/", headers=HEADERS, content=chunks())

        assert answer.status_code == 413

    @pytest.mark.parametrize("value", ["text/plain\x0b", "é", "x" * 5000])
    async def test_a_content_type_that_is_no_header_is_400(
        self, client: httpx.AsyncClient, value: str
    ) -> None:
        envelope = {
            "specversion": "1.0",
            "id": "1",
            "source": "/s",
            "type": "t",
            "datacontenttype": value,
        }

        answer = await client.post(
            "/", headers={"content-type": STRUCTURED}, content=orjson.dumps(envelope)
        )

        assert answer.status_code in (400, 413)

    async def test_a_refusal_repeats_no_data(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/", headers={"content-type": STRUCTURED}, content=b'{"canary-8f3"'
        )

        assert "canary" not in answer.text


class TestUnavailable:
    async def test_without_a_store_it_is_503_with_retry_after_within_two_seconds(
        self, port: int
    ) -> None:
        broker = Broker(settings(f"redis://127.0.0.1:{port}/0"), [trigger("http://127.0.0.1:1/")])
        transport = httpx.ASGITransport(app=broker.app())
        began = awake_s()

        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.post("/", headers=HEADERS)
            ready = await client.get("/readyz")

        assert awake_s() - began < 4
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert ready.status_code == 503
        await broker.close()

    async def test_a_broker_that_has_started_stays_ready_without_its_store(
        self, tmp_path: Path
    ) -> None:
        server = RedisServer(tmp_path)
        server.start()
        broker = Broker(settings(server.url), [trigger("http://127.0.0.1:1/")])
        transport = httpx.ASGITransport(app=broker.app())

        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/readyz")).status_code == 200
            server.kill()
            answer = await client.post("/", headers=HEADERS)
            ready = await client.get("/readyz")

        assert (answer.status_code, ready.status_code) == (503, 200)
        await broker.close()

    async def test_alive_ready_and_metrics_answer(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert "torpor_broker_events_total" in (await client.get("/metrics")).text


async def everything_in(redis: Redis) -> bytes:
    """All that stands in hashes and streams."""
    found: list[bytes] = []
    async for key in redis.scan_iter():
        match await redis.type(key):
            case b"hash":
                found += (await redis.hgetall(key)).values()
            case b"stream":
                found += [v for _, fields in await redis.xrange(key) for v in fields.values()]
    return b"".join(found)


class TestEncoded:
    """A body that is encoded is what it says, or is refused; it never becomes an event of noise."""

    @pytest.mark.parametrize("encoding", CODINGS)
    async def test_an_encoded_event_is_the_event(
        self, client: httpx.AsyncClient, redis: Redis, encoding: str
    ) -> None:
        body = CODINGS[encoding](orjson.dumps({"text": "hi"}))
        headers = HEADERS | {"content-encoding": encoding, "content-type": "application/json"}

        assert (await client.post("/", headers=headers, content=body)).status_code == 202
        assert base64.b64encode(b'{"text":"hi"}') in await everything_in(redis)

    async def test_a_coding_that_is_not_decoded_is_415_and_names_those_that_are(
        self, client: httpx.AsyncClient, redis: Redis
    ) -> None:
        headers = HEADERS | {"content-encoding": "compress"}
        answer = await client.post("/", headers=headers, content=b"x")

        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate, br, zstd"
        assert await queued(redis) == 0

    @pytest.mark.parametrize("encoding", CODINGS)
    async def test_a_body_too_large_once_decoded_is_413(
        self, client: httpx.AsyncClient, redis: Redis, encoding: str
    ) -> None:
        body = CODINGS[encoding](bytes(1024 * 1024))
        headers = HEADERS | {"content-encoding": encoding}

        assert (await client.post("/", headers=headers, content=body)).status_code == 413
        assert await queued(redis) == 0

    @pytest.mark.parametrize("encoding", CODINGS)
    async def test_a_body_that_is_cut_is_400(
        self, client: httpx.AsyncClient, redis: Redis, encoding: str
    ) -> None:
        headers = HEADERS | {"content-encoding": encoding}
        answer = await client.post("/", headers=headers, content=CODINGS[encoding](b"hello")[:-4])

        assert answer.status_code == 400
        assert await queued(redis) == 0


async def test_an_event_whose_body_differs_from_its_content_length_is_400(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    headers = HEADERS | {"content-length": "5"}

    answer = await client.post("/", headers=headers, content=b"")

    assert answer.status_code == 400
    assert await queued(redis) == 0


async def test_an_event_that_comes_too_slowly_is_408(redis_url: str, redis: Redis) -> None:
    broker = Broker(settings(redis_url, body_timeout_s=0.1), [trigger("http://127.0.0.1:1/")])

    async def dripping() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(3600)

    transport = httpx.ASGITransport(app=broker.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answer = await http.post("/", headers=HEADERS, content=dripping())
    await broker.close()

    assert answer.status_code == 408
    assert await queued(redis) == 0


@pytest.mark.parametrize("path", ["/", "/default/broker"])
async def test_an_options_request_is_answered_with_the_allowed_origin(
    redis_url: str, redis: Redis, path: str
) -> None:
    broker = Broker(settings(redis_url, event_origins=("eventgrid.azure.net",)), [])
    transport = httpx.ASGITransport(app=broker.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        allowed, refused = [
            await http.options(path, headers={"webhook-request-origin": origin})
            for origin in ("eventgrid.azure.net", "evil.example")
        ]
    await broker.close()

    assert allowed.headers["webhook-allowed-origin"] == "eventgrid.azure.net"
    assert "webhook-allowed-origin" not in refused.headers
