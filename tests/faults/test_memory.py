"""A conversation with memory under kill -9 inside its step and inside its running summary: each turn once, its prompt
made once, no summary twice and none that puts another back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from eventing.job.job import Job, JobId
from eventing.redis import keys
from eventing.store.conversation.store import Conversations
from eventing.store.conversation.summary import SUMMARY
from tests.faults.processes import TENANT, System
from tests.faults.programs import Zygote
from tests.faults.proxy import Way
from tests.faults.test_conversations import Step, Talk, expected, said, turn_with_kill
from tests.faults.test_kill import called, warm
from tests.faults.test_steps import shown, stepping

pytestmark = pytest.mark.timeout(1800)
MEMORY = {
    "step": "memory",
    "settings": {"window_tokens": 1, "recall_k": 2, "summarise_every_messages": 2},
}


@asynccontextmanager
async def talking(zygote: Zygote, folder: Path) -> AsyncIterator[tuple[System, Talk]]:
    """A conversation that is long enough for every point."""
    async with (
        stepping(zygote, folder, MEMORY, max_attempts=50) as (system, _),
        httpx.AsyncClient(base_url=system.client.bases[0], timeout=10) as http,
    ):
        await warm(system)
        made = await http.post("/v1/conversations", json={})
        talk = Talk(system, http, made.json()["id"])
        for number in range(5):
            await talk.say(f"before {number}: 10{number} boats")
            await system.ended(talk.jobs, within_s=60)
        yield system, talk


def points_of(system: System, talk: Talk) -> list[Step]:
    """Where the step and the summary can die: the steps process first, then the api, which has summaries made."""
    steps, redis = system.steps, system.steps_redis
    assert steps is not None
    points: list[Step] = [
        (steps, redis, called("begin_step"), Way.UP, True),
        (steps, redis, talk.conversation.encode(), Way.UP, True),
        (steps, system.steps_delivery, b"HTTP/1.1 200", Way.DOWN, False),
    ]
    for is_forwarded in (False, True):
        points += [
            (steps, redis, called("conversation_vectors"), Way.UP, is_forwarded),
            (system.api, system.api_redis, SUMMARY.encode(), Way.UP, is_forwarded),
            (steps, redis, called("advance"), Way.UP, is_forwarded),
            (system.api, system.api_redis, called("conversation_summarise"), Way.UP, is_forwarded),
        ]
    return points


async def summaries(system: System) -> list[Job]:
    """The jobs that made one."""
    page = await system.store.list_jobs(TENANT, limit=1000)
    return [job for job in page.jobs if SUMMARY in job.metadata]


async def until_summed(system: System) -> None:
    """Return once every end has been told, and every summary that follows has ended."""
    async with asyncio.timeout(90):
        while True:
            groups = await system.redis.xinfo_groups(keys.ENDED)
            ((newest, _),) = await system.redis.xrevrange(keys.ENDED, count=1)
            is_told = all(g["last-delivered-id"] == newest and not g["pending"] for g in groups)
            if is_told and all(job.state.is_terminal for job in await summaries(system)):
                return
            await asyncio.sleep(0.1)


async def test_memory_and_summary_survive_a_kill_at_every_point(
    zygote: Zygote, tmp_path: Path, trials: int
) -> None:
    async with talking(zygote, tmp_path) as (system, talk):
        points = points_of(system, talk)
        for number in range(max(trials // 2, len(points))):
            await turn_with_kill(system, talk, number, points[number % len(points)])
        await until_summed(system)

        assert said(await talk.items()) == await expected(system, talk)
        for job_id in talk.jobs:
            job = await shown(system, job_id)
            (step,) = job["pipeline"]
            assert (job["state"], step["status"]) == ("completed", "completed"), job
            assert job["created_ms"] <= step["started_ms"] <= step["ended_ms"] <= job["started_ms"]
        await _summed_once(system, talk)


async def _summed_once(system: System, talk: Talk) -> None:
    """No part of the conversation was summarised twice over the same summary, and the one that it has is of a job."""
    made = await summaries(system)
    asked = [job.metadata[SUMMARY] for job in made]
    assert len(asked) == len(set(asked)), asked
    assert {str(job.state) for job in made} == {"completed"}
    found = await Conversations(system.redis).get(TENANT, talk.conversation)
    assert found.summary is not None
    source = await system.store.get(JobId(found.summary.id.replace("summary_", "job_")))
    assert source is not None
    assert source.metadata[SUMMARY].endswith(f":{found.summary.seq}")
    assert source.result is not None
    assert source.result["choices"][0]["message"]["content"] == found.summary.text
    kept = await Conversations(system.redis).vectors(found)
    assert set(kept) <= {str(item["id"]) for item in await talk.items()}
