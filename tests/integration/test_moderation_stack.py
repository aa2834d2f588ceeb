"""Rules in a whole stack: what they forbid is shown by no view, whoever dies; the rest is shown as it comes."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.stack import LocalStack, planned_stack

FORBIDDEN = "hummingbird"
PIPELINES = f"""
moderated:
  steps:
    - step: route
      settings: {{tiers: [small], holdout: 0}}
    - step: validate-output
      settings: {{mode: block, hold: window, rules: [{{words: [{FORBIDDEN}], category: birds}}]}}
guarded:
  steps:
    - step: moderate-input
      settings: {{rules: [{{personal_data: [card]}}]}}
    - step: route
      settings: {{tiers: [small], holdout: 0}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    words = ("--model", "small=seeded")
    folder = tmp_path_factory.mktemp("moderation")
    with planned_stack(folder, PIPELINES, *words) as made:
        yield made


def body(seed: int, tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    seeded = {"output_tokens": tokens, "tokens_per_s": 60}
    return {"model": "moderated", "messages": messages, "seed": seed, "seeded": seeded, **more}


def plain(stack: LocalStack, seed: int, tokens: int) -> str:
    """What the model says where nothing judges it."""
    asked = {**body(seed, tokens), "model": "small"}
    asked["seeded"] = {"output_tokens": tokens, "tokens_per_s": 0}
    answer = httpx.post(f"{stack.addresses['api']}/v1/chat/completions", json=asked, timeout=120)
    return str(answer.json()["choices"][0]["message"]["content"])


def seed_of(stack: LocalStack, *, is_forbidden: bool, tokens: int = 80) -> tuple[int, str]:
    """A seed whose answer has the forbidden word late, or not at all."""
    for seed in range(200):
        text = plain(stack, seed, tokens)
        at = text.find(FORBIDDEN)
        if (at > 200) if is_forbidden else at < 0:
            return seed, text
    raise AssertionError("no such answer")


def submit(stack: LocalStack, line: dict[str, Any]) -> str:
    body = {"url": "/v1/chat/completions", "body": line}
    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def tokens_of(text: str) -> str:
    """The text in the token events of an event stream."""
    lines = [each for each in text.splitlines() if each.startswith("data: {")]
    deltas = [json.loads(each[6:]).get("delta") or [] for each in lines]
    return "".join(c.get("delta", {}).get("content") or "" for d in deltas for c in d)


async def all_views(stack: LocalStack, job_id: str, *, kills: bool = False) -> dict[str, str]:
    """Everything that readers are sent of a job, from its beginning to its end."""
    url = f"{stack.addresses['api']}/v1/jobs/{job_id}"
    accept = {"accept": "text/event-stream"}
    async with httpx.AsyncClient(timeout=120) as http:
        live = asyncio.ensure_future(http.get(f"{url}/events", headers=accept))
        polls = []
        while not live.done():
            polls.append((await http.get(url)).text)
            if kills and json.loads(polls[-1])["token_count"] > 30:
                os.kill(stack.status()["replicas"]["list"][0]["pid"], signal.SIGKILL)
                kills = False
            await asyncio.sleep(0.1)
        again = await http.get(f"{url}/events", headers=accept)
        result = await http.get(f"{url}/result")
        job = await http.get(url)
    return {
        "live": live.result().text,
        "again": again.text,
        "polls": "".join(polls),
        "result": result.text,
        "job": job.text,
        "logs": stack.said(),
    }


@pytest.mark.parametrize("kills", [False, True], ids=["undisturbed", "predictor killed"])
async def test_a_forbidden_word_is_in_no_view_and_what_came_before_it_is_shown(
    stack: LocalStack, kills: bool
) -> None:
    seed, text = seed_of(stack, is_forbidden=True)

    views = await all_views(stack, submit(stack, body(seed, 80)), kills=kills)
    job = json.loads(views["job"])

    assert (job["state"], job["attempt"]) == ("incomplete", 2 if kills else 1)
    assert job["incomplete_reason"] == "content_filter"
    assert [name for name, view in views.items() if FORBIDDEN in view] == []
    seen = tokens_of(views["live"])
    assert seen
    assert text[: text.find(FORBIDDEN)].startswith(seen)
    assert tokens_of(views["again"]) == ""


async def test_a_harmless_answer_comes_while_it_is_made(stack: LocalStack) -> None:
    seed, text = seed_of(stack, is_forbidden=False)

    views = await all_views(stack, submit(stack, body(seed, 80)))

    assert json.loads(views["job"])["state"] == "completed"
    assert tokens_of(views["live"]) == tokens_of(views["again"]) == text
    assert views["live"].count("event: tokens") > 5


async def test_a_request_that_rules_forbid_wakes_no_predictor(stack: LocalStack) -> None:
    asked = {**body(1, 5), "model": "guarded"}
    asked["messages"] = [{"role": "user", "content": "my card: 4111 1111 1111 1111"}]

    async with httpx.AsyncClient(base_url=stack.addresses["api"], timeout=120) as http:
        answer = await http.post("/v1/chat/completions", json=asked)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"
    assert "4111" not in answer.text
