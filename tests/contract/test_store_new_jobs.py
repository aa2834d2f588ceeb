"""A submitted request becomes a job once, or a stored refusal."""

import asyncio
from dataclasses import replace

import pytest

from eventing.errors import IdempotencyConflict
from eventing.job.job import JobError, JobRequest, JobState
from eventing.job.store import LeaseStatus
from tests.contract.rig import ANSWER, LEASE_MS, Rig, finish, job_id, new_job, redrive, started


class TestCreate:
    async def test_a_new_job_is_queued_and_can_be_read_back(self, rig: Rig) -> None:
        before = await rig.now_ms()

        job, is_new = await rig.store.submit(new_job())

        assert is_new
        stored = await rig.store.get(job.id)
        assert stored == job
        assert (stored.state, stored.attempt, stored.token_count) == (JobState.QUEUED, 0, 0)
        assert stored.tenant == "acme"
        assert stored.metadata == {"webhook": "https://example.org/hook"}
        assert before <= stored.created_ms <= await rig.now_ms()

    async def test_the_same_request_again_is_the_same_job(self, rig: Rig) -> None:
        first, _ = await rig.store.submit(new_job())

        second, is_new = await rig.store.submit(new_job())

        assert (second, is_new) == (first, False)

    async def test_the_order_of_keys_makes_no_other_request(self, rig: Rig) -> None:
        new = new_job()
        await rig.store.submit(new)
        turned = JobRequest(
            url=new.request.url,
            body=dict(reversed(list(new.request.body.items()))),
            custom_id=new.request.custom_id,
        )

        _, is_new = await rig.store.submit(replace(new, request=turned))

        assert not is_new

    async def test_another_request_under_the_same_identity_is_a_conflict(self, rig: Rig) -> None:
        first, _ = await rig.store.submit(new_job(prompt="why?"))

        with pytest.raises(IdempotencyConflict):
            await rig.store.submit(new_job(prompt="how?"))

        assert await rig.store.get(first.id) == first

    async def test_other_options_under_the_same_identity_are_a_conflict(self, rig: Rig) -> None:
        first, _ = await rig.store.submit(replace(new_job(), options_sha="a"))

        again = await rig.store.submit(replace(new_job(), options_sha="a"))
        with pytest.raises(IdempotencyConflict):
            await rig.store.submit(replace(new_job(), options_sha="b"))

        assert again == (first, False)

    @pytest.mark.parametrize(("known", "asked"), [("", "a"), ("a", "")])
    async def test_a_record_without_options_matches_any_options(
        self, rig: Rig, known: str, asked: str
    ) -> None:
        await rig.store.submit(replace(new_job(), options_sha=known))

        _, is_new = await rig.store.submit(replace(new_job(), options_sha=asked))

        assert not is_new

    async def test_another_tenant_under_the_same_id_is_a_conflict(self, rig: Rig) -> None:
        first, _ = await rig.store.submit(new_job(tenant="acme"))

        with pytest.raises(IdempotencyConflict):
            await rig.store.submit(replace(new_job(tenant="mallory"), id=first.id))

    async def test_a_conflict_does_not_show_the_job_to_the_other_tenant(self, rig: Rig) -> None:
        first, _ = await rig.store.submit(new_job(tenant="acme"))
        with pytest.raises(IdempotencyConflict):
            await rig.store.submit(replace(new_job(tenant="mallory"), id=first.id))

        page = await rig.store.list_jobs("mallory")

        assert page.jobs == ()

    async def test_many_creators_at_once_make_one_job(self, rig: Rig) -> None:
        answers = await asyncio.gather(*(rig.store.submit(new_job()) for _ in range(20)))

        assert sum(is_new for _, is_new in answers) == 1
        assert len({job.created_ms for job, _ in answers}) == 1

    async def test_an_unknown_job_is_none(self, rig: Rig) -> None:
        assert await rig.store.get(job_id("nobody")) is None


class TestReject:
    RAW = b'{"url": "/v1/nothing", "body": 7}'
    REFUSAL = JobError(code="invalid_job", message="url must be one of ...", field="url")

    async def test_a_rejected_event_is_a_dead_letter_with_its_raw_data(self, rig: Rig) -> None:
        assert await rig.store.reject(new_job(), self.REFUSAL, self.RAW)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.error, job.is_dead_letter) == (JobState.FAILED, self.REFUSAL, True)
        assert job.request.body == {"raw": {"url": "/v1/nothing", "body": 7}}
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job.id]

    async def test_rejecting_again_changes_nothing(self, rig: Rig) -> None:
        await rig.store.reject(new_job(), self.REFUSAL, self.RAW)
        first = await rig.store.get(job_id())
        await rig.pass_time(5)

        assert await rig.store.reject(new_job(), self.REFUSAL, self.RAW)

        again = await rig.store.get(job_id())
        assert first is not None
        assert again is not None
        assert again.error == first.error
        assert len(await rig.store.read_stream(job_id())) == 1

    @pytest.mark.parametrize("data", [b"\xff\xfe", b"not json", b"[]", b'"text"', b"null", b""])
    async def test_data_that_is_no_json_object_is_kept(self, rig: Rig, data: bytes) -> None:
        await rig.store.reject(new_job(), self.REFUSAL, data)

        job = await rig.store.get(job_id())
        assert job is not None
        assert "raw" in job.request.body

    async def test_a_bad_event_cannot_end_a_healthy_job_of_the_same_identity(
        self, rig: Rig
    ) -> None:
        # Whoever knows (or guesses) source and id could otherwise fail somebody else's job.
        await rig.store.submit(new_job())
        strange = replace(new_job(tenant="mallory"), id=job_id())

        assert not await rig.store.reject(strange, self.REFUSAL, self.RAW)

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.QUEUED

    async def test_a_bad_event_cannot_end_a_running_job_of_the_same_identity(
        self, rig: Rig
    ) -> None:
        lease = await started(rig)
        await rig.pass_time(LEASE_MS + 1)

        await rig.store.reject(new_job(), self.REFUSAL, self.RAW)

        assert await finish(rig.store, lease, ANSWER) is LeaseStatus.OK

    async def test_a_redriven_reject_that_is_still_bad_is_a_dead_letter_again(
        self, rig: Rig
    ) -> None:
        await rig.store.reject(new_job(), self.REFUSAL, self.RAW)
        assert await redrive(rig)
        job = await rig.store.get(job_id())
        assert job is not None

        assert await rig.store.reject(new_job(), self.REFUSAL, job.request.to_json())

        ended = await rig.store.get(job_id())
        assert ended is not None
        assert (ended.state, ended.is_dead_letter) == (JobState.FAILED, True)
