"""Notes of published jobs: cleared together, soon; a store that is away costs a second event."""

import asyncio
from contextlib import suppress

from eventing.errors import StoreUnavailable
from eventing.job.job import JobId
from eventing.outbox.published import PublishedJobs
from eventing.store.memory_store import MemoryStore


class HeardStore(MemoryStore):
    """Remembers what was marked together."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[tuple[JobId, ...]] = []
        self.is_away = False
        self.has_heard = asyncio.Event()

    async def mark_published(self, *job_ids: JobId, age_ms: int = 0) -> None:
        self.has_heard.set()
        if self.is_away:
            raise StoreUnavailable("the store does not answer")
        self.marked.append(job_ids)


async def test_jobs_published_within_a_moment_are_cleared_together() -> None:
    jobs, store = PublishedJobs(), HeardStore()
    for name in "abc":
        jobs.add(JobId(name))

    await run_until_heard(jobs, store)

    assert store.marked == [("a", "b", "c")]


async def test_a_job_is_cleared_once() -> None:
    jobs, store = PublishedJobs(), HeardStore()
    jobs.add(JobId("a"))
    await jobs.clear(store)
    jobs.add(JobId("b"))
    await jobs.clear(store)
    await jobs.clear(store)

    assert store.marked == [("a",), ("b",)]


async def test_a_thousand_and_one_go_in_two_parts() -> None:
    jobs, store = PublishedJobs(), HeardStore()
    for number in range(1001):
        jobs.add(JobId(str(number)))

    await jobs.clear(store)

    assert [len(part) for part in store.marked] == [1000, 1]


async def test_a_store_that_is_away_ends_neither_the_loop_nor_the_notes_of_later_jobs() -> None:
    jobs, store = PublishedJobs(), HeardStore()
    store.is_away = True
    jobs.add(JobId("left to the sweep"))
    await run_until_heard(jobs, store)
    store.is_away = False
    jobs.add(JobId("b"))

    await run_until_heard(jobs, store)

    assert store.marked == [("b",)]


async def run_until_heard(jobs: PublishedJobs, store: HeardStore) -> None:
    store.has_heard.clear()
    running = asyncio.ensure_future(jobs.run(store))
    async with asyncio.timeout(5):
        await store.has_heard.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
