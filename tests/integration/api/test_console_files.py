"""The console's files and the calls behind it: dead letters, and the overview."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from eventing.job.job import JobError, JobRequest, derive_job_id
from eventing.job.store import NewJob
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.fakes import FakePredictor
from tests.integration.stack import TORPOR


@pytest.fixture
async def api(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(settings_for(redis_url), store) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/console", "text/html"),
        ("/console/main.js", "text/javascript"),
        ("/console/console.css", "text/css"),
    ],
)
async def test_each_file_is_served_under_a_strict_policy(
    api: ApiWithJobs, path: str, kind: str
) -> None:
    answer = await api.client.get(path)

    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_file_that_has_not_changed_is_not_sent_again(api: ApiWithJobs) -> None:
    tag = (await api.client.get("/console")).headers["etag"]

    assert (await api.client.get("/console", headers={"if-none-match": tag})).status_code == 304


@pytest.mark.parametrize(
    "name", ["page.py", "overview.py", "..%2fapp.py", "%2e%2e/settings.py", "nothing"]
)
async def test_no_other_file_is_served(api: ApiWithJobs, name: str) -> None:
    assert (await api.client.get(f"/console/{name}")).status_code == 404


async def dead(api: ApiWithJobs, text: str = "poison") -> str:
    job_id = await api.submit(text)
    await (await FakePredictor(api.store, job_id).start()).fail("boom", "it broke")
    return job_id


async def rejected(api: ApiWithJobs, number: int) -> str:
    """An event that never was a job."""
    job_id = derive_job_id("/stranger", str(number))
    nothing = JobRequest(url="", body={})
    new = NewJob(id=job_id, request=nothing, source="/stranger", event_id=str(number))
    await api.store.reject(new, JobError(code="bad_request", message="no"), b"{}")
    return job_id


class TestDeadLetters:
    async def test_they_are_listed_with_reason_and_request(self, api: ApiWithJobs) -> None:
        job_id = await dead(api)

        (letter,) = (await api.client.get("/v1/dead-letters")).json()["data"]

        assert letter["id"] == job_id
        assert letter["error"]["code"] == "boom"
        assert letter["request"]["body"]["messages"][0]["content"] == "poison"
        assert len(letter["attempts"]) == 1

    async def test_a_redrive_queues_the_same_job_and_publishes_its_event(
        self, api: ApiWithJobs
    ) -> None:
        job_id = await dead(api)

        answer = await api.client.post(f"/v1/dead-letters/{job_id}/redrive")

        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert [event.subject for event in api.broker.events] == [job_id, job_id]
        assert (await api.client.get("/v1/dead-letters")).json()["data"] == []

    async def test_a_redrive_may_mend_the_request(self, api: ApiWithJobs) -> None:
        job_id = await dead(api)
        body = {"model": "m", "messages": [{"role": "user", "content": "mended"}]}

        await api.client.post(
            f"/v1/dead-letters/{job_id}/redrive",
            json={"url": "/v1/chat/completions", "body": body},
        )

        job = (await api.client.get(f"/v1/jobs/{job_id}?include=request")).json()
        assert job["request"]["body"]["messages"][0]["content"] == "mended"

    async def test_with_the_broker_away_a_redrive_is_left_to_the_sweep(
        self, api: ApiWithJobs
    ) -> None:
        job_id = await dead(api)
        while await api.store.redis.zcard("torpor:outbox:requests"):
            await asyncio.sleep(0.01)  # the note of its first event goes in its own time
        api.broker.is_down = True

        answer = await api.client.post(f"/v1/dead-letters/{job_id}/redrive")

        assert answer.status_code == 202
        assert await api.store.redis.zcard("torpor:outbox:requests") == 1

    async def test_all_are_redriven_at_once(self, api: ApiWithJobs) -> None:
        jobs = [await dead(api, str(n)) for n in range(3)]

        answer = await api.client.post("/v1/dead-letters/redrive")

        assert sorted(answer.json()["redriven"]) == sorted(jobs)
        assert answer.json()["has_more"] is False

    async def test_dead_letters_behind_a_hundred_rejects_are_redriven_and_the_others_named(
        self, api: ApiWithJobs
    ) -> None:
        jobs = [await dead(api, str(n)) for n in range(2)]
        rejects = [await rejected(api, n) for n in range(105)]
        redriven, skipped, query = [], [], {}
        for _ in range(3):
            answer = await api.client.post("/v1/dead-letters/redrive", params=query)
            redriven += answer.json()["redriven"]
            skipped += [each["id"] for each in answer.json()["skipped"]]
            if not answer.json()["has_more"]:
                break
            query = {"cursor": answer.json()["next_cursor"]}

        assert sorted(redriven) == sorted(jobs)
        assert sorted(skipped) == sorted(rejects)

    async def test_the_command_line_redrives_all_and_says_what_it_left(
        self, api: ApiWithJobs
    ) -> None:
        job_id = await dead(api)
        rejects = [await rejected(api, n) for n in range(101)]

        process = await asyncio.create_subprocess_exec(
            TORPOR, "dead-letters", "redrive", "--all", "--api", api.url, stdout=PIPE, stderr=PIPE
        )
        said, complaint = await process.communicate()

        assert said.decode().split() == [job_id]
        assert process.returncode == 1
        assert "101 were not redriven" in complaint.decode()
        assert rejects[0] in complaint.decode()

    async def test_a_key_stands_for_its_cursor_too(self, api: ApiWithJobs) -> None:
        for n in range(101):
            await rejected(api, n)
        key = {"idempotency-key": "k"}
        first = await api.client.post("/v1/dead-letters/redrive", headers=key)
        cursor = {"cursor": first.json()["next_cursor"]}
        other = await api.client.post("/v1/dead-letters/redrive", headers=key, params=cursor)

        assert (first.status_code, other.status_code) == (202, 409)

    async def test_a_discarded_one_is_gone(self, api: ApiWithJobs) -> None:
        job_id = await dead(api)

        await api.client.delete(f"/v1/dead-letters/{job_id}")

        assert (await api.client.get(f"/v1/jobs/{job_id}")).status_code == 404

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/redrive")]
    )
    async def test_a_job_that_is_well_is_no_dead_letter(
        self, api: ApiWithJobs, method: str, path: str
    ) -> None:
        job_id = await api.submit()

        answer = await api.client.request(method, f"/v1/dead-letters/{job_id}{path}")

        assert answer.status_code == 404

    async def test_an_edit_that_can_never_work_names_its_field(self, api: ApiWithJobs) -> None:
        job_id = await dead(api)

        answer = await api.client.post(
            f"/v1/dead-letters/{job_id}/redrive", json={"url": "/v1/nope", "body": {}}
        )

        assert (answer.status_code, answer.json()["field"]) == (422, "url")


async def test_the_overview_has_every_model(api: ApiWithJobs) -> None:
    overview = (await api.client.get("/v1/overview")).json()

    (model,) = overview["models"]
    assert model["model"] == "m"
    assert model["queue"]["waiting"] == {"interactive": 0, "default": 0, "batch": 0}
    assert model["replicas"] == []
