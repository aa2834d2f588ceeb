"""Moderations from zero in a whole stack: a model that the steps serve alone, OpenAI's unmodified client."""

import json
from collections.abc import Iterator

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.integration.stack import MODEL, LocalStack, openai_client, planned_stack

MODERATOR = "omni-moderation-latest"
PIPELINES = f"""
{MODERATOR}:
  steps:
    - step: moderate
      settings:
        rules:
          - {{words: [duel], category: violence}}
          - {{personal_data: [card]}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("moderations")
    with planned_stack(folder, PIPELINES) as made:
        yield made


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


def test_moderations_come_from_zero_and_no_predictor_starts(
    stack: LocalStack, client: OpenAI
) -> None:
    said = client.moderations.create(input=["a duel at dawn", "a walk at dawn"])

    assert said.id.startswith("modr-")
    assert said.model == MODERATOR  # the client named none
    assert [each.flagged for each in said.results] == [True, False]
    assert said.results[0].categories.violence
    assert said.results[0].category_scores.violence == 1.0
    assert said.results[0].category_applied_input_types.violence == ["text"]
    assert stack.status()["replicas"]["list"] == []


def test_the_parts_of_an_input_have_one_result_and_an_image_is_refused_by_name(
    client: OpenAI,
) -> None:
    said = client.moderations.create(model=MODERATOR, input=[{"type": "text", "text": "a duel"}])
    assert len(said.results) == 1

    with pytest.raises(BadRequestError, match=r"input\[0\].type: .* takes no images"):
        client.moderations.create(
            model=MODERATOR,
            input=[{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}],
        )


def test_the_model_is_listed_for_moderations_only(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list().data}

    assert set(listed) == {MODEL, MODERATOR}
    assert listed[MODERATOR].model_dump()["capabilities"] == ["moderate"]
    with pytest.raises(BadRequestError, match="answers no prompts"):
        client.chat.completions.create(
            model=MODERATOR, messages=[{"role": "user", "content": "hello"}]
        )
    with pytest.raises(BadRequestError, match="judges no texts"):
        client.moderations.create(model=MODEL, input="a duel")


def test_moderations_are_lines_of_a_batch_and_events_too(stack: LocalStack, client: OpenAI) -> None:
    line = {"url": "/v1/moderations", "body": {"model": MODERATOR, "input": "a duel"}}
    text = json.dumps({"custom_id": "a", "method": "POST", **line})
    upload = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=upload.id, endpoint="/v1/moderations", completion_window="24h"
    )
    stack.until(lambda: client.batches.retrieve(batch.id).output_file_id is not None)
    ended = client.batches.retrieve(batch.id)
    answer = json.loads(client.files.content(str(ended.output_file_id)).text)
    assert answer["response"]["body"]["results"][0]["categories"]["violence"]

    event = {
        **{"specversion": "1.0", "id": "moderation-1", "source": "/a/producer"},
        **{"type": "dev.torpor.inference.requested.v1", "data": line},
    }
    sent = httpx.post(
        f"{stack.addresses['api']}/v1/events",
        content=json.dumps(event),
        headers={"content-type": "application/cloudevents+json"},
    )
    assert sent.status_code == 202, sent.text
    ended_job = stack.job(sent.json()["id"], wait_s=30)
    assert ended_job["result"]["results"][0]["flagged"]
