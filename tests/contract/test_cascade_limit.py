"""How many answers of a tenant a better model may make in a day: counted by all processes that run the step."""

import asyncio

from redis.asyncio import Redis

from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.redis.connection import connect
from steps.validation.cascade import SharedCascadeLimit

PROCESSES, MOST = 8, 20


def a_job(number: int, tenant: str = "acme", model: str = "auto") -> Job:
    request = JobRequest(url="/v1/completions", body={"model": model, "prompt": "?"})
    return Job(
        id=JobId(f"job_{number:024x}"), state=JobState.QUEUED, request=request, tenant=tenant
    )


async def test_eight_processes_make_no_more_than_allowed_and_each_answer_counts_once(
    redis: Redis, redis_url: str
) -> None:
    clients = [connect(redis_url, timeout_s=5) for _ in range(PROCESSES)]
    limits = [SharedCascadeLimit(client) for client in clients]
    jobs = [a_job(number) for number in range(100)]
    try:
        # Every answer is asked for by two processes: a step runs again where its process died.
        asked = [
            limits[(number + again) % PROCESSES].take(job, 0, MOST)
            for number, job in enumerate(jobs)
            for again in (0, 3)
        ]
        answers = await asyncio.gather(*asked)
        repeated = [await limits[0].take(job, 0, MOST) for job in jobs]
        other = await limits[0].take(a_job(1, tenant="other"), 0, MOST)
        next_tier = await limits[0].take(jobs[0], 1, MOST)
    finally:
        for client in clients:
            await client.aclose()

    pairs = list(zip(answers[::2], answers[1::2], strict=True))
    assert sum(repeated) == MOST
    assert [any(pair) for pair in pairs] == repeated
    assert (other, next_tier) == (True, False)
