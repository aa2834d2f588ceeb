"""Jobs with a plan of two steps, brought to one of them."""

from dataclasses import replace

from eventing.job.job import Job, JobRequest
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.plan import Plan, StepStatus
from eventing.job.step import BeginStatus, StepEnd, StepRun
from eventing.job.store import NewJob
from tests.contract.rig import Rig, job_id, new_job

PLAN = parse_pipelines({"m": {"steps": [{"step": "a", "settings": {"k": [1, {}]}}, "b"]}})["m"]
DONE = StepEnd(status=StepStatus.COMPLETED, next_step="b")
LAST = StepEnd(status=StepStatus.COMPLETED)


def planned(event_id: str = "1", *, deadline_ms: int = 0, plan: Plan = PLAN) -> NewJob:
    return replace(new_job(event_id, deadline_ms=deadline_ms), plan=plan)


def edited(text: str) -> JobRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return JobRequest(url="/v1/chat/completions", body=body, custom_id="1")


async def job_of(rig: Rig) -> Job:
    job = await rig.store.get(job_id())
    assert job is not None
    return job


async def begun(rig: Rig, step: str = "a") -> StepRun:
    """A run of a step that has begun."""
    answer = await rig.store.begin_step(job_id(), step)
    assert (answer.status, answer.job is not None) == (BeginStatus.BEGUN, True)
    return StepRun.of(answer.job or await job_of(rig), step)


async def prepared(rig: Rig, request: JobRequest | None = None) -> None:
    """Both steps are done."""
    await rig.store.submit(planned())
    await rig.store.advance(await begun(rig, "a"), DONE)
    await rig.store.advance(await begun(rig, "b"), replace(LAST, prepared=request))


def statuses(job: Job) -> list[tuple[str, StepStatus]]:
    return [(each.step, each.status) for each in job.steps]
