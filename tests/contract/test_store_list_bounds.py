"""The cost of one page of a list: jobs, fields and bytes read."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from eventing.job.job import JobRequest, JobState
from eventing.job.list_cursor import LIST_LOOKS
from eventing.job.store import Ending, ListField, NewJob
from tests.contract.rig import RedisRig, Rig, dead, finish, job_id, new_job, started

MEGABYTE = 1024 * 1024


async def ended(rig: Rig, name: str, *, size: int = 10, **fields: Any) -> None:
    new = replace(new_job(name, prompt="p" * size), **fields)
    await rig.store.submit(new)
    lease = (await rig.store.acquire(new.id, "worker-1", can_resume=True)).lease
    assert lease is not None
    result = {"text": "r" * size}
    await finish(rig.store, lease, Ending(state=JobState.COMPLETED, result=result))


async def test_a_list_shows_neither_prompts_nor_results(rig: Rig) -> None:
    await ended(rig, "1")

    (job,) = (await rig.store.list_jobs("acme")).jobs

    assert job.result is None
    assert job.request == JobRequest(url="/v1/chat/completions", body={"model": "m"}, custom_id="1")
    assert job.metadata == {"webhook": "https://example.org/hook"}


async def test_prompts_and_results_are_listed_on_request(rig: Rig) -> None:
    await ended(rig, "1")

    (job,) = (await rig.store.list_jobs("acme", include=list(ListField))).jobs

    assert job == await rig.store.get(job_id("1"))


async def test_a_page_with_results_ends_when_it_is_full(rig: Rig) -> None:
    for number in range(6):
        await ended(rig, str(number), size=MEGABYTE)
        await rig.pass_time(2)

    seen: list[list[str]] = []
    cursor = ""
    while True:
        page = await rig.store.list_jobs("acme", cursor=cursor, include=[ListField.RESULT])
        seen.append([job.event_id for job in page.jobs])
        cursor = page.next_cursor
        if not cursor:
            break

    assert seen == [["5", "4", "3"], ["2", "1", "0"]]


async def test_a_job_over_a_pages_size_is_a_page_of_its_own(rig: Rig) -> None:
    for number in range(2):
        await ended(rig, str(number), size=5 * MEGABYTE)

    page = await rig.store.list_jobs("acme", include=[ListField.RESULT])

    assert len(page.jobs) == 1
    assert page.next_cursor


async def test_dead_letters_come_with_their_requests_as_many_as_fit(rig: Rig) -> None:
    await dead(rig, "1")
    (job,) = (await rig.store.list_dead_letters("acme")).jobs
    assert job.request == new_job("1").request


async def test_a_call_for_a_state_that_few_jobs_are_in_looks_at_a_bounded_number(rig: Rig) -> None:
    await started(rig, "oldest")
    await rig.pass_time(5)
    await asyncio.gather(*(rig.store.submit(new_job(str(n))) for n in range(LIST_LOOKS + 100)))

    first = await rig.store.list_jobs("acme", states=[JobState.IN_PROGRESS])
    second = await rig.store.list_jobs(
        "acme", states=[JobState.IN_PROGRESS], cursor=first.next_cursor
    )

    assert first.jobs == ()
    assert [job.event_id for job in second.jobs] == ["oldest"]
    assert second.next_cursor == ""


async def test_metadata_that_hold_a_prompt_are_not_read_for_a_list(rig: Rig) -> None:
    long = {"name": "value", "torpor.response": "x" * MEGABYTE}
    await ended(rig, "1", metadata=long)

    (job,) = (await rig.store.list_jobs("acme")).jobs

    assert job.metadata["name"] == "value"
    whole = await rig.store.get(job_id("1"))
    assert whole is not None
    assert whole.metadata == long


@pytest.fixture
def redis_rig(request: pytest.FixtureRequest) -> RedisRig:
    return RedisRig(request.getfixturevalue("redis"))


async def sent(rig: RedisRig) -> int:
    """Bytes that the server has sent so far."""
    return int((await rig.redis.info("stats"))["total_net_output_bytes"])


async def test_lists_of_large_jobs_cost_the_store_next_to_nothing(redis_rig: RedisRig) -> None:
    own = {"torpor.response": "x" * MEGABYTE}
    for number in range(4):
        await ended(redis_rig, str(number), size=MEGABYTE, metadata=own)
    before = await sent(redis_rig)

    for _ in range(16):
        assert len((await redis_rig.store.list_jobs("acme", limit=1)).jobs) == 1

    assert await sent(redis_rig) - before < MEGABYTE / 4


async def test_a_record_of_an_older_version_is_listed(redis_rig: RedisRig) -> None:
    """It has no fields of its own for what a list shows of the request."""
    new: NewJob = new_job("1")
    await redis_rig.store.submit(new)
    await redis_rig.redis.hdel(f"torpor:{{{new.id}}}", "url", "custom_id")

    (job,) = (await redis_rig.store.list_jobs("acme")).jobs

    assert (job.state, job.request.model) == (JobState.QUEUED, "m")


async def test_the_id_of_a_job_leaves_the_lists_with_its_record(redis_rig: RedisRig) -> None:
    """Few lists are read to their end, so reading alone would keep ids for weeks."""
    await ended(redis_rig, "old")
    await dead(redis_rig, "dead")
    await redis_rig.pass_time(3_601_000)

    await redis_rig.store.prune(100)

    left = await redis_rig.redis.zrange("torpor:jobs:acme", 0, -1)
    assert left == [job_id("dead").encode()]


async def test_a_job_that_was_redriven_stays_listed(redis_rig: RedisRig) -> None:
    await dead(redis_rig, "1")
    job = await redis_rig.store.get(job_id("1"))
    assert job is not None
    await redis_rig.store.redrive(job, None)
    await redis_rig.pass_time(7_201_000)

    await redis_rig.store.prune(100)

    assert job_id("1").encode() in await redis_rig.redis.zrange("torpor:jobs:acme", 0, -1)
