"""The exact cache in a whole stack: many calls at once, a predictor killed in the middle, nothing woken for a hit."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.integration.stack import MODEL, LocalStack

CALLS: Final = int(os.environ.get("TORPOR_CACHE_CALLS", "120"))
"""Identical calls at once: 1,000 at a desk."""
FOLLOWERS: Final = 8
BODY: Final = {"model": MODEL, "prompt": "why do birds sleep?", "temperature": 0}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("cache")
    pipelines = folder / "pipelines.yaml"
    pipelines.write_text(f"{MODEL}: {{cache: {{exact: {{ttl_s: 3600}}}}}}")
    made = LocalStack(
        folder / "data", "--pipelines-file", str(pipelines), "--window", "6s", "--lease", "2s"
    ).start()
    yield made
    made.stop()


def client_of(stack: LocalStack) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=2 * CALLS)
    return httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120, limits=limits)


def replicas(stack: LocalStack) -> list[Any]:
    found: list[Any] = stack.status()["replicas"]["list"]
    return found


def text_of(stream: str) -> str:
    """What the chunks of a completion's stream say."""
    chunks = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str]:
    """What a streamed call says, and how the cache served it."""
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        text = "".join([part async for part in answer.aiter_text()])
    assert "data: [DONE]" in text, text[-500:]
    return text_of(text), answer.headers["cache-status"].split("; ")[-1]


async def test_identical_calls_at_once_are_one_generation_and_a_later_one_wakes_nothing(
    stack: LocalStack,
) -> None:
    body = BODY | {"max_tokens": 20}
    async with client_of(stack) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=body) for _ in range(CALLS))
        )
        texts = [answer.json()["choices"][0]["text"] for answer in answers]
        assert len(set(texts)) == 1
        generated = [a for a in answers if a.json()["usage"]["completion_tokens"]]
        assert len(generated) == 1
        await asyncio.to_thread(stack.until, lambda: not replicas(stack))
        again = await client.post("/v1/completions", json=body)
        assert again.json()["choices"][0]["text"] == texts[0]
        assert "hit" in again.headers["cache-status"]
        assert not replicas(stack)
        usage = (await client.get("/v1/usage")).json()["models"][MODEL]
    assert usage["cache_hits"] >= CALLS - 1


async def test_followers_miss_nothing_when_the_leaders_predictor_is_killed(
    stack: LocalStack,
) -> None:
    body = BODY | {"max_tokens": 150}
    async with client_of(stack) as client:

        async def newest() -> list[dict[str, Any]]:
            page = await client.get("/v1/jobs", params={"limit": FOLLOWERS})
            found: list[dict[str, Any]] = page.json()["data"]
            return found

        before = {job["id"] for job in await newest()}
        calls = [asyncio.create_task(streamed(client, body)) for _ in range(FOLLOWERS)]
        while True:
            jobs = await newest()
            if (
                any(job["token_count"] > 40 for job in jobs)
                and not {job["id"] for job in jobs} & before
            ):
                break
            await asyncio.sleep(0.02)
        os.kill(replicas(stack)[0]["pid"], signal.SIGKILL)
        told = await asyncio.gather(*calls)
        jobs = await newest()
        alone = await streamed(client, body | {"stop": ["not in it"]})
    assert {text for text, _ in told} == {alone[0]}
    assert [how for _, how in told].count("detail=coalesced") == FOLLOWERS - 1
    attempts = sorted(job["attempt"] for job in jobs)
    assert attempts == [0] * (FOLLOWERS - 1) + [2]
