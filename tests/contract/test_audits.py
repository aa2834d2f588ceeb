"""Audits over a real store: what is sampled, what a critic is asked and when, and that a verdict counts once."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from api.audit.critic import Verdict
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import JobState, Lane
from eventing.job.pipelines.audit import AUDIT_TENANT, AuditRule, audit_job_id
from eventing.redis import keys
from tests.contract.audit_rig import (
    CRITIC,
    FLAW,
    RULE,
    AuditRig,
    audit_id,
    flawless,
    judged,
    with_error_rates,
)


@pytest.fixture
def audit(redis: Redis) -> AuditRig:
    return AuditRig(redis)


class TestSampling:
    async def test_an_answer_from_passages_waits_for_its_audit_once(self, audit: AuditRig) -> None:
        job = await audit.answered(1)

        for _ in range(3):  # ends are told at least once
            await audit.listener.ended(job)

        assert await audit.audits.waiting(CRITIC) == 1
        found = await audit.audits.get(job.id)
        assert found is not None
        assert (found.tenant, found.model, found.critic) == ("acme", "m", CRITIC)
        assert (found.verdict, found.weight, found.ended_ms) == (None, 1.0, job.finished_ms)

    @pytest.mark.parametrize(
        ("changes", "fields"),
        [
            pytest.param({"cache_control": "no-store"}, {}, id="no-store"),
            pytest.param(
                {"metadata": {"torpor.response": '{"store": false}'}}, {}, id="store false"
            ),
            pytest.param({"tenant": "shy"}, {}, id="tenant opted out"),
            pytest.param({"state": JobState.FAILED}, {}, id="failed"),
            pytest.param({"state": JobState.INCOMPLETE}, {}, id="cut off"),
            pytest.param({"passages": ()}, {}, id="no passages"),
            pytest.param(
                {},
                {"cache": CacheUse(status=CacheStatus.HIT, kind=CacheKind.EXACT)},
                id="a kept answer",
            ),
        ],
    )
    async def test_some_jobs_are_never_audited(
        self, redis: Redis, changes: dict[str, Any], fields: dict[str, Any]
    ) -> None:
        rig = AuditRig(redis, rules={"m": replace(RULE, tenants={"shy": 0.0})})
        job = replace(await rig.answered(1, **changes), **fields)

        await rig.listener.ended(job)

        assert await rig.audits.waiting(CRITIC) == 0
        assert await rig.audits.get(job.id) is None

    async def test_a_job_of_a_model_without_a_rule_costs_no_command(self, redis: Redis) -> None:
        rig = AuditRig(redis, rules={"other": RULE})
        job = await rig.answered(1)
        before = (await redis.info("stats"))["total_commands_processed"]

        await rig.listener.ended(job)

        after = (await redis.info("stats"))["total_commands_processed"]
        assert after - before == 1  # the INFO before

    async def test_every_process_samples_the_same_jobs_at_each_tenants_share(
        self, redis: Redis
    ) -> None:
        rules = {"m": AuditRule(critic=CRITIC, share=0.0, tenants={"acme": 0.5})}
        processes = [AuditRig(redis, rules=rules) for _ in range(4)]
        jobs = [await processes[0].answered(number) for number in range(40)]

        for job in jobs:
            await asyncio.gather(*(each.listener.ended(job) for each in processes))

        sampled = [each for each in jobs if await processes[0].audits.get(each.id)]
        assert await processes[0].audits.waiting(CRITIC) == len(sampled)
        assert 8 <= len(sampled) <= 32
        found = await processes[0].audits.get(sampled[0].id)
        assert found is not None
        assert found.weight == 2.0


class TestAsking:
    async def test_a_critic_is_asked_in_the_batch_lane_by_a_tenant_that_no_caller_can_be(
        self, audit: AuditRig
    ) -> None:
        assert await judged(audit, 1, f"a {FLAW}") is Verdict.UNSUPPORTED

        asked = audit.asked[-1]
        assert (asked.tenant, asked.lane, asked.request.model) == (
            AUDIT_TENANT,
            Lane.BATCH,
            CRITIC,
        )
        text = asked.request.body["messages"][-1]["content"]
        for part in ("it is good", "what is it? 1", f"a {FLAW}"):
            assert part in text
        assert asked.deadline_ms > asked.created_ms

    async def test_a_critic_that_is_asleep_is_left_asleep_until_enough_wait(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, least_waiting=3, awake=False)
        for number in range(2):
            await rig.listener.ended(await rig.answered(number))
        assert await rig.round.ask(CRITIC) == 0

        await rig.listener.ended(await rig.answered(2))

        assert await rig.round.ask(CRITIC) > 0

    async def test_a_critic_whose_weights_are_not_known_yet_is_woken_by_a_single_question(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, awake=False)
        await rig.listener.ended(await rig.answered(1))

        assert await rig.round.ask(CRITIC) == 1
        assert await rig.round.ask(CRITIC) == 0
        await redis.hset(keys.REVISIONS, CRITIC, "rev-1")  # it is ready
        assert await rig.round.ask(CRITIC) > 1

    async def test_a_critic_that_is_awake_is_asked_about_a_single_one(self, redis: Redis) -> None:
        rig = AuditRig(redis, least_waiting=3, awake=True)
        await rig.listener.ended(await rig.answered(1))

        assert await rig.round.ask(CRITIC) > 0

    async def test_nothing_is_asked_while_nothing_waits(self, audit: AuditRig) -> None:
        assert await audit.round.ask(CRITIC) == 0
        assert await audit.answer_critics_jobs() == 0

    async def test_the_golden_set_is_asked_about_first_and_once(self, audit: AuditRig) -> None:
        await audit.listener.ended(await audit.answered(1))
        await audit.work()
        golden = [each for each in audit.asked if "row " in str(each.request.body)]
        assert len(golden) == 200
        assert audit.asked[-1] not in golden

        await audit.listener.ended(await audit.answered(2))
        await audit.work()

        assert len(audit.asked) == 202

    async def test_new_weights_of_the_critic_are_measured_again(
        self, audit: AuditRig, redis: Redis
    ) -> None:
        await judged(audit, 1)
        before = await audit.round.version(CRITIC)
        await redis.hset(keys.REVISIONS, CRITIC, "rev-2")

        await audit.listener.ended(await audit.answered(2))
        await audit.work()

        assert await audit.round.version(CRITIC) != before
        assert len(audit.asked) == 202
        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.critic_version == await audit.round.version(CRITIC)

    async def test_a_critic_that_does_not_agree_with_the_golden_set_is_asked_no_more(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, say=with_error_rates(0.6, 0.7))

        assert await judged(rig, 1) is None

        assert rig.asked == []
        assert await rig.audits.waiting(CRITIC) == 1
        figures = (await rig.figures.critics())[CRITIC]
        assert figures.golden.kappa < 0.6
        assert figures.rate("m") is None

    async def test_a_run_over_the_golden_set_that_failed_is_done_again_an_hour_later(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, say=lambda _: "no idea")
        await rig.listener.ended(await rig.answered(1))
        await rig.round.ask(CRITIC)
        for job in (await rig.store.list_jobs(AUDIT_TENANT, limit=100)).jobs:
            await rig.finish(job.id, "", state=JobState.FAILED)
            await rig.listener.ended(await rig.job(job.id))
        await rig.work()
        assert await rig.round.ask(CRITIC) == 0
        version = await rig.round.version(CRITIC)
        old = await rig.audits.golden(version)
        await redis.hincrby(keys.audit_golden(version), "failed_ms", -3_700_000)

        rig.say = flawless
        await rig.work()

        new = await rig.audits.golden(version)
        assert new.run != old.run
        assert rig.golden.counts(new.verdicts).kappa == 1.0
        assert await judged(rig, 2) is Verdict.SUPPORTED

    async def test_an_answer_without_passages_is_searched_for_first(self, redis: Redis) -> None:
        rule = AuditRule(critic=CRITIC, share=1.0, retrieve={"vector_store_names": ["book"]})
        rig = AuditRig(redis, rules={"m": rule})
        await judged(rig, 1)  # measures the critic
        await rig.listener.ended(await rig.answered(2, passages=()))
        await rig.round.ask(CRITIC)

        job = await rig.job(audit_job_id(audit_id(2)))

        assert job.plan is not None
        assert job.plan.names == ("retrieve",)
        assert job.metadata["torpor.audit.of"] == "acme"

    @pytest.mark.parametrize(
        ("found", "verdict"),
        [((), Verdict.NO_PASSAGES), (("it is good",), Verdict.SUPPORTED)],
        ids=["nothing", "a passage"],
    )
    async def test_a_verdict_after_a_search_counts_only_if_something_was_found(
        self, redis: Redis, found: tuple[str, ...], verdict: Verdict
    ) -> None:
        rule = AuditRule(critic=CRITIC, share=1.0, retrieve={"vector_store_names": ["book"]})
        rig = AuditRig(redis, rules={"m": rule})
        await judged(rig, 1)
        await rig.listener.ended(await rig.answered(2, passages=()))
        await rig.round.ask(CRITIC)

        await rig.search(audit_job_id(audit_id(2)), found)
        await rig.answer_critics_jobs()

        audit = await rig.audits.get(audit_id(2))
        assert audit is not None
        assert audit.verdict is verdict

    async def test_a_job_that_was_deleted_meanwhile_is_not_asked_about(
        self, audit: AuditRig
    ) -> None:
        await audit.know_critic()
        job = await audit.answered(1)
        await audit.listener.ended(job)
        await audit.store.delete(job.id)

        await audit.work()

        found = await audit.audits.get(job.id)
        assert found is not None
        assert found.verdict is Verdict.GONE
        assert audit.asked == []

    async def test_what_the_critic_can_not_read_whole_is_not_asked_about(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, context_tokens=1024)

        assert await judged(rig, 1, passages=("long " * 1000,)) is Verdict.TOO_LONG
