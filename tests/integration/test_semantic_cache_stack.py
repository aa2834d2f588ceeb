"""The semantic cache in a whole stack: `torpor up --pipelines`, the seeded engine, OpenAI's client."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.integration.stack import LocalStack, planned_stack

pytestmark = pytest.mark.timeout(150)  # cold starts of the steps and of a predictor

PIPELINES = """
shop:
  steps:
    - step: semantic-cache
      settings: {shadow: null, lookup_ms: 10000}
      on_failure: continue
"""
ONE = "How do I renew my library card?"
SAME = "hi, how can i renew my library card please"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("semantic")
    with planned_stack(folder, PIPELINES, "--model", "shop=seeded", "--window", "12s") as made:
        yield made


def ask(stack: LocalStack, text: str, *, stream: bool = False, **headers: str) -> httpx.Response:
    """A chat with the model, by plain HTTP."""
    body = {
        "model": "shop",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 12,
        "stream": stream,
    }
    url = stack.addresses["api"] + "/v1/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer


def until_hit(stack: LocalStack, text: str) -> httpx.Response:
    """Ask until the writer has kept an answer: it may lag."""
    found: list[httpx.Response] = []

    def is_hit() -> bool:
        found.append(ask(stack, text))
        return "detail=semantic" in found[-1].headers.get("cache-status", "")

    stack.until(is_hit, timeout_s=120)
    return found[-1]


def content(answer: httpx.Response) -> Any:
    return answer.json()["choices"][0]["message"]["content"]


def test_the_same_question_in_other_words_wakes_no_predictor_and_can_be_taken_back(
    stack: LocalStack,
) -> None:
    first = until_hit(stack, ONE)

    hit = ask(stack, SAME)

    assert "detail=semantic" in hit.headers["cache-status"]
    assert content(hit) == content(first)
    assert hit.json()["usage"]["total_tokens"] == 0
    assert hit.json()["id"] != first.json()["id"]
    assert "similarity=0." in hit.headers["cache-status"]
    stack.until(lambda: not stack.status()["replicas"]["list"])
    streamed = ask(stack, "How could I renew my library card?", stream=True)
    # The head of a stream goes out before the look-up: its job tells.
    job = stack.job(streamed.headers["torpor-job-id"])
    assert (job["cache"]["status"], job["cache"]["kind"]) == ("hit", "semantic")
    assert job["saved_usage"]["completion_tokens"] > 0
    assert streamed.text.count("data: ") > 3
    assert stack.status()["replicas"]["list"] == []

    with OpenAI(base_url=stack.addresses["api"] + "/v1", api_key="none", timeout=120) as client:
        said = client.chat.completions.create(
            model="shop",
            messages=[{"role": "user", "content": SAME}],
            temperature=0,
            max_tokens=12,
        )
    assert said.choices[0].message.content == content(first)

    key = hit.headers["cache-status"].split('key="')[1].split('"')[0]
    gone = httpx.delete(f"{stack.addresses['api']}/v1/cache/entries/{key}")
    assert gone.status_code == 200
    fresh = ask(stack, SAME)
    assert "detail=semantic" not in fresh.headers.get("cache-status", "")
