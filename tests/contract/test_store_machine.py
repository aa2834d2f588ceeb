"""Both stores give the same answers to any history of calls, and keep a job's invariants.

Hypothesis generates the histories. Times are left out of the comparison, order is not.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from eventing.errors import BrokerUnavailable, IdempotencyConflict, NotCached
from eventing.job.job import Job, JobError, JobId, JobState
from eventing.job.store import (
    Acquired,
    Ending,
    Lease,
    Page,
    Publication,
    ReleaseReason,
    Store,
    TokenBatch,
)
from eventing.job.stream import StreamEntry
from eventing.redis.connection import connect
from tests.contract.rig import (
    SETTINGS,
    MemoryRig,
    RedisRig,
    append,
    finish,
    ids_of,
    job_id,
    new_job,
)
from tests.time_limits import STORE_S

EVENTS = st.sampled_from(["a", "b", "c"])
TENANTS = st.sampled_from(["acme", "other"])
PROMPTS = st.sampled_from(["why?", "how?"])
BEHIND = st.integers(0, 2)
"""Which lease: the newest, and zombies' before it; one that never was, where there are fewer."""
FAULT = JobError(code="engine_error", message="the engine gave up")
ENDINGS = st.builds(
    Ending,
    state=st.sampled_from([state for state in JobState if state.is_terminal]),
    result=st.sampled_from([None, {"text": "because"}]),
    error=st.sampled_from([None, FAULT]),
    is_dead_letter=st.booleans(),
)
BATCHES = st.builds(
    TokenBatch,
    index=st.integers(0, 4),
    token_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    delta=st.sampled_from(["", '["x"]']),
)


def timeless(value: Any) -> Any:
    """The answer without what two clocks cannot agree on."""
    match value:
        case Job():
            spans = [replace(a, started_ms=0, ended_ms=bool(a.ended_ms)) for a in value.history]
            return replace(
                value,
                created_ms=0,
                started_ms=bool(value.started_ms),
                first_token_ms=bool(value.first_token_ms),
                finished_ms=bool(value.finished_ms),
                deadline_ms=bool(value.deadline_ms),
                lease_until_ms=bool(value.lease_until_ms),
                history=tuple(spans),
            )
        case StreamEntry():
            return value._replace(cursor="", at_ms=bool(value.at_ms))
        case Acquired():
            lease = replace(value.lease, id="")
            return replace(value, lease=lease, lease_left_ms=bool(value.lease_left_ms))
        case Page():
            return ([timeless(job) for job in value.jobs], bool(value.next_cursor))
        case list() | tuple():
            return [timeless(item) for item in value]
        case _:
            return value


