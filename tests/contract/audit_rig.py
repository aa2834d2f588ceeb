"""Jobs that were answered from passages, and a fake engine that plays their critic.

The critic goes through the real store as a predictor does; what it says is the test's. `FLAW` in an answer is what one
that never errs would flag.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redis.asyncio import Redis

from api.audit.audits import AuditDeps, Audits
from api.audit.critic import Verdict, verdict_of
from api.audit.figures import AuditFigures
from api.audit.golden import GoldenRow, GoldenSet
from api.audit.round import AuditRound, RoundDeps
from api.audit.store import AuditStore
from api.audit.usage import UsageReader
from eventing.broker.intake import Intake
from eventing.cloudevent.event import Event
from eventing.errors import BrokerUnavailable
from eventing.job.job import Job, JobId, JobRequest, JobState, derive_job_id
from eventing.job.moderation.claim import Claim
from eventing.job.pipelines.audit import AUDIT_TENANT, AuditRule, AuditRules
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import StepStatus
from eventing.job.step import StepEnd, StepRun
from eventing.job.store import AcquireStatus, Ending, LeaseSettings, NewJob, Publication
from eventing.redis import keys
from eventing.store.steps.redis_steps import RedisStepStore
from eventing.telemetry.metric.ledger import Ledger
from tests.contract.rig import SETTINGS

CRITIC = "judge"
FLAW = "FLAW"
RETRIEVES = parse_pipelines({"m": {"steps": ["retrieve"]}})["m"]
RULE = AuditRule(critic=CRITIC, share=1.0)


def golden_set(rows: int = 200) -> GoldenSet:
    """Half of its answers are flawed."""
    made = tuple(
        GoldenRow(
            claim=Claim(
                question="What?", answer=f"row {i} {FLAW if i % 2 else 'good'}", passages=("it",)
            ),
            is_supported=i % 2 == 0,
        )
        for i in range(rows)
    )
    return GoldenSet(rows=made, digest="golden")


def with_error_rates(tpr: float, tnr: float) -> Callable[[str], str]:
    """What a critic of these rates says: it errs by a hash of what it is asked."""

    def say(asked: str) -> str:
        draw = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big") / 2**64
        is_flagged = draw < tpr if FLAW in asked else draw >= tnr
        return "VERDICT: UNSUPPORTED" if is_flagged else "VERDICT: SUPPORTED"

    return say


flawless = with_error_rates(1.0, 1.0)


def chat_result(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return {"model": "m", "choices": [choice | {"finish_reason": "stop"}]}


class RecordingRoute:
    """A `Route` and a `Publisher` that keeps what it was given."""

    def __init__(self) -> None:
        self.recorded_ids: list[JobId] = []
        self.events: list[Event] = []
        self.is_down = False

    def publication(self, event: Event) -> Publication:
        return Publication()

    def recorded(self, job_id: JobId, event: Event) -> None:
        self.recorded_ids.append(job_id)

    async def publish(self, event: Event) -> None:
        if self.is_down:
            raise BrokerUnavailable("down")
        self.events.append(event)

    async def close(self) -> None:
        """Nothing is held open."""


@dataclass
class AuditRig:
    """One process's part in audits, over a real store."""

    redis: Redis
    rules: AuditRules = field(default_factory=lambda: {"m": RULE})
    golden: GoldenSet = field(default_factory=golden_set)
    least_waiting: int = 1
    gpu_share: float = 0.03
    awake: bool = True
    context_tokens: int = 4096
    say: Callable[[str], str] = flawless
    gpu_ms: int = 0
    settings: LeaseSettings = SETTINGS
    route: RecordingRoute = field(default_factory=RecordingRoute)
    asked: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = RedisStepStore(self.redis, self.settings)
        self.audits = AuditStore(self.redis, 3600)
        self.ledger = Ledger(self.redis)
        self.usage = UsageReader(self.audits, self.ledger)
        deps = AuditDeps(
            rules=self.rules,
            audits=self.audits,
            jobs=self.store,
            publisher=self.route,
            models=("m", "small"),
        )
        self.listener = Audits(deps)
        self.round = AuditRound(
            RoundDeps(
                rules=self.rules,
                least_waiting=self.least_waiting,
                gpu_share=self.gpu_share,
                golden=self.golden,
                contexts={CRITIC: self.context_tokens},
                redis=self.redis,
                audits=self.audits,
                usage=self.usage,
                listener=self.listener,
                jobs=self.store,
                intake=Intake(self.store, self.route),
                is_awake=self._is_awake,
            )
        )
        self.figures = AuditFigures(
            self.audits, self.usage, self.rules, self.golden, self.round.version, 30
        )

    async def _is_awake(self, _: str) -> bool:
        return self.awake

    async def answered(self, number: int, answer: str = "good", **fields: Any) -> Job:
        """A job that ended with this answer from a passage, before its end is told."""
        passages = fields.pop("passages", ("it is good",))
        state = fields.pop("state", JobState.COMPLETED)
        new = self.new_job(number, **fields)
        await self.store.submit(new)
        await self.search(new.id, passages)
        await self.finish(new.id, answer, state=state)
        return await self.job(new.id)

    async def search(self, job_id: JobId, passages: Sequence[str]) -> None:
        """Play the step that retrieves."""
        begun = await self.store.begin_step(job_id, "retrieve")
        assert begun.job is not None
        sources = [{"file_id": "f", "filename": "f.txt", "text": text} for text in passages]
        end = StepEnd(status=StepStatus.COMPLETED, detail={"sources": sources})
        await self.store.advance(StepRun.of(begun.job, "retrieve"), end)

    @staticmethod
    def new_job(number: int, **fields: Any) -> NewJob:
        body = {"model": "m", "messages": [{"role": "user", "content": f"what is it? {number}"}]}
        return replace(
            NewJob(
                id=derive_job_id("/tests", f"{number}"),
                request=JobRequest(url="/v1/chat/completions", body=body),
                source="/tests",
                event_id=f"{number}",
                tenant="acme",
                plan=RETRIEVES,
            ),
            **fields,
        )

    async def job(self, job_id: JobId) -> Job:
        job = await self.store.get(job_id)
        assert job is not None
        return job

    async def finish(
        self, job_id: JobId, text: str, *, state: JobState = JobState.COMPLETED, gpu_ms: int = 0
    ) -> None:
        """Play an attempt that says this."""
        taken = await self.store.acquire(job_id, "fake-engine", can_resume=True)
        if taken.status is not AcquireStatus.ACQUIRED:
            return
        await self.store.finish(
            taken.lease, Ending(state=state, result=chat_result(text), gpu_ms=gpu_ms)
        )

    async def answer_critics_jobs(self) -> int:
        """Play the critic on each of its jobs that waits, and tell their ends; gives how many there were."""
        waiting = [
            job
            for job in (await self.store.list_jobs(AUDIT_TENANT, limit=100)).jobs
            if job.state is JobState.QUEUED
        ]
        for job in waiting:
            whole = await self.job(job.id)
            self.asked.append(whole)
            said = self.say(str(whole.request.body["messages"][-1]["content"]))
            await self.finish(job.id, said, gpu_ms=self.gpu_ms)
            await self.listener.ended(await self.job(job.id))
        return len(waiting)

    async def know_critic(self) -> None:
        """Put the verdicts of this critic on the golden set into the store, as if it had been asked."""
        said = [self.say(row.claim.answer) for row in self.golden.rows]
        verdicts = {row: str(verdict_of(text)) for row, text in enumerate(said)}
        key = keys.audit_golden(await self.round.version(CRITIC))
        await self.redis.hset(key, mapping={"run": "known", **verdicts})

    async def work(self) -> None:
        """Ask, and have the critic answer, until nothing more is asked."""
        await self.round.ask(CRITIC)
        while await self.answer_critics_jobs():
            await self.round.ask(CRITIC)


async def judged(rig: AuditRig, number: int, answer: str = "good", **fields: Any) -> Verdict | None:
    """The verdict on a new job, by a critic that was measured before."""
    await rig.know_critic()
    job = await rig.answered(number, answer, **fields)
    await rig.listener.ended(job)
    await rig.work()
    found = await rig.audits.get(job.id)
    return found.verdict if found else None


def audit_id(number: int) -> Any:
    return derive_job_id("/tests", f"{number}")
