"""What becomes of an audit: its budget, its verdicts, their figures, and what a death leaves."""

import asyncio

import orjson
import pytest
from redis.asyncio import Redis

from api.audit.critic import Verdict
from api.audit.estimate import AuditedCounts
from eventing.errors import Unavailable
from eventing.job.job import JobState
from eventing.job.pipelines.audit import AUDIT_TENANT, audit_job_id
from tests.contract.audit_rig import CRITIC, FLAW, AuditRig, audit_id, judged, with_error_rates
from tests.contract.rig import RedisRig


@pytest.fixture
def audit(redis: Redis) -> AuditRig:
    return AuditRig(redis)


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
