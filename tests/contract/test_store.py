"""What every job store keeps, whichever it is. One suite, run in memory and on a real server."""

import asyncio
from dataclasses import replace

import pytest

from eventing.errors import BadRequest, IdempotencyConflict
from eventing.job import JobError, JobRequest, JobState
from eventing.store import (
    Acquired,
    AcquireStatus,
    Ending,
    EntryKind,
    Hold,
    Release,
    TokenBatch,
)
from tests.contract.rig import SETTINGS, Rig, job_id, new_job

FAULT = JobError(code="engine_error", message="the engine gave up")
ANSWER = Ending(state=JobState.COMPLETED, result={"text": "because"}, usage={"total_tokens": 3})
LEASE_MS = SETTINGS.lease_ms
TERMINAL = [state for state in JobState if state.is_terminal]


async def started(rig: Rig, event_id: str = "1", **arguments: object) -> int:
    """Create a job and take its lease; the attempt."""
    await rig.store.create(new_job(event_id, **arguments))  # type: ignore[arg-type]
    return (await rig.store.acquire(job_id(event_id), "worker-1", can_resume=True)).attempt


async def dead(rig: Rig, event_id: str = "1") -> None:
    """Make a dead letter: a job that failed in each of its attempts."""
    await rig.store.create(new_job(event_id))
    for _ in range(SETTINGS.max_attempts):
        taken = await rig.store.acquire(job_id(event_id), "worker-1", can_resume=True)
        await rig.store.release(job_id(event_id), taken.attempt, Release.FAILURE, FAULT)


class TestCreate:
    async def test_a_new_job_is_queued_and_can_be_read_back(self, rig: Rig) -> None:
        before = await rig.now_ms()

        job, is_new = await rig.store.create(new_job())

        assert is_new
        stored = await rig.store.get(job.id)
        assert stored == job
        assert (stored.state, stored.attempt, stored.token_count) == (JobState.QUEUED, 0, 0)
        assert stored.tenant == "acme"
        assert stored.metadata == {"webhook": "https://example.org/hook"}
        assert before <= stored.created_ms <= await rig.now_ms()

    async def test_the_same_request_again_is_the_same_job(self, rig: Rig) -> None:
        first, _ = await rig.store.create(new_job())

        second, is_new = await rig.store.create(new_job())

        assert (second, is_new) == (first, False)

    async def test_the_order_of_keys_makes_no_other_request(self, rig: Rig) -> None:
        new = new_job()
        await rig.store.create(new)
        turned = JobRequest(
            url=new.request.url,
            body=dict(reversed(list(new.request.body.items()))),
            custom_id=new.request.custom_id,
        )

        _, is_new = await rig.store.create(replace(new, request=turned))

        assert not is_new

    async def test_another_request_under_the_same_identity_is_a_conflict(self, rig: Rig) -> None:
        first, _ = await rig.store.create(new_job(prompt="why?"))

        with pytest.raises(IdempotencyConflict):
            await rig.store.create(new_job(prompt="how?"))

        assert await rig.store.get(first.id) == first

    async def test_another_tenant_under_the_same_identity_is_a_conflict(self, rig: Rig) -> None:
        await rig.store.create(new_job(tenant="acme"))

        with pytest.raises(IdempotencyConflict):
            await rig.store.create(new_job(tenant="mallory"))

    async def test_a_conflict_does_not_show_the_job_to_the_other_tenant(self, rig: Rig) -> None:
        await rig.store.create(new_job(tenant="acme"))
        with pytest.raises(IdempotencyConflict):
            await rig.store.create(new_job(tenant="mallory"))

        page = await rig.store.list_jobs("mallory")

        assert page.jobs == ()

    async def test_many_creators_at_once_make_one_job(self, rig: Rig) -> None:
        answers = await asyncio.gather(*(rig.store.create(new_job()) for _ in range(20)))

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
        await rig.store.create(new_job())

        assert not await rig.store.reject(new_job(tenant="mallory"), self.REFUSAL, self.RAW)

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.QUEUED

    async def test_a_bad_event_cannot_end_a_running_job_of_the_same_identity(
        self, rig: Rig
    ) -> None:
        attempt = await started(rig)
        await rig.pass_time(LEASE_MS + 1)

        await rig.store.reject(new_job(), self.REFUSAL, self.RAW)

        assert await rig.store.finish(job_id(), attempt, ANSWER) is Hold.OK

    async def test_a_redriven_reject_that_is_still_bad_is_a_dead_letter_again(
        self, rig: Rig
    ) -> None:
        await rig.store.reject(new_job(), self.REFUSAL, self.RAW)
        assert await rig.store.redrive(job_id(), None)
        job = await rig.store.get(job_id())
        assert job is not None

        assert await rig.store.reject(new_job(), self.REFUSAL, job.request.to_json())

        ended = await rig.store.get(job_id())
        assert ended is not None
        assert (ended.state, ended.is_dead_letter) == (JobState.FAILED, True)


