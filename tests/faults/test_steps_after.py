"""Steps after the predictor under faults: whatever dies, each answer is judged first, and ends its job once."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import Rules
from tests.faults.conftest import Judge
from tests.faults.processes import System
from tests.faults.programs import Zygote
from tests.faults.proxy import Proxy, Way
from tests.faults.test_kill import called, hurt_with, warm
from tests.faults.test_steps import shown, stepping

pytestmark = pytest.mark.timeout(1800)
BLOCK: dict[str, Any] = {"step": "validate-output", "settings": {"mode": "block"}}


async def judged(system: System, jobs: list[str]) -> None:
    """Every job ended with an answer that both steps let pass."""
    for job_id in jobs:
        job = await shown(system, job_id)
        assert job["state"] == "completed", job
        assert [each["status"] for each in job["pipeline"]] == ["completed"] * 2, job
        assert [each["detail"] for each in job["pipeline"]] == [{"choices": 1}] * 2, job
        assert job["attempts"][-1]["outcome"] == "completed"
        assert job["attempts"][-1]["ended_ms"] <= job["pipeline"][0]["started_ms"]
        assert job["result"]["choices"][0]["message"]["content"]


async def test_the_steps_process_dies_while_answers_are_judged(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, BLOCK, "ground") as (system, steps):
        await warm(system)
        redis, link = system.steps_redis, system.steps_delivery
        points: list[tuple[Proxy, bytes, Way, bool]] = [
            (link, b"POST ", Way.UP, False),
            (redis, called("begin_step"), Way.UP, True),
            (redis, called("advance"), Way.UP, False),
            (redis, called("advance"), Way.UP, True),
            (link, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        jobs = await hurt_with(system, points, steps, trials)
        await system.ended(jobs, within_s=60 + 5 * trials)

        await judged(system, jobs)
        await judge(system, trials, of="kills")


async def test_the_predictor_dies_while_its_answer_goes_to_the_steps(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    async with stepping(zygote, tmp_path, BLOCK, "ground", max_attempts=50) as (system, _):
        await warm(system)
        redis = system.predictor_redis
        points: list[tuple[Proxy, bytes, Way, bool]] = [
            (redis, called("append"), Way.UP, True),
            (redis, called("finish"), Way.UP, False),
            (redis, called("finish"), Way.UP, True),
            (system.delivery, b"HTTP/1.1 200", Way.DOWN, False),
        ]
        jobs = await hurt_with(system, points, system.predictor, trials)
        await system.ended(jobs, within_s=60 + 5 * trials)

        await judged(system, jobs)
        await judge(system, trials, Rules(max_attempts=50), of="kills")
