"""Steps before the predictor under faults. Whatever dies, freezes or is sent twice: one terminal state, each step's
effect once, and a `pipeline` that says what was so.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from eventing.cloudevent.event import build_binary
from eventing.cloudevent.job_event import request_event
from eventing.job.job import Job, JobId
from tests.faults.checker import Rules
from tests.faults.client import body
from tests.faults.conftest import Judge, rounds
from tests.faults.processes import System, running
from tests.faults.programs import Program, Tuning, Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, hurt_with, warm

pytestmark = pytest.mark.timeout(1800)
MARKS = ("mark-a", "mark-b", "mark-c")


@asynccontextmanager
async def stepping(
    zygote: Zygote,
    folder: Path,
    *steps: Any,
    step_retry: int = 1000,
    is_direct: bool = False,
    max_attempts: int = 0,
) -> AsyncIterator[tuple[System, Program]]:
    """A system whose model has these steps, and its steps process. Its predictor keeps its jobs however long the
    machine stands still, unless `max_attempts` says that it is killed.
    """
    tuning = Tuning(steps=steps, step_retry=step_retry, steps_are_refused=is_direct, lease_s=30)
    if max_attempts:  # more than kills, so that no job is a dead letter
        tuning = replace(tuning, lease_s=0.6, max_attempts=max_attempts)
    async with running(zygote, folder, tuning) as system:
        assert system.steps is not None
        try:
            yield system, system.steps
        finally:
            system.steps.signal(signal.SIGKILL)


async def job_of(system: System, job_id: str) -> Job:
    job = await system.store.get(JobId(job_id))
    assert job is not None
    return job


async def shown(system: System, job_id: str) -> dict[str, Any]:
    status, job = await system.client.get(job_id)
    assert status == 200
    return job


async def marked_once(system: System, jobs: list[str]) -> None:
    """Every job was generated for once, after each step's mark was made once, in order."""
    for job_id in jobs:
        job = await shown(system, job_id)
        steps = job["pipeline"]
        assert (job["state"], job["attempt"]) == ("completed", 1), job
        assert [each["status"] for each in steps] == ["completed"] * 3, steps
        assert [each["detail"]["found"] for each in steps] == ["", "a", "ab"], steps
        times = [job["created_ms"]]
        for each in steps:
            times += [each["started_ms"], each["ended_ms"]]
        assert times == sorted(times), steps
        assert times[-1] <= job["started_ms"]