class TwoStores(RuleBasedStateMachine):
    """The same history, expected to memory and to Redis."""

    redis_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.memory = MemoryRig()
        self.redis = RedisRig(connect(self.redis_url, timeout_s=STORE_S))
        self.runner.run(self.redis.redis.flushall())
        self.ends: dict[JobId, JobState] = {}
        self.leases: dict[tuple[int, str], list[Lease]] = {}

    def teardown(self) -> None:
        self.runner.run(self.redis.store.close())
        self.runner.close()

    def both(self, ask: Callable[[Store], Awaitable[Any]]) -> Any:
        """The answer, once both have given the same."""

        async def expected(store: Store) -> Any:
            try:
                return timeless(await ask(store))
            except (IdempotencyConflict, BrokerUnavailable, NotCached) as error:
                return type(error)

        async def all_told() -> tuple[Any, Any]:
            # A millisecond of its own for each call, so that the order of jobs is the same too.
            self.memory.clock.now_ms += 2
            await asyncio.sleep(0.0015)
            return await expected(self.memory.store), await expected(self.redis.store)

        in_memory, in_redis = self.runner.run(all_told())
        assert in_memory == in_redis
        return in_redis

    def lease(self, store: Store, event: str, behind: int) -> Lease:
        """One of those that this store gave for the event's job."""
        given = self.leases.get((id(store), event), [])
        return given[-1 - behind] if behind < len(given) else Lease(job_id(event), behind, "x")

    @rule(
        event=EVENTS,
        tenant=TENANTS,
        prompt=PROMPTS,
        has_deadline=st.booleans(),
        most=st.sampled_from([None, 2]),
    )
    def submit(
        self, event: str, tenant: str, prompt: str, has_deadline: bool, most: int | None
    ) -> None:
        async def ask(store: Store) -> Any:
            rig = self.memory if store is self.memory.store else self.redis
            deadline_ms = await rig.now_ms() + 45_000 if has_deadline else 0
            new = new_job(event, tenant=tenant, prompt=prompt, deadline_ms=deadline_ms)
            return await store.submit(new, Publication(max_unpublished=most))

        self.both(ask)

    @rule(event=EVENTS, tenant=TENANTS, raw=st.sampled_from([b"no job", b'{"url": 1}']))
    def reject(self, event: str, tenant: str, raw: bytes) -> None:
        self.both(lambda store: store.reject(new_job(event, tenant=tenant), FAULT, raw))

    @rule(
        event=EVENTS,
        owner=st.sampled_from(["w1", "w2"]),
        can_resume=st.booleans(),
        is_exclusive=st.booleans(),
        expected=st.sampled_from(["", "why?", "how?"]),
    )
    def acquire(
        self, event: str, owner: str, can_resume: bool, is_exclusive: bool, expected: str
    ) -> None:
        new = new_job(event, prompt=expected) if expected else None

        async def ask(store: Store) -> Acquired:
            taken = await store.acquire(
                job_id(event), owner, can_resume=can_resume, is_exclusive=is_exclusive, expected=new
            )
            if taken.lease.id:
                self.leases.setdefault((id(store), event), []).append(taken.lease)
            return taken

        self.both(ask)

    @rule(event=EVENTS, behind=BEHIND, extend=st.booleans())
    def renew(self, event: str, behind: int, extend: bool) -> None:
        self.both(lambda store: store.renew([self.lease(store, event, behind)], extend=extend))

    @rule(event=EVENTS, behind=BEHIND, batch=BATCHES, is_next=st.booleans())
    def append(self, event: str, behind: int, batch: TokenBatch, is_next: bool) -> None:
        job = self.runner.run(self.memory.store.get(job_id(event)))
        if is_next and job:
            batch = replace(batch, index=job.token_count)
        self.both(lambda store: append(store, self.lease(store, event, behind), batch))

    @rule(event=EVENTS, behind=BEHIND, ending=ENDINGS, batch=BATCHES, has_rest=st.booleans())
    def finish(
        self, event: str, behind: int, ending: Ending, batch: TokenBatch, has_rest: bool
    ) -> None:
        if has_rest:
            ending = replace(ending, final_batch=batch)
        self.both(lambda store: finish(store, self.lease(store, event, behind), ending))

    @rule(event=EVENTS, behind=BEHIND, why=st.sampled_from(list(ReleaseReason)))
    def release(self, event: str, behind: int, why: ReleaseReason) -> None:
        self.both(lambda store: store.release(self.lease(store, event, behind), why, FAULT))

    @rule(event=EVENTS)
    def cancel(self, event: str) -> None:
        self.both(lambda store: store.cancel(job_id(event)))

    @rule(event=EVENTS, ending=ENDINGS, behind=st.sampled_from([None, -1, 0, 1]))
    def conclude(self, event: str, ending: Ending, behind: int | None) -> None:
        job = self.runner.run(self.memory.store.get(job_id(event)))
        attempt = None if behind is None else max((job.attempt if job else 0) - behind, 0)
        self.both(lambda store: store.conclude(job_id(event), ending, attempt=attempt))

    @rule(
        event=EVENTS, prompt=st.sampled_from(["", "why?", "how?"]), most=st.sampled_from([None, 2])
    )
    def redrive(self, event: str, prompt: str, most: int | None) -> None:
        edited = new_job(event, prompt=prompt).request if prompt else None

        async def ask(store: Store) -> bool:
            job = await store.get(job_id(event))
            publication = Publication(max_unpublished=most)
            return job is not None and await store.redrive(job, edited, publication)

        if self.both(ask):
            del self.ends[job_id(event)]

    @rule(event=EVENTS)
    def delete(self, event: str) -> None:
        if self.both(lambda store: store.delete(job_id(event))):
            self.ends.pop(job_id(event), None)

    @rule(event=EVENTS, later_ms=st.sampled_from([0, 1, 1_000_000]))
    def mark(self, event: str, later_ms: int) -> None:
        if later_ms:
            self.both(lambda store: store.look_later(job_id(event), later_ms))
        else:
            self.both(lambda store: store.mark_published(job_id(event)))

    @rule(limit=st.integers(1, 3))
    def take(self, limit: int) -> None:
        self.both(lambda store: store.take_unpublished(limit))
        self.both(lambda store: store.claim_unstarted(limit))

    @rule(limit=st.integers(1, 3))
    def expire(self, limit: int) -> None:
        self.both(lambda store: store.expire(limit))

    @rule(milliseconds=st.sampled_from([5_000, SETTINGS.lease_ms + 1_000, 3_700_000]))
    def pass_time(self, milliseconds: int) -> None:
        async def both_pass() -> None:
            await self.memory.pass_time(milliseconds)
            await self.redis.pass_time(milliseconds)

        self.runner.run(both_pass())

    @rule(tenant=TENANTS, limit=st.integers(1, 4))
    def read_lists(self, tenant: str, limit: int) -> None:
        async def pages(store: Store) -> Any:
            first = await store.list_jobs(tenant, limit=limit)
            final_batch = await store.list_jobs(tenant, cursor=first.next_cursor)
            return timeless(
                [first, final_batch, await store.list_dead_letters(tenant, limit=limit)]
            )

        self.both(pages)

    @invariant()
    def both_hold_the_same_jobs_and_streams(self) -> None:
        async def everything(store: Store) -> Any:
            found = []
            for event in "abc":
                job = await store.get(job_id(event))
                entries = await store.read_stream(job_id(event))
                ids = await ids_of(store, job_id(event), job.token_count if job else 0)
                found.append([timeless(job), timeless(entries), ids])
            return found

        for event, (job, entries, ids) in zip("abc", self.both(everything), strict=True):
            if job is None:
                self.ends.pop(job_id(event), None)
            else:
                self.check_life(job, entries, ids)

    def check_life(self, job: Job, entries: list[StreamEntry], ids: list[int]) -> None:
        """I2 one end, I4 whole tokens, and a lease only while it runs."""
        before = self.ends.get(job.id)
        assert before is None or job.state is before, "a terminal state changed"
        if job.state.is_terminal:
            self.ends[job.id] = job.state
            assert job.finished_ms
        assert bool(job.lease_owner) == (job.state is JobState.IN_PROGRESS)
        assert len(ids) == job.token_count
        assert [one.attempt for one in job.history] == sorted({a.attempt for a in job.history})
        assert all(one.attempt <= job.attempt for one in job.history)
        shown = 0
        for entry in entries:
            if entry.token_ids:
                assert entry.index == shown, "a gap or a repeat"
                shown += len(entry.token_ids)
            elif entry.kind == "attempt":
                assert entry.index in (shown, 0)
                shown = entry.index


@pytest.mark.timeout(900)
def test_both_stores_give_the_same_answers_to_any_history(redis_url: str) -> None:
    TwoStores.redis_url = redis_url

    run_state_machine_as_test(
        TwoStores,
        settings=settings(
            max_examples=int(os.environ.get("TORPOR_TEST_EXAMPLES", "40")),
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        ),
    )
