"""A conversation under a plan with memory: api, memory step and running summaries over one real store.

The engine is a script: it answers what the test says, also as the summariser, which loses everything.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from api.job.summaries import Summaries
from api.settings import ApiSettings
from eventing.broker.advance import Advance
from eventing.broker.intake import Intake
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event
from eventing.job.job import Job, JobId
from eventing.store.conversation.store import Conversations
from eventing.store.conversation.summary import SUMMARY
from eventing.store.steps.redis_steps import RedisStepStore
from steps.embedding.packaged import PackagedEmbedder
from steps.memory.memory import Memory
from steps.memory.recall import Recall
from steps.runner.runner import Runner, RunnerDeps
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakePredictor, chat_result

PIPELINES = """
m:
  steps:
    - step: memory
      skippable: true
      settings: {window_tokens: 200, summarise_every_messages: 10, recall_k: 0}
"""
FACTS = {
    "the budget": "48,250 euros",
    "the launch day": "2027-03-14",
    "the order": "SKU-88-B/7",
    "the folder": "/srv/data/cluster_7/config.yaml",
    "the contact": "ann.lee@example.com",
    "the project": "Zephyrine",
    "the port": "8443",
    "the code word": "'blue heron'",
}
LOSES = "They talked of this and that, in a friendly way, and nothing was decided."


@dataclass
class ScriptedEngine:
    """Runs the steps of jobs, and answers jobs as the test says."""

    rig: Rig
    runner: Runner
    store: RedisStepStore

    async def prepared(self, job_id: str) -> Job:
        """The job once its steps are done."""
        await self.rig.broker.until_asked_for(job_id)
        while (job := await self._job(job_id)).step:
            await self.runner.run(self._event(job_id))
        return job

    async def answer(self, job_id: str, text: str) -> Job:
        """The job, with the prompt that the engine was given."""
        job = await self.prepared(job_id)
        predictor = await FakePredictor(self.rig.store, job_id).start()
        await predictor.finish(chat_result(text))
        return job

    async def summarise(self, text: str) -> list[str]:
        """Answer what is asked of the summariser now; the jobs."""
        await self.rig.until_told()
        done = []
        for listed in await summaries(self.rig):
            if not listed.state.is_terminal:
                await self.answer(listed.id, text)
                done.append(str(listed.id))
        await self.rig.until_told()
        return done

    async def _job(self, job_id: str) -> Job:
        job = await self.store.get(JobId(job_id))
        assert job is not None
        return job

    def _event(self, job_id: str) -> Event:
        return [event for event in self.rig.broker.events if event.subject == job_id][-1]


@pytest.fixture
def api_settings(api_settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    path = tmp_path / "pipelines.yaml"
    path.write_text(PIPELINES)
    models = (api_settings.models[0].model_copy(update={"context_tokens": 8000}),)
    return api_settings.model_copy(update={"pipelines_file": path, "models": models})


def engine_of(rig: Rig, embedder: PackagedEmbedder) -> ScriptedEngine:
    redis, clock = rig.store.redis, SystemClock()
    store, conversations = RedisStepStore(redis), Conversations(redis)
    runner = Runner(
        RunnerDeps(
            store=store,
            intake=Intake(store, rig.parts.route, clock),
            advance=Advance(store, rig.parts.route),
            publish_again=rig.broker.publish,
            handlers={"memory": Memory(conversations, Recall(conversations, embedder))},
            clock=clock,
        )
    )
    return ScriptedEngine(rig, runner, store)


@pytest.fixture
async def embedder() -> AsyncIterator[PackagedEmbedder]:
    made = PackagedEmbedder()
    yield made
    await made.aclose()


@pytest.fixture
def scripted(rig: Rig, embedder: PackagedEmbedder) -> ScriptedEngine:
    return engine_of(rig, embedder)


def client_of(rig: Rig) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(rig) as made:
        yield made


async def asked(client: AsyncOpenAI, conversation: str, text: str, **fields: Any) -> str:
    """The job of a response that was asked for."""
    made = await client.responses.create(
        model="m", input=text, conversation=conversation, background=True, **fields
    )
    return made.id.replace("resp_", "job_")


async def filled(client: AsyncOpenAI, conversation: str, turns: int) -> None:
    """Small talk, said before."""
    pair: list[Any] = [
        {"role": "user", "content": "Tell me something nice about clouds, please."},
        {"role": "assistant", "content": "Clouds are light and they drift, and people like them."},
    ]
    items = pair * turns
    for at in range(0, len(items), 20):
        await client.conversations.items.create(conversation, items=items[at : at + 20])


def text_of(job: Job) -> str:
    return "\n".join(str(m["content"]) for m in job.to_run.body["messages"])


async def test_eight_facts_under_sixty_turns_are_in_the_prompt_though_the_summariser_loses_all(
    client: AsyncOpenAI, scripted: ScriptedEngine
) -> None:
    made = await client.conversations.create()
    for name, value in FACTS.items():
        await scripted.answer(await asked(client, made.id, f"{name} is {value}."), "Noted.")
        await scripted.summarise(LOSES)
    for _ in range(3):
        await filled(client, made.id, 19)
        await scripted.answer(await asked(client, made.id, "And now?"), "Now it is late.")
        while await scripted.summarise(LOSES):
            await scripted.answer(await asked(client, made.id, "And now?"), "Now it is late.")

    job = await scripted.answer(await asked(client, made.id, "What do you know?"), "A lot.")

    prompt = text_of(job)
    assert [value for value in FACTS.values() if value not in prompt] == []
    assert prompt.count(LOSES) == 1
    assert prompt.endswith("What do you know?")
    assert len(prompt) < 5000
    items = [i async for i in client.conversations.items.list(made.id, order="asc", limit=100)]
    names = [item.id for item in items]
    assert len(names) == len(set(names))
    assert len(names) >= 16 + 3 * 38 + 8


async def test_the_job_tells_what_of_the_conversation_it_was_given(
    client: AsyncOpenAI, scripted: ScriptedEngine, rig: Rig
) -> None:
    made = await client.conversations.create()
    await filled(client, made.id, 9)
    await scripted.answer(await asked(client, made.id, "hello"), "hi")
    (summary,) = await scripted.summarise(LOSES)

    job_id = await asked(client, made.id, "again")
    await scripted.answer(job_id, "hi again")

    (step,) = (await rig.client.get(f"/v1/jobs/{job_id}")).json()["pipeline"]
    assert step["status"] == "completed"
    assert step["detail"]["summary_id"] == summary.replace("job_", "summary_")
    assert 6 <= step["detail"]["window_items"] < 20
    assert step["detail"]["recalled"] == []


async def test_no_summary_is_on_the_way_of_an_answer_and_it_is_of_the_lowest_lane(
    client: AsyncOpenAI, scripted: ScriptedEngine, rig: Rig
) -> None:
    made = await client.conversations.create()
    await filled(client, made.id, 9)

    for text in ("one", "two", "three"):
        await scripted.answer(await asked(client, made.id, text), "yes")
        await rig.until_told()

    (summary,) = await summaries(rig)
    assert (summary.state, summary.lane) == ("queued", "batch")
    assert summary.plan is not None
    assert summary.plan.steps == ()


async def test_a_summary_that_lost_a_number_or_is_empty_does_not_replace_the_one_before(
    client: AsyncOpenAI, scripted: ScriptedEngine, rig: Rig
) -> None:
    made = await client.conversations.create()
    await filled(client, made.id, 9)
    await scripted.answer(await asked(client, made.id, "one"), "yes")
    kept = "The user had counted 73 clouds, and the assistant was glad."
    await scripted.summarise(kept)

    for text in ("They talked of clouds, and of nothing else.", "  ", kept + " Then 74."):
        await filled(client, made.id, 9)
        await scripted.answer(await asked(client, made.id, "one"), "yes")
        assert await scripted.summarise(text)
        found = await rig.parts.submission.conversations.get("default", made.id)
        assert found.summary is not None
        assert found.summary.text == (text if "74" in text else kept)


async def test_a_process_killed_during_the_summary_and_ends_told_twice_make_one_summary(
    client: AsyncOpenAI, scripted: ScriptedEngine, rig: Rig
) -> None:
    made = await client.conversations.create()
    await filled(client, made.id, 9)
    response = await asked(client, made.id, "one")
    await scripted.answer(response, "yes")
    await rig.until_told()
    (summary,) = await summaries(rig)
    first = await FakePredictor(rig.store, summary.id).start()
    await rig.store.redis.hset(f"torpor:{{{summary.id}}}", "lease_until_ms", 1)  # it was killed
    second = await FakePredictor(rig.store, summary.id).start()
    await first.finish(chat_result("This one comes too late to be a summary."))
    await second.finish(chat_result(LOSES))
    await rig.until_told()

    submission = rig.parts.submission
    again = Summaries(submission.conversations, submission.intake, rig.store)
    for job_id in (response, summary.id, response, summary.id):
        job = await rig.store.get(JobId(job_id))
        assert job is not None
        await again.ended(job)

    found = await submission.conversations.get("default", made.id)
    assert found.summary is not None
    assert found.summary.text == LOSES
    assert [job.id for job in await summaries(rig)] == [summary.id]


async def summaries(rig: Rig) -> list[Job]:
    """The jobs of summaries."""
    jobs = (await rig.store.list_jobs("default", limit=100)).jobs
    return [job for job in jobs if SUMMARY in job.metadata]


async def test_a_job_that_skips_memory_is_given_the_whole_conversation(
    client: AsyncOpenAI, scripted: ScriptedEngine
) -> None:
    made = await client.conversations.create(items=[{"role": "user", "content": "my name is Ann"}])
    head = {"torpor-skip-steps": "memory"}

    job = await scripted.answer(await asked(client, made.id, "and now?", extra_headers=head), "Ann")

    assert [m["content"] for m in job.to_run.body["messages"]] == ["my name is Ann", "and now?"]


async def test_an_output_of_a_function_finds_its_call_in_the_conversation(
    client: AsyncOpenAI, scripted: ScriptedEngine
) -> None:
    call: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    made = await client.conversations.create(items=[{"role": "user", "content": "do f"}, call])
    output: Any = [{"type": "function_call_output", "call_id": "c1", "output": "42"}]

    response = await client.responses.create(
        model="m", input=output, conversation=made.id, background=True
    )
    job = await scripted.answer(response.id.replace("resp_", "job_"), "It is 42.")

    roles = [m["role"] for m in job.to_run.body["messages"]]
    assert roles == ["user", "assistant", "tool"]


async def test_a_plan_with_memory_needs_input(client: AsyncOpenAI, rig: Rig) -> None:
    made = await client.conversations.create(items=[{"role": "user", "content": "hi"}])

    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model="m", conversation=made.id)

    assert refused.value.param == "input"
