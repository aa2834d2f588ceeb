"""What a sweep finds: jobs whose event, or whose end, nobody has told."""

import asyncio
from dataclasses import replace

import pytest

from eventing.errors import IdempotencyConflict
from eventing.job.store import Release
from tests.contract.rig import (
    ANSWER,
    FAULT,
    LEASE_MS,
    SETTINGS,
    Rig,
    dead,
    job_id,
    new_job,
    started,
)


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
        assert await rig.store.claim_unstarted(10) == []

        await rig.pass_time(LEASE_MS + 1001)

        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_started_job_that_is_held_or_has_ended_is_not_due(self, rig: Rig) -> None:
        held = await started(rig, "held")
        ended = await started(rig, "ended")
        for event_id in ("held", "ended"):
            await rig.store.mark_published(job_id(event_id))
        await rig.store.finish(ended, ANSWER)
        await rig.pass_time(LEASE_MS * 2 + 1)
        await rig.store.renew([held], extend=True)

        assert await rig.store.claim_unstarted(10) == []

    async def test_a_published_job_that_nobody_starts_is_due_again(self, rig: Rig) -> None:
        # The broker that took its event may have lost it (docs/adr/0086).
        await rig.store.create(new_job())
        await rig.store.mark_published(job_id())
        await rig.pass_time(SETTINGS.republish_after_s * 1000 - 1000)
        assert await rig.store.claim_unstarted(10) == []

        await rig.pass_time(1001)

        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_job_that_was_published_again_is_due_when_it_is_twice_as_old(
        self, rig: Rig
    ) -> None:
        await rig.store.create(new_job())
        await rig.store.mark_published(job_id())
        await rig.pass_time(3_600_000)
        await rig.store.claim_unstarted(10)
        await rig.store.mark_published(job_id(), age_ms=3_600_000)

        await rig.pass_time(3_599_000)
        assert await rig.store.claim_unstarted(10) == []
        await rig.pass_time(1001)
        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_a_confirmation_that_comes_after_the_start_does_not_hide_the_job(
        self, rig: Rig
    ) -> None:
        await started(rig)

        await rig.store.mark_published(job_id())

        await rig.pass_time(LEASE_MS * 2 + 1)
        assert await rig.store.claim_unstarted(10) == [job_id()]

    async def test_many_confirmations_are_told_at_once(self, rig: Rig) -> None:
        for name in "abc":
            await rig.store.create(new_job(name))

        await rig.store.mark_published(job_id("a"), job_id("c"))

        await rig.pass_time(10_001)
        assert await rig.store.take_unpublished(10) == [job_id("b")]
        await rig.pass_time(SETTINGS.republish_after_s * 1000)
        assert sorted(await rig.store.claim_unstarted(10)) == sorted([job_id("a"), job_id("c")])

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
                await rig.store.finish(await started(rig), ANSWER)
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
        await rig.store.finish(await started(rig), ANSWER)

        job = await rig.store.get(job_id())

        assert job is not None
        assert not job.is_announced

    async def test_a_redriven_job_announces_its_second_end(self, rig: Rig) -> None:
        await dead(rig)
        await rig.store.mark_announced(job_id())
        await rig.store.redrive(job_id(), None)
        for _ in range(SETTINGS.max_attempts):
            taken = await rig.store.acquire(job_id(), "worker", can_resume=True)
            await rig.store.release(taken.lease, Release.FAILURE, FAULT)

        job = await rig.store.get(job_id())

        assert job is not None
        assert not job.is_announced

    async def test_a_job_that_has_not_ended_keeps_its_note(self, rig: Rig) -> None:
        # A sweep that read the job as running, and marks it after it ended, must not lose its end.
        lease = await started(rig)
        await rig.store.finish(replace(lease, attempt=2), ANSWER)

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
