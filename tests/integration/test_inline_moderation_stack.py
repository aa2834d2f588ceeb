"""Moderation that a request asks for, in a whole stack, by OpenAI's unmodified client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import TypeAdapter

from tests.integration.stack import MODEL, LocalStack, openai_client, planned_stack

MODERATOR = "omni-moderation-latest"
PIPELINES = f"""
{MODERATOR}:
  steps:
    - step: moderate
      settings:
        inline: true
        rules:
          - {{words: [duel], category: violence}}
          - {{regex: "[a-z]", longest: 1, category: letters}}
closed:
  steps:
    - step: moderate
      settings: {{rules: [{{words: [duel]}}]}}
"""
SCORE: dict[str, Any] = {"model": MODERATOR}


def policy(**modes: str) -> dict[str, Any]:
    return {**SCORE, "policy": {side: {"mode": mode} for side, mode in modes.items()}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("inline")
    with planned_stack(folder, PIPELINES) as made:
        yield made


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


def chat(text: str, moderation: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 6, "seed": 1}
    return asked | {"moderation": moderation} | more


def test_scores_of_the_request_and_the_answer_stand_in_the_answer(client: OpenAI) -> None:
    said: ChatCompletion = client.chat.completions.create(**chat("A DUEL?", SCORE))

    TypeAdapter(ChatCompletion).validate_python(said.model_dump(by_alias=True))
    assert said.choices[0].message.content
    assert said.moderation is not None
    assert said.moderation.input.type == said.moderation.output.type == "moderation_results"
    assert said.moderation.input.results[0].categories["violence"]
    assert not said.moderation.output.results[0].categories["violence"]
    assert said.moderation.output.results[0].categories["letters"]
    assert said.moderation.output.model == MODERATOR


def test_a_stream_has_one_moderation_chunk_after_its_text(client: OpenAI) -> None:
    chunks: list[ChatCompletionChunk] = list(
        client.chat.completions.create(**chat("hello", SCORE, n=2, stream=True))
    )

    told = [place for place, chunk in enumerate(chunks) if chunk.moderation is not None]
    assert told == [len(chunks) - 1]
    moderation = chunks[-1].moderation
    assert moderation is not None
    assert moderation.output.type == "moderation_results"
    assert len(moderation.output.results) == 2  # one a choice
    assert any(choice.delta.content for chunk in chunks for choice in chunk.choices)


def test_a_response_has_one_result_on_each_side(client: OpenAI) -> None:
    said: Response = client.responses.create(
        model=MODEL, input="A DUEL?", max_output_tokens=6, moderation=policy(input="score")
    )

    assert said.moderation is not None
    assert said.moderation.input.type == said.moderation.output.type == "moderation_result"
    assert said.moderation.input.flagged
    assert client.responses.retrieve(said.id).moderation == said.moderation


def test_a_blocked_request_wakes_no_predictor(client: OpenAI, stack: LocalStack) -> None:
    with pytest.raises(BadRequestError, match="violence") as refused:
        client.chat.completions.create(**chat("a duel", policy(input="block")))

    assert refused.value.code == "content_filter"


def test_a_blocked_answer_is_shown_by_no_view(client: OpenAI, stack: LocalStack) -> None:
    shown = client.chat.completions.create(**chat("HELLO", SCORE)).choices[0].message.content
    assert shown
    line = {"url": "/v1/chat/completions", "body": chat("HELLO", policy(output="block"))}
    api = stack.addresses["api"]
    job_id = httpx.post(f"{api}/v1/jobs", json=line).json()["id"]
    accept = {"accept": "text/event-stream"}
    live = httpx.get(f"{api}/v1/jobs/{job_id}/events", headers=accept, timeout=120).text
    job = stack.job(job_id, wait_s=30)
    said = client.chat.completions.create(**chat("HELLO", policy(output="block")))

    assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter")
    assert said.choices[0].finish_reason == "content_filter"
    assert said.moderation is not None
    assert said.moderation.output.type == "moderation_results"
    assert said.moderation.output.results[0].flagged
    assert shown not in live + json.dumps(job) + said.model_dump_json()


def test_an_input_that_is_not_blocked_is_answered(client: OpenAI) -> None:
    said = client.chat.completions.create(**chat("HELLO", policy(input="block", output="score")))

    assert said.choices[0].finish_reason != "content_filter"


@pytest.mark.parametrize(
    ("moderation", "field"),
    [
        ({"model": "closed"}, "moderation.model"),
        ({"model": MODEL}, "moderation.model"),
        ({}, "moderation.model"),
        ("yes", "moderation"),
        (policy(output="hide"), "moderation.policy.output.mode"),
        ({**SCORE, "policy": {"answer": {"mode": "block"}}}, "moderation.policy.answer"),
        ({**SCORE, "mode": "block"}, "moderation.mode"),
    ],
    ids=["not inline", "no moderator", "no model", "no object", "mode", "side", "member"],
)
def test_what_is_not_understood_or_not_allowed_is_refused_by_its_field(
    client: OpenAI, moderation: Any, field: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**chat("HELLO", moderation))
    assert refused.value.param == field
    with pytest.raises(BadRequestError) as refused:
        client.responses.create(model=MODEL, input="HELLO", moderation=moderation)
    assert str(refused.value.param).removeprefix("body.") == field


def test_a_call_without_inline_moderation_refuses_the_field(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="not moderated inline"):
        client.completions.create(model=MODEL, prompt="a", extra_body={"moderation": SCORE})
