"""The cost of an ending for a job, when store or engine interfere."""

from eventing.clock import SystemClock
from eventing.cloudevent.job_event import job_of
from eventing.errors import BadRequest, Overloaded
from eventing.job.job import Job, JobState
from predictor.delivery.answer import Ended, Held, Refused
from predictor.delivery.settlement import Settlement
from predictor.generation.generation import Attempt, Completed, EngineFailed, Interrupted
from tests.unit.predictor.harness import UnreliableStore, asking


async def running_job() -> tuple[UnreliableStore, Settlement, Attempt]:
    """A job whose first attempt is ours."""
    store = UnreliableStore()
    job, _ = await store.submit(job_of(asking()))
    taken = await store.acquire(job.id, "p", can_resume=True)
    attempt = Attempt(lease=taken.lease, acquired_s=0, token_count=0, can_resume=True)
    return store, Settlement(store, SystemClock(), lease_s=30), attempt


async def job_of_attempt(store: UnreliableStore, attempt: Attempt) -> Job:
    job = await store.get(attempt.job_id)
    assert job is not None
    return job


async def test_an_end_that_comes_after_another_took_the_job_over_ends_nothing() -> None:
    store, settlement, attempt = await running_job()
    await store.acquire_again(attempt.job_id, restart=False)

    outcome, _ = await settlement.settle(attempt, Interrupted.EXPIRED, new_tokens=3)

    assert isinstance(outcome, Held)
    job = await job_of_attempt(store, attempt)
    assert (job.attempt, job.lease_owner) == (2, "another")


async def test_an_engine_whose_own_queue_is_full_costs_no_attempt() -> None:
    store, settlement, attempt = await running_job()

    outcome, _ = await settlement.settle(
        attempt, EngineFailed(Overloaded("full", 1.0)), new_tokens=0
    )

    assert isinstance(outcome, Refused)
    assert (await job_of_attempt(store, attempt)).history[0].outcome == "handover"


async def test_an_answer_that_is_too_large_to_keep_is_refused_to_its_caller() -> None:
    """107 MB of prompt logprobs took the store away from everybody, again and again, for a minute."""
    store, settlement, attempt = await running_job()
    body = {"choices": [{"prompt_logprobs": "x" * 33 * 1024 * 1024}]}

    outcome, name = await settlement.settle(attempt, Completed(body), new_tokens=3)

    job = await job_of_attempt(store, attempt)
    assert (type(outcome), name) == (Ended, "invalid")
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "result_too_large")


async def test_what_an_engine_spent_beside_its_answer_is_in_the_jobs_usage_and_not_in_the_answer() -> (
    None
):
    store, settlement, attempt = await running_job()
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "extra": "a gift"}
    beside = {"kind": "hedged", "model": "m", "prompt_tokens": 5, "completion_tokens": 0}
    body = {"choices": [], "usage": usage, "extra_usage": [beside]}

    await settlement.settle(attempt, Completed(body), new_tokens=3)

    job = await job_of_attempt(store, attempt)
    assert job.result is not None
    assert job.usage == {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "extra": [beside],
    }
    assert "extra_usage" not in job.result


async def test_a_provider_that_writes_into_our_fields_changes_no_cost() -> None:
    store, settlement, attempt = await running_job()
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "extra": [{"kind": 1}]}

    await settlement.settle(attempt, Completed({"choices": [], "usage": usage}), new_tokens=3)

    job = await job_of_attempt(store, attempt)
    assert job.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def test_a_refusal_ends_no_job_that_somebody_runs() -> None:
    store, settlement, attempt = await running_job()
    job = await job_of_attempt(store, attempt)

    outcome = await settlement.refuse(job, BadRequest("no such model here", "model"))

    assert isinstance(outcome, Held)
    assert not (await job_of_attempt(store, attempt)).state.is_terminal