class TestAcquire:
    async def test_a_queued_job_is_started(self, rig: Rig) -> None:
        await rig.store.create(new_job())

        taken = await rig.store.acquire(job_id(), "worker-1", can_resume=True)

        assert (taken.status, taken.attempt, taken.token_count) == (AcquireStatus.ACQUIRED, 1, 0)
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.IN_PROGRESS, "worker-1")
        assert job.lease_until_ms - job.started_ms == LEASE_MS
        assert [(a.attempt, a.owner, a.outcome) for a in job.history] == [(1, "worker-1", "")]

    async def test_a_running_job_is_held_and_says_for_how_long(self, rig: Rig) -> None:
        await started(rig)
        await rig.pass_time(10_000)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.status is AcquireStatus.HELD
        assert 0 < taken.lease_left_ms <= LEASE_MS - 10_000

    async def test_of_many_who_ask_at_once_one_gets_the_lease(self, rig: Rig) -> None:
        await rig.store.create(new_job())

        answers = await asyncio.gather(
            *(rig.store.acquire(job_id(), f"worker-{n}", can_resume=True) for n in range(20))
        )

        statuses = [answer.status for answer in answers]
        assert statuses.count(AcquireStatus.ACQUIRED) == 1
        assert statuses.count(AcquireStatus.HELD) == 19

    async def test_a_lapsed_lease_is_taken_over_and_costs_an_attempt(self, rig: Rig) -> None:
        await started(rig)
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, 2)
        job = await rig.store.get(job_id())
        assert job is not None
        assert [a.outcome for a in job.history] == ["lost", ""]
        assert job.history[0].ended_ms > 0

    async def test_a_job_whose_attempts_were_all_lost_is_a_dead_letter(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        for number in range(1, SETTINGS.max_attempts + 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True, is_alone=True)
            assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, number)
            await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.EXHAUSTED
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
        assert job.error is not None
        assert job.error.code == "exhausted"
        assert [a.outcome for a in job.history] == ["lost"] * 3
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_the_last_attempt_of_a_job_that_lost_one_is_for_who_runs_nothing_else(
        self, rig: Rig
    ) -> None:
        await rig.store.create(new_job())
        for _ in range(SETTINGS.max_attempts - 1):
            await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.pass_time(LEASE_MS + 1)
        before = await rig.store.get(job_id())

        refused = await rig.store.acquire(job_id(), "busy", can_resume=True)
        after = await rig.store.get(job_id())
        taken = await rig.store.acquire(job_id(), "idle", can_resume=True, is_alone=True)

        assert refused.status is AcquireStatus.ALONE
        assert after == before
        assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, SETTINGS.max_attempts)

    async def test_a_job_that_lost_engines_has_its_last_attempt_alone_too(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        for why in (Release.LOST, Release.FAILURE):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(job_id(), taken.attempt, why, FAULT)

        taken = await rig.store.acquire(job_id(), "busy", can_resume=True)

        assert taken.status is AcquireStatus.ALONE

    async def test_a_job_that_only_fails_by_itself_needs_nobody_to_make_room(
        self, rig: Rig
    ) -> None:
        await rig.store.create(new_job())
        for _ in range(SETTINGS.max_attempts - 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(job_id(), taken.attempt, Release.FAILURE, FAULT)

        taken = await rig.store.acquire(job_id(), "busy", can_resume=True)

        assert taken.status is AcquireStatus.ACQUIRED

    async def test_a_job_past_its_deadline_is_failed_and_not_started(self, rig: Rig) -> None:
        await rig.store.create(new_job(deadline_ms=await rig.now_ms() + 60_000))
        await rig.pass_time(60_001)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.EXPIRED
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.error is not None
        assert (job.state, job.error.code, job.attempt) == (JobState.FAILED, "expired", 0)
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    @pytest.mark.parametrize("state", TERMINAL)
    async def test_an_ended_job_is_terminal(self, rig: Rig, state: JobState) -> None:
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt, Ending(state=state, error=FAULT))

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.status is AcquireStatus.TERMINAL

    async def test_an_unknown_job_is_missing(self, rig: Rig) -> None:
        taken = await rig.store.acquire(job_id("nobody"), "worker", can_resume=True)

        assert taken.status is AcquireStatus.MISSING

    async def test_tokens_so_far_are_continued_by_who_can(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(5, 6, 7)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert taken.token_count == 3
        assert await rig.store.token_ids(job_id(), 3) == [5, 6, 7]
        entry = (await rig.store.read_stream(job_id()))[-1]
        assert (entry.kind, entry.attempt, entry.index) == (EntryKind.ATTEMPT, 2, 3)
        assert not entry.is_restart

    async def test_who_was_told_what_the_record_says_need_not_read_it(self, rig: Rig) -> None:
        await rig.store.create(new_job())

        taken = await rig.store.acquire(job_id(), "w", can_resume=True, told=new_job())

        assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, 1)

    @pytest.mark.parametrize("other", [{"prompt": "other"}, {"tenant": "other"}], ids=str)
    async def test_who_was_told_something_else_changes_nothing(
        self, rig: Rig, other: dict[str, str]
    ) -> None:
        await rig.store.create(new_job())
        before = await rig.store.get(job_id())

        taken = await rig.store.acquire(job_id(), "w", can_resume=True, told=new_job(**other))

        assert taken == Acquired(status=AcquireStatus.OTHER)
        assert await rig.store.get(job_id()) == before

    async def test_after_an_edited_redrive_the_first_event_tells_something_else(
        self, rig: Rig
    ) -> None:
        await dead(rig)
        await rig.store.redrive(job_id(), new_job(prompt="edited").request)

        first = await rig.store.acquire(job_id(), "w", can_resume=True, told=new_job())
        second = await rig.store.acquire(
            job_id(), "w", can_resume=True, told=new_job(prompt="edited")
        )

        assert [first.status, second.status] == [AcquireStatus.OTHER, AcquireStatus.ACQUIRED]

    async def test_who_starts_over_is_told_how_much_is_void(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(1, 2)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "w", can_resume=False)

        assert (taken.token_count, taken.void_count) == (0, 2)

    async def test_tokens_so_far_are_void_for_who_cannot_continue_them(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(5, 6, 7)))
        await rig.pass_time(LEASE_MS + 1)

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=False)
        await rig.store.append(job_id(), taken.attempt, TokenBatch(index=0, token_ids=(8,)))

        assert taken.token_count == 0
        entry = (await rig.store.read_stream(job_id()))[-2]
        assert (entry.kind, entry.index, entry.is_restart) == (EntryKind.ATTEMPT, 0, True)
        assert await rig.store.token_ids(job_id(), 10) == [8]


