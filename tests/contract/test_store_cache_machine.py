"""Any history of jobs that ask the exact cache, told to memory and to Redis: the same answers, and one life a job."""

import os
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from eventing.job.cache.cache import CacheAsk
from eventing.job.cache.followers import FollowerStatus
from eventing.job.store import Publication, Store, TokenBatch
from tests.contract.rig import job_id, new_job
from tests.contract.test_store_cache import answers
from tests.contract.test_store_machine import EVENTS, PROMPTS, TENANTS, TwoStores


class TwoCaches(TwoStores):
    """As `TwoStores`, with kept answers and followers."""

    def answers_of(self, store: Store) -> Any:
        return answers(self.memory if store is self.memory.store else self.redis)

    @rule(
        event=EVENTS,
        tenant=TENANTS,
        prompt=PROMPTS,
        reads=st.booleans(),
        only=st.booleans(),
        max_age_s=st.sampled_from([3, 90_000]),
        most=st.sampled_from([None, 2]),
    )
    def submit_cached(
        self,
        event: str,
        tenant: str,
        prompt: str,
        reads: bool,
        only: bool,
        max_age_s: int,
        most: int | None,
    ) -> None:
        ask = CacheAsk(
            key=f"cache_{prompt[:3]}", reads=reads, only_if_cached=only, max_age_s=max_age_s
        )
        new = replace(new_job(event, tenant=tenant, prompt=prompt), cache=ask)
        self.both(lambda store: store.submit(new, Publication(max_unpublished=most)))

    @initialize(tokens=st.integers(0, 2), prompt=PROMPTS)
    def three_ask_the_same(self, tokens: int, prompt: str) -> None:
        """Every history begins with a job that may run, and two that follow it."""
        for event in "abc":
            self.submit_cached(event, "acme", prompt, True, False, 90_000, None)
            if event == "a" and tokens:
                self.acquire("a", "w1", True, True, "")
                batch = TokenBatch(index=0, token_ids=(7,) * tokens)
                self.append("a", 0, batch, is_next=True)

    @rule(event=EVENTS, limit=st.integers(1, 3), most=st.sampled_from([None, 2]))
    def settle_to_the_end(self, event: str, limit: int, most: int | None) -> None:
        """As the listener does it: until nothing is left to do."""
        leader = job_id(event)
        for _ in range(9):
            asked = leader
            step = self.both(
                lambda store: self.answers_of(store).settle_followers(asked, limit)  # noqa: B023
            )
            match step.status:
                case FollowerStatus.MOVED:
                    leader = step.job_id
                case FollowerStatus.ORPHANED:
                    orphan = next(each for each in "abc" if job_id(each) == step.job_id)
                    self.promote(orphan, most)
                case FollowerStatus.MORE:
                    continue
                case _:
                    return

    @rule(event=EVENTS, limit=st.integers(1, 3))
    def settle(self, event: str, limit: int) -> None:
        self.both(lambda store: self.answers_of(store).settle_followers(job_id(event), limit))

    @rule(event=EVENTS, most=st.sampled_from([None, 2]))
    def promote(self, event: str, most: int | None) -> None:
        async def ask(store: Store) -> bool:
            job = await store.get(job_id(event))
            if job is None or not job.follows:
                return False
            publication = Publication(max_unpublished=most)
            return bool(await self.answers_of(store).promote(job, publication))

        self.both(ask)

    @rule(tenant=TENANTS, is_dry_run=st.booleans(), is_all=st.booleans())
    def invalidate(self, tenant: str, is_dry_run: bool, is_all: bool) -> None:
        self.both(
            lambda store: self.answers_of(store).invalidate_answers(
                tenant, ["m"], is_all=is_all, is_dry_run=is_dry_run
            )
        )

    @rule(tenant=TENANTS, prompt=PROMPTS)
    def forget(self, tenant: str, prompt: str) -> None:
        name = f"cache_{prompt[:3]}"
        self.both(lambda store: self.answers_of(store).forget_answer(tenant, name))


@pytest.mark.timeout(900)
def test_both_stores_serve_the_same_answers_in_any_history(redis_url: str) -> None:
    TwoCaches.redis_url = redis_url
    run_state_machine_as_test(
        TwoCaches,
        settings=settings(
            max_examples=int(os.environ.get("TORPOR_TEST_EXAMPLES", "40")),
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        ),
    )
