"""Audits over a real store: what is sampled, what a critic is asked and when, and that a verdict counts once."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from api.audit.critic import Verdict
from api.audit.estimate import AuditedCounts
from eventing.errors import Unavailable
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import JobState, Lane, derive_job_id
from eventing.job.pipelines.audit import AUDIT_TENANT, AuditRule, audit_job_id
from eventing.redis import keys
from tests.contract.audit_rig import CRITIC, FLAW, RULE, AuditRig, flawless, with_error_rates
from tests.contract.rig import RedisRig


@pytest.fixture
def audit(redis: Redis) -> AuditRig:
    return AuditRig(redis)


async def judged(rig: AuditRig, number: int, answer: str = "good", **fields: Any) -> Verdict | None:
    """The verdict on a new job, by a critic that was measured before."""
    await rig.know_critic()
    job = await rig.answered(number, answer, **fields)
    await rig.listener.ended(job)
    await rig.work()
    found = await rig.audits.get(job.id)
    return found.verdict if found else None


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


class TestBudget:
    async def test_audits_take_no_more_than_their_share_of_the_gpu_time(self, redis: Redis) -> None:
        rig = AuditRig(redis, gpu_ms=2000)
        await rig.ledger.post({("model", "m"): {"busy_ms": 20_000_000, "kept_ms": 20_000_000}})
        for number in range(3):
            await rig.listener.ended(await rig.answered(number))

        await rig.work()

        # 3 % of 20,000 s are 600 s: 300 audits of 2 s. 200 golden rows and 3 audits cost 406 s.
        assert len(rig.asked) == 203
        usage = await rig.usage.read()
        assert usage.audits_s == pytest.approx(406.0)

    async def test_a_budget_that_is_used_up_stops_audits_in_the_middle(self, redis: Redis) -> None:
        rig = AuditRig(redis, gpu_ms=2000)
        await rig.ledger.post(
            {("model", "m"): {"busy_ms": 2_000_000, "kept_ms": 2_000_000, "jobs": 1000}}
        )
        await rig.listener.ended(await rig.answered(1))

        await rig.work()

        usage = await rig.usage.read()
        assert len(rig.asked) == 30  # 3 % of 2,000 s, at 2 s each
        assert usage.audits_s <= 0.03 * usage.of(CRITIC).paid_s
        assert await rig.round.ask(CRITIC) == 0

    async def test_eight_processes_together_keep_to_the_same_number_in_flight(
        self, redis: Redis
    ) -> None:
        processes = [AuditRig(redis) for _ in range(8)]
        await processes[0].ledger.post(
            {("model", "m"): {"busy_ms": 1_000_000, "kept_ms": 1_000_000, "jobs": 200}}
        )
        await processes[0].listener.ended(await processes[0].answered(1))

        await asyncio.gather(*(each.round.ask(CRITIC) for each in processes))

        # 3 % of 1,000 s pay for six audits of the five seconds that a job takes.
        asked = [job_id for each in processes for job_id in each.route.recorded_ids]
        assert len(asked) == len(set(asked)) == 6


class TestVerdicts:
    async def test_a_verdict_is_recorded_counted_and_told_once_over_duplicates_and_processes(
        self, redis: Redis
    ) -> None:
        processes = [AuditRig(redis) for _ in range(8)]
        first = processes[0]
        await judged(first, 1)  # measures the critic
        await first.listener.ended(await first.answered(2, f"a {FLAW}"))
        await first.round.ask(CRITIC)
        job_id = audit_job_id(audit_id(2))
        await first.finish(job_id, "VERDICT: UNSUPPORTED", gpu_ms=50)
        ended = await first.job(job_id)

        for _ in range(3):
            await asyncio.gather(*(each.listener.ended(ended) for each in processes))

        version = await first.round.version(CRITIC)
        sums = await first.audits.counts([ended.finished_ms // 86_400_000])
        assert sums[version, "m"] == AuditedCounts(jobs=2, weights=2.0, squares=2.0, flagged=1.0)
        spent = await first.audits.spent([ended.finished_ms // 86_400_000])
        assert (spent[CRITIC].gpu_ms, spent[CRITIC].jobs) == (50, 1)
        told = {event.id for each in processes for event in each.route.events}
        assert told == {f"audit_{each.removeprefix('job_')}" for each in (audit_id(1), audit_id(2))}

    async def test_the_event_says_the_verdict_and_nothing_of_the_text(
        self, audit: AuditRig
    ) -> None:
        await judged(audit, 1, f"a {FLAW}")

        (event,) = audit.route.events
        assert event.type == "dev.torpor.inference.audited.v1"
        assert (event.subject, event.extensions["tenant"]) == (audit_id(1), "acme")
        data = orjson.loads(event.data)
        assert data["verdict"] == "unsupported"
        assert FLAW not in event.data.decode()

    async def test_a_verdict_that_could_not_be_told_is_told_when_the_broker_is_back(
        self, audit: AuditRig
    ) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        await audit.round.ask(CRITIC)
        job_id = audit_job_id(audit_id(2))
        await audit.finish(job_id, "VERDICT: SUPPORTED")
        ended = await audit.job(job_id)
        audit.route.is_down = True
        with pytest.raises(Unavailable):
            await audit.listener.ended(ended)

        audit.route.is_down = False
        await audit.listener.ended(ended)

        assert [event.subject for event in audit.route.events] == [audit_id(1), audit_id(2)]

    async def test_the_critics_copy_of_an_answer_is_deleted_with_its_verdict(
        self, audit: AuditRig
    ) -> None:
        await judged(audit, 1)

        assert (await audit.store.list_jobs(AUDIT_TENANT, limit=100)).jobs == ()

    async def test_a_critic_that_gives_no_verdict_is_not_counted(self, audit: AuditRig) -> None:
        await judged(audit, 1)
        audit.say = lambda _: "Hard to tell."
        await audit.listener.ended(await audit.answered(2))
        await audit.work()

        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.verdict is Verdict.UNCLEAR
        version = await audit.round.version(CRITIC)
        sums = await audit.audits.counts([(await audit.audits.now_ms()) // 86_400_000])
        assert sums[version, "m"].jobs == 1

    async def test_a_failed_job_of_the_critic_is_a_failed_audit(self, audit: AuditRig) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        await audit.round.ask(CRITIC)
        await audit.finish(audit_job_id(audit_id(2)), "", state=JobState.FAILED)

        await audit.listener.ended(await audit.job(audit_job_id(audit_id(2))))

        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.verdict is Verdict.FAILED

    async def test_metadata_of_a_callers_job_is_no_verdict(self, audit: AuditRig) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        forged = await audit.answered(
            3, "VERDICT: SUPPORTED", metadata={"torpor.audit": audit_id(2)}
        )

        await audit.listener.ended(forged)

        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.verdict is None


class TestAfterADeath:
    async def test_an_audit_that_was_taken_and_not_asked_is_asked_a_minute_later(
        self, audit: AuditRig, redis: Redis
    ) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        assert await audit.audits.take(CRITIC, 5, golden_only=False) == [audit_id(2)]  # and it died
        assert await audit.round.ask(CRITIC) == 0

        await RedisRig(redis).pass_time(61_000)
        await audit.work()

        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.verdict is Verdict.SUPPORTED

    async def test_a_verdict_whose_end_was_not_heard_is_read_a_minute_later(
        self, audit: AuditRig, redis: Redis
    ) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        await audit.round.ask(CRITIC)
        await audit.finish(audit_job_id(audit_id(2)), "VERDICT: UNSUPPORTED")

        await RedisRig(redis).pass_time(61_000)
        await audit.round.ask(CRITIC)

        found = await audit.audits.get(audit_id(2))
        assert found is not None
        assert found.verdict is Verdict.UNSUPPORTED

    async def test_an_audit_that_runs_is_not_asked_for_again(
        self, audit: AuditRig, redis: Redis
    ) -> None:
        await judged(audit, 1)
        await audit.listener.ended(await audit.answered(2))
        await audit.round.ask(CRITIC)
        asked = len(audit.route.recorded_ids)

        await RedisRig(redis).pass_time(61_000)
        await audit.round.ask(CRITIC)

        assert len(audit.route.recorded_ids) == asked


class TestFigures:
    async def test_the_interval_of_the_published_rate_has_the_planted_one_in_it(
        self, redis: Redis
    ) -> None:
        rig = AuditRig(redis, say=with_error_rates(0.8, 0.95))
        await rig.know_critic()
        for number in range(150):
            await rig.listener.ended(
                await rig.answered(number, FLAW if number % 5 == 0 else "good")
            )

        await rig.work()

        figures = (await rig.figures.critics())[CRITIC]
        rate = figures.rate("m")
        assert rate is not None
        assert figures.models["m"].jobs == 150
        assert 0.6 <= figures.golden.kappa < 1
        assert rate.low <= 0.2 <= rate.high
        shown = {family.name: series for family, series in (await rig.figures.samples()).items()}
        assert shown["torpor_hallucination_rate"] == [(("m",), rate.rate)]
        assert shown["torpor_hallucination_rate_low"] == [(("m",), rate.low)]
        assert shown["torpor_hallucination_rate_high"] == [(("m",), rate.high)]
        assert shown["torpor_critic_kappa"] == [((CRITIC,), figures.golden.kappa)]

    async def test_nothing_but_the_backlog_is_shown_before_the_critic_is_measured(
        self, audit: AuditRig
    ) -> None:
        await audit.listener.ended(await audit.answered(1))

        shown = {family.name: series for family, series in (await audit.figures.samples()).items()}

        assert shown["torpor_audits_waiting"] == [((CRITIC,), 1)]
        assert "torpor_hallucination_rate" not in shown
        assert "torpor_critic_kappa" not in shown


def audit_id(number: int) -> Any:
    return derive_job_id("/tests", f"{number}")