class TestRenew:
    async def test_a_renewed_lease_lasts_longer(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.pass_time(20_000)

        assert await rig.store.renew([(job_id(), attempt)], extend=True) == [Hold.OK]

        await rig.pass_time(20_000)
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.HELD

    async def test_looking_does_not_lengthen_the_lease(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.pass_time(20_000)

        assert await rig.store.renew([(job_id(), attempt)], extend=False) == [Hold.OK]

        await rig.pass_time(20_000)
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_a_lapsed_lease_that_nobody_took_is_still_ours(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.pass_time(LEASE_MS * 2)

        assert await rig.store.renew([(job_id(), attempt)], extend=True) == [Hold.OK]

        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert taken.status is AcquireStatus.HELD

    async def test_each_lease_is_answered_in_order(self, rig: Rig) -> None:
        await started(rig, "fine")
        overtaken = await started(rig, "overtaken")
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.renew([(job_id("fine"), 1)], extend=True)
        await rig.store.acquire(job_id("overtaken"), "worker-2", can_resume=True)
        cancelled = await started(rig, "cancelled")
        await rig.store.cancel(job_id("cancelled"))
        late = await started(rig, "late", deadline_ms=await rig.now_ms() + 1000)
        given_back = await started(rig, "given back")
        await rig.store.release(job_id("given back"), given_back, Release.HANDOVER, FAULT)
        await rig.pass_time(1001)

        answers = await rig.store.renew(
            [
                (job_id("fine"), 1),
                (job_id("overtaken"), overtaken),
                (job_id("cancelled"), cancelled),
                (job_id("late"), late),
                (job_id("given back"), given_back),
                (job_id("nobody"), 1),
            ],
            extend=True,
        )

        assert answers == [
            Hold.OK,
            Hold.FENCED,
            Hold.TERMINAL,
            Hold.EXPIRED,
            Hold.FENCED,
            Hold.MISSING,
        ]

    async def test_no_leases_need_no_answer(self, rig: Rig) -> None:
        assert await rig.store.renew([], extend=True) == []


class TestAppend:
    async def test_tokens_are_read_back_in_order_with_what_readers_see(self, rig: Rig) -> None:
        attempt = await started(rig)

        for index, ids in ((0, (1, 2)), (2, (3,)), (3, (4, 5, 6))):
            batch = TokenBatch(index=index, token_ids=ids, delta=f'["{index} ☃"]')
            assert await rig.store.append(job_id(), attempt, batch) is Hold.OK

        tokens = [e for e in await rig.store.read_stream(job_id()) if e.kind is EntryKind.TOKENS]
        assert [(e.index, e.token_ids, e.delta, e.attempt) for e in tokens] == [
            (0, (1, 2), '["0 ☃"]', 1),
            (2, (3,), '["2 ☃"]', 1),
            (3, (4, 5, 6), '["3 ☃"]', 1),
        ]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.token_count == 6
        assert job.first_token_ms >= job.started_ms

    @pytest.mark.parametrize("index", [0, 1, 3, 7])
    async def test_a_gap_or_a_repeat_is_refused_without_a_trace(self, rig: Rig, index: int) -> None:
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(1, 2)))
        before = await rig.store.read_stream(job_id())

        answer = await rig.store.append(job_id(), attempt, TokenBatch(index=index, token_ids=(9,)))

        assert answer is Hold.GAP
        assert await rig.store.read_stream(job_id()) == before

    async def test_an_overtaken_attempt_is_fenced_counted_and_leaves_no_trace(
        self, rig: Rig
    ) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        before = await rig.store.read_stream(job_id())

        answer = await rig.store.append(job_id(), zombie, TokenBatch(index=0, token_ids=(9,)))

        assert answer is Hold.FENCED
        assert await rig.store.read_stream(job_id()) == before
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.refused_writes, job.token_count) == (1, 0)

    async def test_after_a_hand_over_the_old_attempt_is_fenced(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.release(job_id(), attempt, Release.HANDOVER, FAULT)

        answer = await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(9,)))

        assert answer is Hold.FENCED

    async def test_after_the_end_nothing_is_appended(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.cancel(job_id())

        answer = await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(9,)))

        assert answer is Hold.TERMINAL
        assert await rig.store.token_ids(job_id(), 10) == []

    async def test_a_job_that_is_gone_is_missing_and_stays_gone(self, rig: Rig) -> None:
        batch = TokenBatch(index=0, token_ids=(9,))

        assert await rig.store.append(job_id(), 1, batch) is Hold.MISSING

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []


class TestFinish:
    async def test_the_job_can_be_had_with_its_end(self, rig: Rig) -> None:
        attempt = await started(rig)

        hold, job = await rig.store.finish_and_get(job_id(), attempt, ANSWER)

        assert hold is Hold.OK
        assert job == await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.COMPLETED

    async def test_the_last_tokens_come_with_the_end(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.append(
            job_id(), attempt, TokenBatch(index=0, token_ids=(1,), delta='["a"]')
        )
        rest = TokenBatch(index=1, token_ids=(2, 3), delta='["b"]')

        assert await rig.store.finish(job_id(), attempt, replace(ANSWER, rest=rest)) is Hold.OK

        *_, tokens, end = await rig.store.read_stream(job_id())
        assert (tokens.kind, tokens.index, tokens.token_ids) == (EntryKind.TOKENS, 1, (2, 3))
        assert (tokens.delta, end.kind) == ('["b"]', EntryKind.STATE)
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.token_count == 3

    async def test_a_first_token_that_comes_with_the_end_has_its_time(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.pass_time(5)

        rest = TokenBatch(index=0, token_ids=(1,))
        await rig.store.finish(job_id(), attempt, replace(ANSWER, rest=rest))

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.first_token_ms == job.finished_ms

    async def test_text_alone_can_be_the_rest(self, rig: Rig) -> None:
        attempt = await started(rig)
        rest = TokenBatch(index=0, token_ids=(), delta='["late"]')

        assert await rig.store.finish(job_id(), attempt, replace(ANSWER, rest=rest)) is Hold.OK

        assert (await rig.store.read_stream(job_id()))[-2].delta == '["late"]'

    @pytest.mark.parametrize("index", [0, 2])
    async def test_an_end_whose_tokens_do_not_fit_changes_nothing(
        self, rig: Rig, index: int
    ) -> None:
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(1,)))
        before = await rig.store.read_stream(job_id()), await rig.store.get(job_id())

        rest = TokenBatch(index=index, token_ids=(9,))
        answer = await rig.store.finish(job_id(), attempt, replace(ANSWER, rest=rest))

        assert answer is Hold.GAP
        assert (await rig.store.read_stream(job_id()), await rig.store.get(job_id())) == before

    async def test_an_end_told_twice_writes_its_tokens_and_its_charge_once(self, rig: Rig) -> None:
        attempt = await started(rig)
        ending = replace(ANSWER, rest=TokenBatch(index=0, token_ids=(1,)), gpu_ms=70)
        await rig.store.finish(job_id(), attempt, ending)

        assert await rig.store.finish(job_id(), attempt, ending) is Hold.TERMINAL

        assert await rig.store.token_ids(job_id(), 9) == [1]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.gpu_ms == 70

    @pytest.mark.parametrize("state", TERMINAL)
    async def test_state_and_result_come_together(self, rig: Rig, state: JobState) -> None:
        attempt = await started(rig)
        ending = Ending(state=state, result={"text": "☃"}, usage={"total_tokens": 1}, error=FAULT)

        assert await rig.store.finish(job_id(), attempt, ending) is Hold.OK

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.result, job.usage, job.error) == (
            state,
            {"text": "☃"},
            {"total_tokens": 1},
            FAULT,
        )
        assert (job.lease_owner, job.lease_until_ms) == ("", 0)
        assert job.finished_ms >= job.started_ms
        last = (await rig.store.read_stream(job_id()))[-1]
        assert (last.kind, last.state, last.attempt) == (EntryKind.STATE, state, 1)

    @pytest.mark.parametrize("second", TERMINAL)
    @pytest.mark.parametrize("first", TERMINAL)
    async def test_the_first_terminal_state_wins(
        self, rig: Rig, first: JobState, second: JobState
    ) -> None:
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt, Ending(state=first, result={"n": 1}))

        answer = await rig.store.finish(job_id(), attempt, Ending(state=second, result={"n": 2}))

        assert answer is Hold.TERMINAL
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.result) == (first, {"n": 1})
        assert job.refused_writes == 1

    async def test_a_zombie_cannot_finish_what_another_runs(self, rig: Rig) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        heir = (await rig.store.acquire(job_id(), "worker-2", can_resume=True)).attempt

        assert await rig.store.finish(job_id(), zombie, ANSWER) is Hold.FENCED

        assert await rig.store.renew([(job_id(), heir)], extend=False) == [Hold.OK]
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.result, job.refused_writes) == (None, 1)

    async def test_a_job_given_back_cannot_be_finished_by_the_giver(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.release(job_id(), attempt, Release.HANDOVER, FAULT)

        assert await rig.store.finish(job_id(), attempt, ANSWER) is Hold.FENCED

    async def test_an_unknown_job_is_missing(self, rig: Rig) -> None:
        assert await rig.store.finish(job_id("nobody"), 1, ANSWER) is Hold.MISSING

    async def test_a_dead_letter_is_listed_as_one(self, rig: Rig) -> None:
        attempt = await started(rig)
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)

        await rig.store.finish(job_id(), attempt, ending)

        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_an_ended_job_is_forgotten_after_its_retention(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt, ANSWER)

        await rig.pass_time(SETTINGS.retention_s * 1000 - 1000)
        assert await rig.store.get(job_id()) is not None
        await rig.pass_time(2000)

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []
        assert (await rig.store.list_jobs("acme")).jobs == ()

    async def test_a_dead_letter_is_kept_longer(self, rig: Rig) -> None:
        await dead(rig)

        await rig.pass_time(SETTINGS.retention_s * 1000 + 1000)
        assert await rig.store.get(job_id()) is not None
        await rig.pass_time(SETTINGS.retention_s * 1000)

        assert await rig.store.get(job_id()) is None

    async def test_a_running_job_is_never_forgotten(self, rig: Rig) -> None:
        await started(rig)

        await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 * 10)

        assert await rig.store.get(job_id()) is not None


