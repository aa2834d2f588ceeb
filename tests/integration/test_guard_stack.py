"""A guard model in a whole stack, from zero and asked through the queue: what it calls unsafe is in no view, and while
it is away nothing passes.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from openai import AsyncOpenAI

from tests.integration.scripted_provider import ScriptedProvider, refuses, says, scripted_provider
from tests.integration.stack import LOOPBACK_PROVIDER, LocalStack, planned_stack

pytestmark = pytest.mark.timeout(240)  # cold starts, and a breaker that is open for a minute
in_module_loop = pytest.mark.asyncio(loop_scope="module")

POISON = "poison"
GUARD = "guard: {model: guard, timeout_ms: 30000}"
PIPELINES = f"""
omni-moderation-latest:
  steps:
    - step: moderate
      settings: {{{GUARD}}}
asked:
  steps:
    - step: moderate-input
      settings: {{{GUARD}}}
    - step: route
      settings: {{tiers: [small], holdout: 0}}
answered:
  steps:
    - step: route
      settings: {{tiers: [small], holdout: 0}}
    - step: validate-output
      settings: {{mode: block, guard: {{model: guard, timeout_ms: 1000}}}}
"""


class Guard:
    """What the guard model's provider says: `words` are unsafe, and while it is away it refuses."""

    def __init__(self) -> None:
        self.words: set[str] = {POISON}
        self.is_away = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.is_away:
            return await refuses(503)(request)
        asked = (await request.json())["messages"][-1]["content"]
        verdict = "unsafe: violence" if any(word in asked for word in self.words) else "safe"
        return await says(verdict)(request)


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(guard: Guard) -> AsyncIterator[ScriptedProvider]:
    async with scripted_provider() as running:
        running.answers = [guard.answer]
        yield running


@pytest.fixture(scope="module")
def stack(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    flags = ("--model", "small=seeded", "--model", f"guard={provider.url}#guard-1")
    folder = tmp_path_factory.mktemp("guard")
    with planned_stack(folder, PIPELINES, *flags, env=LOOPBACK_PROVIDER) as made:
        yield made


def chat(model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "seed": 7, "max_tokens": 12, **more}


async def plain(stack: LocalStack) -> str:
    """What the model says where nothing judges it."""
    async with httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120) as http:
        answer = await http.post("/v1/chat/completions", json=chat("small"))
    return str(answer.json()["choices"][0]["message"]["content"])


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job at its end. A guard that was away comes back once its circuit breaker is closed, a minute later."""
    for _ in range(3):
        answer = await http.get(f"/v1/jobs/{job_id}", params={"wait": "50"})
        found: dict[str, Any] = answer.json()
        if found["state"] not in ("queued", "in_progress"):
            break
    return found


@in_module_loop
async def test_moderations_come_from_a_guard_model_at_zero(stack: LocalStack) -> None:
    url = stack.addresses["api"] + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=120, max_retries=0) as client:
        said = await client.moderations.create(input=["a poison", "water"])

    assert [each.flagged for each in said.results] == [True, False]
    assert said.results[0].categories.violence
    async with httpx.AsyncClient(base_url=stack.addresses["api"]) as http:
        listed = (await http.get("/v1/jobs")).json()["data"]
    assert sorted(each["model"] for each in listed) == ["guard", "guard", "omni-moderation-latest"]


@in_module_loop
async def test_a_request_that_the_guard_calls_unsafe_is_refused(stack: LocalStack) -> None:
    async with httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120) as http:
        refused = await http.post("/v1/chat/completions", json=chat("asked", "a poison"))
        passed = await http.post("/v1/chat/completions", json=chat("asked", "water"))

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_filter"
    assert passed.status_code == 200


@in_module_loop
async def test_an_answer_that_the_guard_calls_unsafe_is_in_no_view(
    stack: LocalStack, guard: Guard
) -> None:
    said = await plain(stack)
    guard.words.add(said)
    accept = {"accept": "text/event-stream"}
    async with httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120) as http:
        line = {"url": "/v1/chat/completions", "body": chat("answered")}
        job_id = (await http.post("/v1/jobs", json=line)).json()["id"]
        live = (await http.get(f"/v1/jobs/{job_id}/events", headers=accept)).text
        job = await ended(http, job_id)
        result = (await http.get(f"/v1/jobs/{job_id}/result")).text
    guard.words.remove(said)

    assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter")
    assert job["pipeline"][1]["detail"]["guard"] == {"flagged": True, "categories": ["violence"]}
    assert "event: tokens" not in live
    assert said not in live + result + json.dumps(job)


@in_module_loop
async def test_while_the_guard_is_away_an_answer_waits_until_its_deadline_or_the_guards_return(
    stack: LocalStack, guard: Guard
) -> None:
    said = await plain(stack)
    guard.is_away = True
    async with httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120) as http:
        ids = []
        for seconds in (6, 600):
            line = {"url": "/v1/chat/completions", "body": chat("answered")}
            answer = await http.post("/v1/jobs", json=line | {"expires_after": seconds})
            ids.append(answer.json()["id"])
        late = await ended(http, ids[0])
        other = (await http.get(f"/v1/jobs/{ids[1]}")).json()
        guard.is_away = False
        back = await ended(http, ids[1])

    assert (late["state"], late["incomplete_reason"]) == (
        "incomplete",
        "content_filter_unavailable",
    )
    assert said not in json.dumps(late)
    assert (other["state"], other["phase"]) == ("in_progress", "validating")
    assert said not in json.dumps(other)
    assert back["state"] == "completed"
    assert back["result"]["choices"][0]["message"]["content"] == said