async def test_the_steps_process_dies_at_every_point_of_a_step(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, *MARKS) as (system, steps):
        await warm(system)
        redis, link = system.steps_redis, system.steps_delivery
        points: list[tuple[Proxy, bytes, Way, bool]] = [
            (link, b"POST ", Way.UP, False),
            (link, b"POST ", Way.UP, True),
            (redis, called("begin_step"), Way.UP, False),
            (redis, called("begin_step"), Way.UP, True),
            (redis, called("advance"), Way.UP, False),
            (redis, called("advance"), Way.UP, True),
            (link, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        jobs = await hurt_with(system, points, steps, trials)
        # A job whose step was cut off runs alone: some two a second.
        await system.ended(jobs, within_s=60 + trials)

        await marked_once(system, jobs)
        await judge(system, trials, of="kills")


async def test_every_event_of_a_step_is_delivered_five_times(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    slow = [{"step": name, "settings": {"seconds": 0.05}} for name in MARKS]
    async with stepping(zygote, tmp_path, *slow) as (system, _), aiohttp.ClientSession() as http:
        await warm(system)
        jobs: list[str] = []
        for numbers in rounds(many, 20):
            jobs += await asyncio.gather(*(system.client.submit(body(n), f"d{n}") for n in numbers))
            await asyncio.gather(*(repeat(system, http, job_id) for job_id in jobs[-20:]))
        await system.ended(jobs, within_s=60)

        await marked_once(system, jobs)
        await judge(system, many, of="jobs")


async def repeat(system: System, http: aiohttp.ClientSession, job_id: str) -> None:
    """Send each event of the job's steps five times more, at once, until its steps are done."""
    url = f"http://127.0.0.1:{system.steps_delivery.port}/events"
    seen = ""
    while (job := await job_of(system, job_id)).step and not job.state.is_terminal:
        if job.step == seen:
            await asyncio.sleep(0.005)
            continue
        seen = job.step
        headers, data = build_binary(request_event(job))
        for answer in await asyncio.gather(
            *(http.post(url, data=data, headers=headers) for _ in range(5))
        ):
            answer.release()
            assert answer.status in (200, 503)


async def test_the_store_is_frozen_while_jobs_are_in_their_steps(
    zygote: Zygote, tmp_path: Path, judge: Judge
) -> None:
    slow = [{"step": name, "settings": {"seconds": 0.2}} for name in MARKS]
    async with stepping(zygote, tmp_path, *slow) as (system, _):
        await warm(system)
        jobs = await asyncio.gather(*(system.client.submit(body(n), f"f{n}") for n in range(1, 21)))
        await asyncio.sleep(0.3)
        system.server.signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        system.server.signal(signal.SIGCONT)
        await system.ended(jobs, within_s=60)

        await marked_once(system, list(jobs))
        await judge(system, len(jobs), of="jobs")


async def test_input_that_kills_its_step_costs_no_other_job_a_thing(
    zygote: Zygote, tmp_path: Path, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, "deadly", step_retry=5, is_direct=True) as (
        system,
        steps,
    ):
        keeping = asyncio.ensure_future(kept_alive(steps))
        try:
            lines = [body(n) for n in range(1, 16)]
            bad = body(99, prompt="poison")
            submits = [system.client.submit(line, f"g{n}") for n, line in enumerate(lines)]
            submits.insert(7, system.client.submit(bad, "bad", is_poison=True))
            jobs = list(await asyncio.gather(*submits))
            await system.ended(jobs, within_s=60)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

        poison = await shown(system, jobs.pop(7))
        assert (poison["state"], poison["is_dead_letter"], poison["attempt"]) == ("failed", True, 0)
        assert poison["error"]["code"] == "undeliverable"
        assert [each["status"] for each in poison["pipeline"]] == ["failed"]
        for job_id in jobs:
            job = await shown(system, job_id)
            assert (job["state"], job["attempt"]) == ("completed", 1), job
        await judge(system, len(jobs), Rules(), of="jobs beside it")


async def kept_alive(program: Program) -> None:
    """Start it again when it has died."""
    while True:
        if not program.is_alive:
            program.start()
            await program.ready()
        await asyncio.sleep(0.05)


async def test_what_a_step_decides_is_so(zygote: Zygote, tmp_path: Path) -> None:
    """Each way in which a step can end: answered, refused, skipped, tried again, given up, waited for."""
    plans: dict[str, list[Any]] = {
        "answer": ["skip", "answer", "mark-a"],
        "refuse": ["refuse", "mark-a"],
        "broken": [{"step": "broken", "settings": {"times": 2}}],
    }
    for name, steps in plans.items():
        async with stepping(zygote, tmp_path / name, *steps) as (system, _):
            job_id = await system.client.submit(body(1), name)
            await system.ended([job_id], within_s=60)
            job = await shown(system, job_id)
            _DECIDED[name](job)


def _answered(job: dict[str, Any]) -> None:
    assert (job["state"], job["attempt"], job["token_count"]) == ("completed", 0, 2)
    assert job["result"]["choices"][0]["message"]["content"] == "kept"
    assert [each["status"] for each in job["pipeline"]] == ["skipped", "completed", "not_run"]
    assert job["pipeline"][0]["detail"] == {"reason": "does not apply"}
    assert job["pipeline"][1]["detail"] == {"hit": True}


def _refused(job: dict[str, Any]) -> None:
    assert (job["state"], job["attempt"], job["is_dead_letter"]) == ("failed", 0, False)
    assert job["error"] == {"code": "content_filter", "message": "not this", "field": "messages"}
    assert [each["status"] for each in job["pipeline"]] == ["failed", "not_run"]


def _tried_again(job: dict[str, Any]) -> None:
    assert (job["state"], job["attempt"]) == ("completed", 1)
    (step,) = job["pipeline"]
    assert (step["attempts"], step["detail"]) == (3, {"runs": 3})


_DECIDED = {"answer": _answered, "refuse": _refused, "broken": _tried_again}


async def test_a_step_that_is_down_is_waited_for_or_skipped_as_its_plan_says(
    zygote: Zygote, tmp_path: Path
) -> None:
    until = tmp_path / "up"
    settings = {"until": str(until)}
    skipped = {"step": "broken", "settings": {"times": 99}, "on_failure": "continue"}
    slow = {
        "step": "mark-a",
        "settings": {"seconds": 30},
        "on_failure": "continue",
        "timeout_ms": 50,
    }
    waited = {"step": "away", "settings": settings}
    async with stepping(zygote, tmp_path / "s", skipped, slow, waited) as (system, _):
        job_id = await system.client.submit(body(1), "down")
        async with asyncio.timeout(20):
            while (await job_of(system, job_id)).step != "away":
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert (await shown(system, job_id))["state"] == "queued"
        until.touch()
        await system.ended([job_id], within_s=60)

        job = await shown(system, job_id)
        assert (job["state"], job["attempt"]) == ("completed", 1)
        told = [(each["status"], each["detail"].get("reason")) for each in job["pipeline"]]
        assert told == [("skipped", "failed"), ("skipped", "timeout"), ("completed", None)]


async def test_a_step_whose_tries_are_used_up_fails_its_job_and_a_redrive_goes_on_there(
    zygote: Zygote, tmp_path: Path
) -> None:
    broken = {"step": "broken", "settings": {"times": 99}}
    async with stepping(zygote, tmp_path, "mark-a", broken, step_retry=2) as (system, _):
        job_id = await system.client.submit(body(1), "tries", is_poison=True)
        await system.ended([job_id], within_s=60)
        failed = await shown(system, job_id)
        assert (failed["state"], failed["is_dead_letter"]) == ("failed", True)
        assert failed["error"]["code"] == "undeliverable"
        assert [each["status"] for each in failed["pipeline"]] == ["completed", "failed"]
        first = failed["pipeline"][0]

        async with aiohttp.ClientSession() as http:
            base = system.api.health.removesuffix("/healthz")
            answer = await http.post(f"{base}/v1/dead-letters/{job_id}/redrive")
            assert answer.status < 300
            answer.release()
        await asyncio.sleep(0.2)
        await system.ended([job_id], within_s=60)

        again = await shown(system, job_id)
        # Its runs are counted anew, so it fails in the same way; the first step is not run again.
        assert again["pipeline"][0] == first
        assert (again["state"], again["attempt"]) == ("failed", 1)


async def test_a_job_is_cancelled_and_expires_while_it_is_in_a_step(
    zygote: Zygote, tmp_path: Path
) -> None:
    slow = {"step": "mark-a", "settings": {"seconds": 1.5}}
    async with stepping(zygote, tmp_path, slow) as (system, _):
        cancelled = await system.client.submit(body(1), "c")
        late = await system.client.submit({**body(2), "expires_after": 0.5}, "l", is_poison=True)
        async with asyncio.timeout(20):
            while not (await job_of(system, cancelled)).pipeline:
                await asyncio.sleep(0.02)
        await system.client.cancel(cancelled)
        await system.ended([cancelled, late], within_s=60)
        await asyncio.sleep(1.5)  # until the run would have ended by itself

        one, other = await shown(system, cancelled), await shown(system, late)
        assert (one["state"], one["pipeline"][0]["status"]) == ("cancelled", "cancelled")
        assert (other["state"], other["error"]["code"]) == ("failed", "expired")
        assert [one["attempt"], other["attempt"]] == [0, 0]
