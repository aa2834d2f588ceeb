"""The semantic cache over a real store, step by step: a job is asked, its step runs, a predictor answers."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eventing.job.job import Job, JobId, JobRequest, JobState, Lane, new_job_id
from eventing.job.plan import Plan, PlannedStep, StepStatus
from eventing.job.step import AdvanceStatus, StepEnd, StepRun
from eventing.job.store import Ending, NewJob, TokenBatch
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.steps.redis_steps import RedisStepStore
from steps.embedding.embedder import Embedder
from steps.handler import Answer, Continue, Skip, StepCall, StepOutcome
from steps.semantic_cache.entries import SemanticEntries
from steps.semantic_cache.settings import NAME
from steps.semantic_cache.step import SemanticCacheStep
from steps.semantic_cache.verifier import Verifier
from steps.semantic_cache.writer import SemanticCacheWriter
from steps.validation.model_client import ModelClient

SERVES: Mapping[str, Any] = {"sampled": True, "shadow": None, "lookup_ms": 10_000}
"""Settings of a step that serves from the start, and waits for a busy machine."""


@dataclass
class StoreClock:
    """The time of this process, moved on by `ahead_ms`."""

    ahead_ms: int = 0

    def monotonic_s(self) -> float:
        raise NotImplementedError

    def wall_ms(self) -> int:
        import time

        return int(time.time() * 1000) + self.ahead_ms


@dataclass
class SemanticRig:
    """One store, one step, one writer. `asked` is the outcome of each job's step."""

    redis: SharedRedis
    embedder: Embedder
    settings: Mapping[str, Any] = field(default_factory=lambda: SERVES)
    steps: tuple[str, ...] = ()
    clock: StoreClock = field(default_factory=StoreClock)
    outcomes: dict[JobId, StepOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = RedisStepStore(self.redis)
        self.entries = SemanticEntries(self.redis)
        self.models = ModelClient(self.clock)
        self.verifier = Verifier(self.models)
        self.step = SemanticCacheStep(
            entries=self.entries,
            store=self.store,
            embedder=self.embedder,
            verifier=self.verifier,
            clock=self.clock,
        )
        self.writer = SemanticCacheWriter(
            entries=self.entries, store=self.store, embedder=self.embedder
        )
        self._numbers = itertools.count(1)

    async def ask(
        self,
        text: str,
        answer: str = "",
        *,
        tenant: str = "acme",
        cache_control: str = "",
        **body: Any,
    ) -> Job:
        """A job's whole way: its step, and where that gives no answer, `answer` of a predictor, and the writer."""
        job = await self.submit(text, tenant=tenant, cache_control=cache_control, **body)
        if not await self.run_step(job):
            await self.generate(job.id, answer or f"answer {next(self._numbers)}")
            await self.write(job.id)
        return await self.job(job.id)

    async def submit(
        self, text: str, *, tenant: str = "acme", cache_control: str = "", **body: Any
    ) -> Job:
        messages = body.pop("messages", [{"role": "user", "content": text}])
        request = JobRequest(
            url="/v1/chat/completions",
            body={"model": "m", "temperature": 0, **body, "messages": messages},
        )
        job_id = new_job_id()
        plan = Plan(
            steps=(
                PlannedStep(name=NAME, settings=self.settings),
                *(PlannedStep(name=name) for name in self.steps),
            )
        )
        job, _ = await self.store.submit(
            NewJob(
                id=job_id,
                request=request,
                source="/torpor/api",
                event_id=job_id,
                tenant=tenant,
                lane=Lane.DEFAULT,
                cache_control=cache_control,
                plan=plan,
            )
        )
        return job

    async def run_step(self, job: Job) -> bool:
        """Run the step as the runner does; True when it answered."""
        begun = await self.store.begin_step(job.id, NAME)
        assert begun.job is not None
        now = begun.job
        assert now.plan is not None
        call = StepCall(
            job=now,
            request=now.to_run,
            settings=now.plan.steps[0].settings,
            attempt=begun.number,
            deadline_ms=0,
        )
        outcome = self.outcomes[job.id] = await self.step(call)
        end = StepEnd(status=StepStatus.COMPLETED, detail=outcome.detail)
        match outcome:
            case Answer(result=result, usage=usage, cache=cache, tokens=tokens):
                ending = Ending(state=JobState.COMPLETED, result=result, usage=usage, cache=cache)
                end = StepEnd(
                    status=StepStatus.COMPLETED,
                    detail=outcome.detail,
                    ending=ending,
                    tokens=tokens,
                )
            case Skip(reason=reason):
                end = StepEnd(status=StepStatus.SKIPPED, detail={"reason": reason})
            case Continue():
                pass
        stored = await self.store.advance(StepRun.of(now, NAME), end)
        assert stored is AdvanceStatus.OK
        return isinstance(outcome, Answer)

    async def generate(self, job_id: JobId, answer: str) -> None:
        """A predictor's attempt."""
        lease = (await self.store.acquire(job_id, "worker", can_resume=True)).lease
        batch = TokenBatch(index=0, token_ids=(1, 2, 3), delta=answer)
        await self.store.append_all([(lease, batch)])
        message = {"role": "assistant", "content": answer}
        result = {
            "id": f"chatcmpl-{job_id.removeprefix('job_')}",
            "created": 1,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        }
        ending = Ending(state=JobState.COMPLETED, result=result, usage=result["usage"])
        await self.store.finish(lease, ending)

    async def write(self, job_id: JobId) -> None:
        await self.writer.ended(await self.job(job_id))

    async def job(self, job_id: JobId) -> Job:
        job = await self.store.get(job_id)
        assert job is not None
        return job

    def reason(self, job: Job) -> str:
        """Why the step did not look for an answer; empty when it did."""
        outcome = self.outcomes[job.id]
        return outcome.reason if isinstance(outcome, Skip) else ""


def text_of(job: Job) -> str:
    """What the caller is answered."""
    assert job.result is not None
    content = job.result["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def is_hit(job: Job) -> bool:
    return job.cache is not None and job.cache.is_hit
