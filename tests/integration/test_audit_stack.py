"""Audits in a whole stack: a seeded model answers from a vector store, and a scripted provider is its critic.

The seeded engine writes words that no passage has, so its answers are unsupported whatever they are.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from openai import AsyncOpenAI
from redis.asyncio import Redis

from api.audit.critic import critic_version
from api.audit.golden import load_golden
from api.audit.make import PACKAGED
from eventing.redis import keys
from tests.integration.scripted_provider import ScriptedProvider, says, scripted_provider
from tests.integration.stack import LOOPBACK_PROVIDER, TORPOR, LocalStack, planned_stack

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]
PIPELINES = """
chat:
  steps: [{step: retrieve, settings: {vector_store_names: [library]}}]
  audit: {critic: judge, share: 1.0}
bare:
  audit: {critic: judge, share: 1.0, retrieve: {vector_store_names: [library]}}
"""
QUESTION: Any = [{"role": "user", "content": "How much paid leave is there?"}]
TEXT = b"Every employee has thirty days of paid leave a year."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def critic() -> AsyncIterator[ScriptedProvider]:
    """Says of every answer that it is not supported, and looks at what it is shown."""
    async with scripted_provider() as running:

        async def answer(request: web.Request) -> web.StreamResponse:
            is_shown = "thirty days" in str(running.bodies[-1]["messages"])
            said = "UNSUPPORTED" if is_shown else "I see no passage"
            return await says("VERDICT: ", said)(request)

        running.answers = [answer]
        yield running


@pytest.fixture(scope="module")
def stack(
    critic: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    environment = {
        **LOOPBACK_PROVIDER,
        "TORPOR_AUDIT_LEAST_WAITING": "1",
        "TORPOR_AUDIT_GPU_SHARE": "1",
    }
    models = ("chat=seeded", "bare=seeded", f"judge={critic.url}#large-4")
    flags = [flag for model in models for flag in ("--model", model)]
    folder = tmp_path_factory.mktemp("audit")
    with planned_stack(folder, PIPELINES, *flags, env=environment) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[AsyncOpenAI]:
    """With a vector store that has the text, and a critic whose golden run is known."""
    url = stack.addresses["api"] + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=120) as made:
        store = await made.vector_stores.create(name="library")
        await made.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("book.md", TEXT), poll_interval_ms=100
        )
        # Once it has been ready, the critic's weights are known, and it stays the version that it is.
        await made.chat.completions.create(model="judge", messages=QUESTION, max_tokens=8)
        await know_critic(stack)
        yield made


async def know_critic(stack: LocalStack) -> None:
    """Verdicts of a flawless critic on the golden set: 240 calls are not what is tested here."""
    golden = load_golden(PACKAGED)
    async with Redis.from_url(stack.addresses["redis"]) as redis:
        async with asyncio.timeout(60):
            while not (revision := await redis.hget(keys.REVISIONS, "judge")):
                await asyncio.sleep(0.05)
        key = keys.audit_golden(critic_version("judge", revision.decode(), golden.digest, 512))
        known: dict[str, str] = {"run": "known"}
        for number, row in enumerate(golden.rows):
            known[str(number)] = "supported" if row.is_supported else "unsupported"
        await redis.hset(key, mapping=known)


async def audited(stack: LocalStack, count: int) -> list[dict[str, Any]]:
    """So many audits, once all have ended."""
    async with asyncio.timeout(90), httpx.AsyncClient() as http:
        while True:
            found = (await http.get(stack.addresses["api"] + "/v1/audits")).json()["data"]
            if len(found) == count and all(each["status"] != "queued" for each in found):
                return list(found)
            await asyncio.sleep(0.2)


async def test_answers_are_judged_with_the_passages_they_had_or_with_those_of_a_search(
    stack: LocalStack, client: AsyncOpenAI, critic: ScriptedProvider
) -> None:
    for model in ("chat", "bare"):
        await client.chat.completions.create(
            model=model,
            messages=QUESTION,
            max_tokens=8,
        )

    found = await audited(stack, 2)

    assert {(each["model"], each["verdict"], each["critic"]) for each in found} == {
        ("chat", "unsupported", "judge"),
        ("bare", "unsupported", "judge"),
    }
    texts = [str(body["messages"][-1]["content"]) for body in critic.bodies[1:]]
    assert len(texts) == 2
    assert all("How much paid leave" in each for each in texts)
    ran = await asyncio.create_subprocess_exec(
        TORPOR, "usage", "--api", stack.addresses["api"], stdout=asyncio.subprocess.PIPE
    )
    said, _ = await ran.communicate()
    assert re.search(r"chat\s+judge\s+1\s+[\d.]+\s+[\d.]+\s+100\.0\s+1\.00", said.decode())
