"""The verdict of the step `ground` stands in the answer that a caller is given, however it is read."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from api.settings import ApiSettings
from eventing.job.job import JobId
from eventing.job.plan import StepStatus
from eventing.job.step import StepEnd, StepRun, Verdict
from eventing.store.redis_store import RedisStore
from eventing.store.steps.redis_steps import RedisStepStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, FakePredictor, chat_result

VERDICT = {
    "score": 0.5,
    "unsupported": [{"start": 9, "end": 13}],
    "citations_ok": True,
    "checker": {"model": "judge", "verdict": "unsupported", "unsupported": []},
}
ANSWER = "Leave is long."


@pytest.fixture
async def rig(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, tmp_path: Path
) -> AsyncIterator[Rig]:
    file = tmp_path / "pipelines.yaml"
    file.write_text("m: {steps: [ground]}")
    settings = api_settings.model_copy(update={"pipelines_file": file})
    async with rig_over(settings, store, broker) as made:
        yield made


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def play(rig: Rig, broker: FakeBroker, end: StepEnd) -> None:
    """Answer the next job, and end its step like this."""
    async with asyncio.timeout(60):
        while not broker.events:
            await asyncio.sleep(0.001)
    job_id = JobId(broker.events[-1].subject)
    predictor = await FakePredictor(rig.store, job_id).start()
    await predictor.chat(ANSWER, "stop")
    await predictor.finish(chat_result(ANSWER))
    steps = RedisStepStore(rig.store.redis)
    begun = await steps.begin_step(job_id, "ground")
    assert begun.job is not None
    await steps.advance(StepRun.of(begun.job, "ground"), end)


def judged(**detail: Any) -> StepEnd:
    status = StepStatus.COMPLETED if "grounding" in detail else StepStatus.SKIPPED
    return StepEnd(status=status, detail=detail, verdict=Verdict.ACCEPT)


ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "how long?"}]}


async def test_a_chat_completion_has_the_verdict_with_its_places(
    rig: Rig, client: AsyncOpenAI, broker: FakeBroker
) -> None:
    asking = asyncio.create_task(client.chat.completions.create(**ASKED))
    await play(rig, broker, judged(grounding=VERDICT))

    answer = await asking

    grounding = answer.to_dict()["grounding"]
    assert grounding == VERDICT
    (span,) = VERDICT["unsupported"]  # type: ignore[misc]
    content = answer.choices[0].message.content or ""
    assert content[span["start"] : span["end"]] == "long"


async def test_a_stream_has_the_verdict_in_a_chunk_at_its_end(
    rig: Rig, client: AsyncOpenAI, broker: FakeBroker
) -> None:
    async def read() -> list[dict[str, Any]]:
        stream = await client.chat.completions.create(stream=True, **ASKED)
        return [chunk.to_dict() async for chunk in stream]

    reading = asyncio.create_task(read())
    await play(rig, broker, judged(grounding=VERDICT))

    chunks = await reading
    assert [each["grounding"] for each in chunks if "grounding" in each] == [VERDICT]
    assert chunks[-1]["grounding"] == VERDICT
    assert chunks[-1]["choices"] == []


async def test_a_response_has_the_verdict(
    rig: Rig, client: AsyncOpenAI, broker: FakeBroker
) -> None:
    asking = asyncio.create_task(client.responses.create(model="m", input="how long?"))
    await play(rig, broker, judged(grounding=VERDICT))

    response = await asking

    assert response.to_dict()["grounding"] == VERDICT
    again = await client.responses.retrieve(response.id)
    assert again.to_dict()["grounding"] == VERDICT


async def test_an_answer_that_was_not_checked_says_so(
    rig: Rig, client: AsyncOpenAI, broker: FakeBroker
) -> None:
    asking = asyncio.create_task(client.chat.completions.create(**ASKED))
    await play(rig, broker, judged(reason="no passages"))

    answer = await asking

    assert answer.to_dict()["grounding"] == {"score": None, "reason": "no passages"}
