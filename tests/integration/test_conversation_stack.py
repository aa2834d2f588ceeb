"""A conversation in a whole stack, from zero: OpenAI's client, the memory step, a running summary by the engine."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.integration.stack import MODEL, LocalStack, openai_client, planned_stack

PIPELINES = f"""
{MODEL}:
  steps:
    - step: memory
      settings: {{window_tokens: 50, summarise_every_messages: 4, recall_k: 2}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("conversation")
    with planned_stack(folder, PIPELINES) as made:
        yield made


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


def test_a_conversation_is_recalled_and_summarised_after_the_answer(
    stack: LocalStack, client: OpenAI
) -> None:
    said: list[Any] = [
        {"role": "user", "content": "My sister plays the cello."},
        {"role": "assistant", "content": "How lovely."},
        *[{"role": "user", "content": "Nice weather."}, {"role": "assistant", "content": "Yes."}]
        * 4,
    ]
    made = client.conversations.create(items=said)

    def ask(text: str) -> dict[str, Any]:
        response = client.responses.create(
            model=MODEL, input=text, conversation=made.id, max_output_tokens=12
        )
        assert response.conversation is not None
        found = stack.job(response.id.replace("resp_", "job_"))
        (step,) = found["pipeline"]
        assert step["status"] == "completed"
        detail: dict[str, Any] = step["detail"]
        return detail

    def is_kept() -> bool:
        metrics = httpx.get(stack.addresses["api"] + "/metrics").text
        return 'torpor_api_summaries_total{outcome="kept"} 1.0' in metrics

    first = ask("Which instrument does my sister play?")
    stack.until(is_kept)
    second = ask("And which weather is it?")

    items = list(client.conversations.items.list(made.id, order="asc", limit=100))
    assert items[0].id in first["recalled"]
    assert first["summary_id"] is None
    assert first["window_items"] >= 6
    assert str(second["summary_id"]).startswith("summary_")
    assert len(items) == len({item.id for item in items}) == len(said) + 4


def test_every_endpoint_says_how_much_of_a_prompt_the_engine_had_in_its_cache(
    stack: LocalStack, client: OpenAI
) -> None:
    long = "count the leaves of the tree " * 20

    def chat(**more: Any) -> Any:
        message = {"role": "user", "content": long}
        made: Any = client.chat.completions.create
        return made(model=MODEL, messages=[message], max_tokens=3, **more)

    first = chat()
    assert first.usage.prompt_tokens_details is None
    again = chat()
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached <= again.usage.prompt_tokens
    *_, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.usage.prompt_tokens_details.cached_tokens == cached
    response = client.responses.create(model=MODEL, input=long, max_output_tokens=3)
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == cached
    job = stack.job(response.id.replace("resp_", "job_"))
    assert job["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}
    client.completions.create(model=MODEL, prompt=long, max_tokens=3)
    text = client.completions.create(model=MODEL, prompt=long, max_tokens=3)
    assert text.usage is not None
    assert text.usage.prompt_tokens_details is not None
    assert (text.usage.prompt_tokens_details.cached_tokens or 0) > 0
