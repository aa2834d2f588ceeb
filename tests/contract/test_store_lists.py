"""Lists of jobs and of dead letters, page by page, and the store's ping."""

import asyncio

import pytest

from eventing.errors import BadRequest
from eventing.job.job import JobState
from tests.contract.rig import Rig, dead, job_id, new_job, started


class TestLists:
    async def test_jobs_come_newest_first(self, rig: Rig) -> None:
        for number in range(5):
            await rig.store.submit(new_job(str(number)))
            await rig.pass_time(2)

        page = await rig.store.list_jobs("acme")

        assert [job.event_id for job in page.jobs] == ["4", "3", "2", "1", "0"]
        assert page.next_cursor == ""

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 249, 250, 251, 400])
    async def test_pages_show_each_job_once_however_many_share_a_millisecond(
        self, rig: Rig, limit: int
    ) -> None:
        # A regression: a cursor of the time alone skipped the rest of its millisecond.
        await asyncio.gather(*(rig.store.submit(new_job(str(n))) for n in range(250)))
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
            await rig.store.submit(new_job(str(number)))

        page = await rig.store.list_jobs("acme", limit=4)

        assert len(page.jobs) == 4
        assert page.next_cursor == ""

    async def test_a_list_can_ask_for_states(self, rig: Rig) -> None:
        await started(rig, "running")
        await rig.store.submit(new_job("queued"))
        await rig.store.submit(new_job("cancelled"))
        await rig.store.cancel(job_id("cancelled"))

        page = await rig.store.list_jobs("acme", states=[JobState.QUEUED, JobState.CANCELLED])

        assert {job.event_id for job in page.jobs} == {"queued", "cancelled"}

    async def test_tenants_do_not_see_each_other(self, rig: Rig) -> None:
        await rig.store.submit(new_job("1", tenant="acme"))
        await rig.store.submit(new_job("2", tenant="other"))

        page = await rig.store.list_jobs("acme")

        assert [job.event_id for job in page.jobs] == ["1"]

    @pytest.mark.parametrize(
        "cursor", ["x", "inf", "-inf", "1", "1-2", "(1", "1e3", "99999999999999999999-job_x", "\0"]
    )
    async def test_an_invalid_cursor_is_a_bad_request(self, rig: Rig, cursor: str) -> None:
        with pytest.raises(BadRequest) as caught:
            await rig.store.list_jobs("acme", cursor=cursor)

        assert caught.value.field == "cursor"

    async def test_dead_letters_are_paged_too(self, rig: Rig) -> None:
        for number in range(5):
            await dead(rig, str(number))

        first = await rig.store.list_dead_letters("acme", limit=3)
        final_batch = await rig.store.list_dead_letters("acme", limit=3, cursor=first.next_cursor)

        assert len(first.jobs) == 3
        ids = [job.event_id for job in (*first.jobs, *final_batch.jobs)]
        assert sorted(ids) == ["0", "1", "2", "3", "4"]


async def test_a_store_that_answers_can_be_pinged(rig: Rig) -> None:
    await rig.store.ping()
