"""Batch lines whose long answers lie in the object store, and cannot be read."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from eventing.job.job import JobId
from eventing.redis import keys
from tests.integration.api.batch_rig import (
    LateClock,
    ended,
    entries,
    lines,
    look,
    running,
    start,
    time_passes,
)
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result

LONG = "many words, " * 10_000


async def answered(rig: Rig) -> str:
    """A batch of three lines that nobody has collected; the answer of the second has left Redis."""
    batch_id = await start(rig, lines(3))
    async with running(rig), asyncio.timeout(60):
        while len((record := await rig.parts.batches.batches.get(batch_id)).running) < 3:
            await asyncio.sleep(0.02)
    jobs = [JobId(one.job_id) for one in record.running]
    for job_id, text in zip(jobs, ("one", LONG, "three"), strict=True):
        await (await rig.predictor(job_id)).finish(chat_result(text))
    async with asyncio.timeout(60):
        while not await rig.store.redis.hexists(keys.job(jobs[1]), "object"):
            await asyncio.sleep(0.02)
    await time_passes(rig)
    return batch_id


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "files" / "results"


def error_of(entry: dict[str, Any]) -> tuple[str, int, str]:
    """A line's name, status and error code."""
    response = entry["response"]
    return entry["custom_id"], response["status_code"], response["body"]["error"]["code"]


async def test_an_answer_that_is_gone_is_an_error_of_its_line_only(rig: Rig, results: Path) -> None:
    batch_id = await answered(rig)
    shutil.rmtree(results)

    async with running(rig):
        batch = await ended(rig, batch_id)

    output = await entries(rig, batch["output_file_id"])
    (error,) = await entries(rig, batch["error_file_id"])
    assert [entry["custom_id"] for entry in output] == ["c1", "c3"]
    assert error_of(error) == ("c2", 410, "result_gone")
    assert batch["status"] == "completed"


async def test_an_answer_that_cannot_be_read_is_waited_for_and_holds_up_no_other(
    rig: Rig, results: Path
) -> None:
    batch_id = await answered(rig)
    aside = results.rename(results.with_name("aside"))
    results.write_text("no folder any more")

    async with running(rig):
        async with asyncio.timeout(60):
            while (await look(rig, batch_id))["request_counts"]["completed"] < 2:
                await asyncio.sleep(0.02)
        assert (await look(rig, batch_id))["status"] == "in_progress"
        results.unlink()
        aside.rename(results)
        batch = await ended(rig, batch_id)

    output = await entries(rig, batch["output_file_id"])
    assert sorted(entry["custom_id"] for entry in output) == ["c1", "c2", "c3"]
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


async def test_a_batch_that_expires_says_which_answers_cannot_be_read(
    rig: Rig, results: Path
) -> None:
    batch_id = await answered(rig)
    results.rename(results.with_name("aside"))
    results.write_text("no folder any more")

    async with running(rig, LateClock()):
        batch = await ended(rig, batch_id)

    (error,) = await entries(rig, batch["error_file_id"])
    assert error_of(error) == ("c2", 503, "objects_unavailable")
    assert batch["status"] == "expired"
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