class TestRelease:
    async def test_a_job_given_back_starts_again_at_once(self, rig: Rig) -> None:
        attempt = await started(rig)

        assert await rig.store.release(job_id(), attempt, Release.HANDOVER, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.QUEUED, "")
        taken = await rig.store.acquire(job_id(), "worker-2", can_resume=True)
        assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, 2)

    async def test_a_hand_over_costs_no_attempt(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        for _ in range(SETTINGS.max_attempts * 3):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            assert await rig.store.release(job_id(), taken.attempt, Release.HANDOVER, FAULT)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert taken.status is AcquireStatus.ACQUIRED

    async def test_failures_use_the_attempts_up_and_the_last_reason_stays(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        kept = []
        for number in range(SETTINGS.max_attempts):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            reason = JobError(code="engine_error", message=f"failure {number}")
            kept.append(await rig.store.release(job_id(), taken.attempt, Release.FAILURE, reason))

        assert kept == [True, True, False]
        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.is_dead_letter) == (JobState.FAILED, True)
        assert job.error == JobError(code="engine_error", message="failure 2")
        assert [a.outcome for a in job.history] == ["failure"] * 3
        assert [j.id for j in (await rig.store.list_dead_letters("acme")).jobs] == [job_id()]

    async def test_what_is_not_ours_is_not_given_back_and_counted(self, rig: Rig) -> None:
        zombie = await started(rig)
        await rig.pass_time(LEASE_MS + 1)
        await rig.store.acquire(job_id(), "worker-2", can_resume=True)

        assert not await rig.store.release(job_id(), zombie, Release.HANDOVER, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.lease_owner) == (JobState.IN_PROGRESS, "worker-2")
        assert job.refused_writes == 1

    async def test_an_ended_or_unknown_job_is_not_given_back(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt, ANSWER)

        assert not await rig.store.release(job_id(), attempt, Release.FAILURE, FAULT)
        assert not await rig.store.release(job_id("nobody"), 1, Release.FAILURE, FAULT)

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.COMPLETED


class TestCancelAndConclude:
    async def test_a_queued_job_is_cancelled(self, rig: Rig) -> None:
        await rig.store.create(new_job())

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert job.state is JobState.CANCELLED

    async def test_a_running_job_is_cancelled_under_its_lease(self, rig: Rig) -> None:
        attempt = await started(rig)

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert (job.state, job.history[-1].outcome) == (JobState.CANCELLED, "cancelled")
        assert await rig.store.finish(job_id(), attempt, ANSWER) is Hold.TERMINAL

    async def test_cancelling_an_ended_job_shows_how_it_ended(self, rig: Rig) -> None:
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt, ANSWER)

        job = await rig.store.cancel(job_id())

        assert job is not None
        assert (job.state, job.result) == (JobState.COMPLETED, ANSWER.result)

    async def test_cancelling_an_unknown_job_is_none(self, rig: Rig) -> None:
        assert await rig.store.cancel(job_id("nobody")) is None

    async def test_cancel_and_finish_at_once_agree_on_one_end(self, rig: Rig) -> None:
        for number in range(50):
            attempt = await started(rig, str(number))

            finished, cancelled = await asyncio.gather(
                rig.store.finish(job_id(str(number)), attempt, ANSWER),
                rig.store.cancel(job_id(str(number))),
            )

            assert cancelled is not None
            won = finished is Hold.OK
            assert cancelled.state is (JobState.COMPLETED if won else JobState.CANCELLED)

    async def test_a_job_that_somebody_runs_is_not_concluded(self, rig: Rig) -> None:
        await started(rig)

        assert await rig.store.conclude(job_id(), ANSWER) is Hold.FENCED

        job = await rig.store.get(job_id())
        assert job is not None
        assert job.state is JobState.IN_PROGRESS

    async def test_a_job_that_nobody_runs_is_concluded(self, rig: Rig) -> None:
        await rig.store.create(new_job("queued"))
        await started(rig, "lapsed")
        await rig.pass_time(LEASE_MS + 1)

        assert await rig.store.conclude(job_id("queued"), ANSWER) is Hold.OK
        assert await rig.store.conclude(job_id("lapsed"), ANSWER) is Hold.OK

        job = await rig.store.get(job_id("lapsed"))
        assert job is not None
        assert (job.state, job.result) == (JobState.COMPLETED, ANSWER.result)
        assert job.history[-1].outcome == "completed"

    async def test_an_ended_or_unknown_job_is_not_concluded(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        await rig.store.cancel(job_id())

        assert await rig.store.conclude(job_id(), ANSWER) is Hold.TERMINAL
        assert await rig.store.conclude(job_id("nobody"), ANSWER) is Hold.MISSING


class TestRedrive:
    async def test_a_dead_letter_gets_a_new_attempt_under_its_id(self, rig: Rig) -> None:
        await dead(rig)

        assert await rig.store.redrive(job_id(), None)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.state, job.error, job.is_dead_letter) == (JobState.QUEUED, None, False)
        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert (taken.status, taken.attempt) == (AcquireStatus.ACQUIRED, 4)

    async def test_a_redriven_job_has_its_attempts_back(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.redrive(job_id(), None)

        for _ in range(SETTINGS.max_attempts - 1):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            assert await rig.store.release(job_id(), taken.attempt, Release.FAILURE, FAULT)

    async def test_a_redriven_job_is_no_longer_listed_as_dead(self, rig: Rig) -> None:
        await dead(rig)

        await rig.store.redrive(job_id(), None)

        assert (await rig.store.list_dead_letters("acme")).jobs == ()

    async def test_a_redriven_job_outlives_the_retention_of_its_first_end(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.redrive(job_id(), None)

        await rig.pass_time(SETTINGS.dead_letter_retention_s * 1000 * 2)

        assert await rig.store.get(job_id()) is not None
        assert await rig.store.read_stream(job_id()) != []

    async def test_a_redriven_job_is_due_for_publication(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.mark_published(job_id())

        await rig.store.redrive(job_id(), None)

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_a_job_past_its_deadline_can_run_after_a_redrive(self, rig: Rig) -> None:
        await rig.store.create(new_job(deadline_ms=await rig.now_ms() + 1000))
        await rig.pass_time(1001)
        await rig.store.acquire(job_id(), "worker", can_resume=True)

        assert await rig.store.redrive(job_id(), None)

        taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert taken.status is AcquireStatus.ACQUIRED

    async def test_an_edited_request_starts_from_nothing_and_says_so(self, rig: Rig) -> None:
        # The stream still holds the tokens of the first request; a third attempt must not take
        # them for its own.
        attempt = await started(rig)
        await rig.store.append(job_id(), attempt, TokenBatch(index=0, token_ids=(1, 2, 3)))
        ending = Ending(state=JobState.FAILED, error=FAULT, is_dead_letter=True)
        await rig.store.finish(job_id(), attempt, ending)
        edited = new_job(prompt="how?").request

        assert await rig.store.redrive(job_id(), edited)

        second = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert second.token_count == 0
        assert (await rig.store.read_stream(job_id()))[-1].is_restart
        await rig.store.append(job_id(), second.attempt, TokenBatch(index=0, token_ids=(7, 8)))
        await rig.store.release(job_id(), second.attempt, Release.HANDOVER, FAULT)
        third = await rig.store.acquire(job_id(), "worker", can_resume=True)
        assert third.token_count == 2
        assert await rig.store.token_ids(job_id(), third.token_count) == [7, 8]
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.request == edited

    async def test_a_redriven_job_shows_no_result_of_its_first_life(self, rig: Rig) -> None:
        attempt = await started(rig)
        ending = Ending(
            state=JobState.FAILED,
            result={"text": "half"},
            usage={"total_tokens": 1},
            error=FAULT,
            is_dead_letter=True,
        )
        await rig.store.finish(job_id(), attempt, ending)

        await rig.store.redrive(job_id(), None)

        job = await rig.store.get(job_id())
        assert job is not None
        assert (job.result, job.usage, job.finished_ms) == (None, None, 0)

    async def test_only_dead_letters_are_redriven(self, rig: Rig) -> None:
        await rig.store.create(new_job("queued"))
        failed = await started(rig, "failed")
        await rig.store.finish(job_id("failed"), failed, Ending(state=JobState.FAILED, error=FAULT))

        assert not await rig.store.redrive(job_id("queued"), None)
        assert not await rig.store.redrive(job_id("failed"), None)
        assert not await rig.store.redrive(job_id("nobody"), None)


class TestLists:
    async def test_jobs_come_newest_first(self, rig: Rig) -> None:
        for number in range(5):
            await rig.store.create(new_job(str(number)))
            await rig.pass_time(2)

        page = await rig.store.list_jobs("acme")

        assert [job.event_id for job in page.jobs] == ["4", "3", "2", "1", "0"]
        assert page.next_cursor == ""

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 249, 250, 251, 400])
    async def test_pages_show_each_job_once_however_many_share_a_millisecond(
        self, rig: Rig, limit: int
    ) -> None:
        # A regression: a cursor of the time alone skipped the rest of its millisecond.
        await asyncio.gather(*(rig.store.create(new_job(str(n))) for n in range(250)))
        if hasattr(rig, "redis"):
            members = await rig.redis.zrange("torpor:jobs:acme", 0, -1)
            await rig.redis.zadd("torpor:jobs:acme", dict.fromkeys(members, 1_800_000_000_000))

        seen: list[str] = []
        cursor = ""
        while True:
            page = await rig.store.list_jobs("acme", limit=limit, cursor=cursor)
            assert len(page.jobs) <= limit
            seen.extend(job.event_id for job in page.jobs)
            cursor = page.next_cursor
            if not cursor:
                break

        assert sorted(seen) == sorted(str(n) for n in range(250))

    async def test_a_full_last_page_has_no_next(self, rig: Rig) -> None:
        for number in range(4):
            await rig.store.create(new_job(str(number)))

        page = await rig.store.list_jobs("acme", limit=4)

        assert len(page.jobs) == 4
        assert page.next_cursor == ""

    async def test_a_list_can_ask_for_states(self, rig: Rig) -> None:
        await started(rig, "running")
        await rig.store.create(new_job("queued"))
        await rig.store.create(new_job("cancelled"))
        await rig.store.cancel(job_id("cancelled"))

        page = await rig.store.list_jobs("acme", states=[JobState.QUEUED, JobState.CANCELLED])

        assert {job.event_id for job in page.jobs} == {"queued", "cancelled"}

    async def test_tenants_do_not_see_each_other(self, rig: Rig) -> None:
        await rig.store.create(new_job("1", tenant="acme"))
        await rig.store.create(new_job("2", tenant="other"))

        page = await rig.store.list_jobs("acme")

        assert [job.event_id for job in page.jobs] == ["1"]

    @pytest.mark.parametrize(
        "cursor", ["x", "inf", "-inf", "1", "1-2", "(1", "1e3", "99999999999999999999-job_x", "\0"]
    )
    async def test_a_cursor_of_nobody_is_a_bad_request(self, rig: Rig, cursor: str) -> None:
        with pytest.raises(BadRequest) as caught:
            await rig.store.list_jobs("acme", cursor=cursor)

        assert caught.value.field == "cursor"

    async def test_dead_letters_are_paged_too(self, rig: Rig) -> None:
        for number in range(5):
            await dead(rig, str(number))

        first = await rig.store.list_dead_letters("acme", limit=3)
        rest = await rig.store.list_dead_letters("acme", limit=3, cursor=first.next_cursor)

        assert len(first.jobs) == 3
        ids = [job.event_id for job in (*first.jobs, *rest.jobs)]
        assert sorted(ids) == ["0", "1", "2", "3", "4"]


class TestDelete:
    async def test_an_ended_job_is_forgotten_with_its_tokens(self, rig: Rig) -> None:
        await dead(rig)

        assert await rig.store.delete(job_id())

        assert await rig.store.get(job_id()) is None
        assert await rig.store.read_stream(job_id()) == []
        assert (await rig.store.list_jobs("acme")).jobs == ()
        assert (await rig.store.list_dead_letters("acme")).jobs == ()

    async def test_a_job_that_has_not_ended_is_not_deleted(self, rig: Rig) -> None:
        await rig.store.create(new_job("queued"))
        await started(rig, "running")

        assert not await rig.store.delete(job_id("queued"))
        assert not await rig.store.delete(job_id("running"))
        assert not await rig.store.delete(job_id("nobody"))

    async def test_a_redrive_that_comes_between_saves_the_job(self, rig: Rig) -> None:
        # Read, then delete: with a redrive in between, a queued job would be lost.
        for number in range(30):
            await dead(rig, str(number))
            target = job_id(str(number))

            deleted, redriven = await asyncio.gather(
                rig.store.delete(target), rig.store.redrive(target, None)
            )

            assert deleted != redriven
            assert (await rig.store.get(target) is not None) == redriven


class TestStreams:
    async def test_a_reader_goes_on_after_its_cursor(self, rig: Rig) -> None:
        attempt = await started(rig)
        for index in range(10):
            batch = TokenBatch(index=index, token_ids=(index,))
            await rig.store.append(job_id(), attempt, batch)

        entries = await rig.store.read_stream(job_id())
        for position, entry in enumerate(entries):
            rest = await rig.store.read_stream(job_id(), after=entry.cursor)
            assert rest == entries[position + 1 :]

    async def test_a_read_is_limited(self, rig: Rig) -> None:
        attempt = await started(rig)
        for index in range(5):
            await rig.store.append(job_id(), attempt, TokenBatch(index=index, token_ids=(1,)))

        assert len(await rig.store.read_stream(job_id(), limit=3)) == 3

    async def test_token_ids_of_a_long_stream_are_whole(self, rig: Rig) -> None:
        attempt = await started(rig)
        for index in range(1100):
            await rig.store.append(job_id(), attempt, TokenBatch(index=index, token_ids=(index,)))

        assert await rig.store.token_ids(job_id(), 1100) == list(range(1100))
        assert await rig.store.token_ids(job_id(), 7) == list(range(7))


class TestOutbox:
    async def test_an_unpublished_job_is_due_after_ten_seconds(self, rig: Rig) -> None:
        await rig.store.create(new_job())

        assert await rig.store.take_unpublished(10) == []
        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_a_published_job_is_not_due(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        await rig.store.mark_published(job_id())

        await rig.pass_time(60_000)

        assert await rig.store.take_unpublished(10) == []

    async def test_what_one_sweeper_took_no_other_gets_until_it_is_due_again(
        self, rig: Rig
    ) -> None:
        await rig.store.create(new_job())
        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]
        assert await rig.store.take_unpublished(10) == []
        await rig.pass_time(15_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    async def test_many_sweepers_share_the_work(self, rig: Rig) -> None:
        for number in range(40):
            await rig.store.create(new_job(str(number)))
        await rig.pass_time(10_001)

        shares = await asyncio.gather(*(rig.store.take_unpublished(7) for _ in range(8)))

        taken = [job for share in shares for job in share]
        assert len(taken) == len(set(taken)) == 40

    async def test_a_started_job_that_nobody_holds_is_due_again(self, rig: Rig) -> None:
        # Its event may be gone: settled by a pump whose store forgot the end (docs/adr/0052).
        await started(rig)
        await rig.store.mark_published(job_id())
        await rig.pass_time(LEASE_MS - 1000)
        assert await rig.store.take_stranded(10) == []

        await rig.pass_time(LEASE_MS + 1001)

        assert await rig.store.take_stranded(10) == [job_id()]

    async def test_a_started_job_that_is_held_or_has_ended_is_not_due(self, rig: Rig) -> None:
        held = await started(rig, "held")
        ended = await started(rig, "ended")
        for event_id in ("held", "ended"):
            await rig.store.mark_published(job_id(event_id))
        await rig.store.finish(job_id("ended"), ended, ANSWER)
        await rig.pass_time(LEASE_MS * 2 + 1)
        await rig.store.renew([(job_id("held"), held)], extend=True)

        assert await rig.store.take_stranded(10) == []

    async def test_a_published_job_that_nobody_starts_is_due_again(self, rig: Rig) -> None:
        # The broker that took its event may have lost it (docs/adr/0086).
        await rig.store.create(new_job())
        await rig.store.mark_published(job_id())
        await rig.pass_time(SETTINGS.republish_after_s * 1000 - 1000)
        assert await rig.store.take_stranded(10) == []

        await rig.pass_time(1001)

        assert await rig.store.take_stranded(10) == [job_id()]

    async def test_a_job_that_was_published_again_is_due_when_it_is_twice_as_old(
        self, rig: Rig
    ) -> None:
        await rig.store.create(new_job())
        await rig.store.mark_published(job_id())
        await rig.pass_time(3_600_000)
        await rig.store.take_stranded(10)
        await rig.store.mark_published(job_id(), age_ms=3_600_000)

        await rig.pass_time(3_599_000)
        assert await rig.store.take_stranded(10) == []
        await rig.pass_time(1001)
        assert await rig.store.take_stranded(10) == [job_id()]

    async def test_a_confirmation_that_comes_after_the_start_does_not_hide_the_job(
        self, rig: Rig
    ) -> None:
        await started(rig)

        await rig.store.mark_published(job_id())

        await rig.pass_time(LEASE_MS * 2 + 1)
        assert await rig.store.take_stranded(10) == [job_id()]

    async def test_many_confirmations_are_told_at_once(self, rig: Rig) -> None:
        for name in "abc":
            await rig.store.create(new_job(name))

        await rig.store.mark_published(job_id("a"), job_id("c"))

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id("b")]
        await rig.pass_time(SETTINGS.republish_after_s * 1000)
        assert sorted(await rig.store.take_stranded(10)) == sorted([job_id("a"), job_id("c")])

    async def test_a_conflict_does_not_forget_the_first_event(self, rig: Rig) -> None:
        await rig.store.create(new_job())
        with pytest.raises(IdempotencyConflict):
            await rig.store.create(new_job(prompt="other"))

        await rig.pass_time(10_001)

        assert await rig.store.take_unpublished(10) == [job_id()]

    @pytest.mark.parametrize("how", ["finish", "cancel", "conclude", "exhaust", "expire", "reject"])
    async def test_every_end_is_due_for_announcement_until_it_is_marked(
        self, rig: Rig, how: str
    ) -> None:
        match how:
            case "finish":
                await rig.store.finish(job_id(), await started(rig), ANSWER)
            case "cancel":
                await rig.store.create(new_job())
                await rig.store.cancel(job_id())
            case "conclude":
                await rig.store.create(new_job())
                await rig.store.conclude(job_id(), ANSWER)
            case "exhaust":
                await dead(rig)
            case "expire":
                await rig.store.create(new_job(deadline_ms=await rig.now_ms() + 1))
                await rig.pass_time(2)
                await rig.store.acquire(job_id(), "worker", can_resume=True)
            case "reject":
                await rig.store.reject(new_job(), FAULT, b"no job")

        await rig.pass_time(10_001)
        assert await rig.store.take_unannounced(10) == [job_id()]
        await rig.store.mark_announced(job_id())
        await rig.pass_time(60_000)

        assert await rig.store.take_unannounced(10) == []
        job = await rig.store.get(job_id())
        assert job is not None
        assert job.is_announced

    async def test_an_end_is_unannounced_until_marked(self, rig: Rig) -> None:
        await rig.store.finish(job_id(), await started(rig), ANSWER)

        job = await rig.store.get(job_id())

        assert job is not None
        assert not job.is_announced

    async def test_a_redriven_job_announces_its_second_end(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.mark_announced(job_id())
        await rig.store.redrive(job_id(), None)
        for _ in range(SETTINGS.max_attempts):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(job_id(), taken.attempt, Release.FAILURE, FAULT)

        job = await rig.store.get(job_id())

        assert job is not None
        assert not job.is_announced

    async def test_a_job_that_has_not_ended_keeps_its_note(self, rig: Rig) -> None:
        # A sweep that read the job as running, and marks it after it ended, must not lose its end.
        attempt = await started(rig)
        await rig.store.finish(job_id(), attempt + 1, ANSWER)

        await rig.store.mark_announced(job_id())

        await rig.pass_time(10_001)
        assert await rig.store.take_unannounced(10) == [job_id()]

    async def test_the_note_of_a_job_that_is_gone_can_be_dropped(self, rig: Rig) -> None:
        await rig.store.cancel(job_id("nobody"))

        await rig.store.mark_announced(job_id("nobody"))

        await rig.pass_time(10_001)
        assert await rig.store.take_unannounced(10) == []

    async def test_marking_an_unknown_job_leaves_nothing_behind(self, rig: Rig) -> None:
        await rig.store.mark_announced(job_id("nobody"))
        await rig.store.mark_published(job_id("nobody"))

        assert await rig.store.get(job_id("nobody")) is None


async def test_a_store_that_answers_can_be_pinged(rig: Rig) -> None:
    await rig.store.ping()
