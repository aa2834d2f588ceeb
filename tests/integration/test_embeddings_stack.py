"""Embeddings from zero in a whole stack: a model that the steps serve alone, OpenAI's unmodified client."""

from collections.abc import Iterator

import numpy as np
import pytest
from openai import BadRequestError, OpenAI, UnprocessableEntityError

from tests.integration.stack import MODEL, LocalStack, openai_client, planned_stack

EMBEDDER = "all-MiniLM-L6-v2"
PIPELINES = f"{EMBEDDER}:\n  steps: [embed]\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("embeddings")
    with planned_stack(folder, PIPELINES) as made:
        yield made


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


def test_embeddings_come_from_zero_and_no_predictor_starts(
    stack: LocalStack, client: OpenAI
) -> None:
    said = client.embeddings.create(
        model=EMBEDDER, input=["reset my password", "I forgot my password", "cheap flights"]
    )

    vectors = np.array([each.embedding for each in said.data])
    assert vectors.shape == (3, 384)
    assert [each.index for each in said.data] == [0, 1, 2]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    assert (said.model, said.usage.prompt_tokens) == (EMBEDDER, 15)
    assert stack.status()["replicas"]["list"] == []


def test_floats_and_base64_are_the_same_vector(client: OpenAI) -> None:
    packed = client.embeddings.create(model=EMBEDDER, input="hello")  # the client asks for base64
    plain = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="float")

    assert np.allclose(packed.data[0].embedding, plain.data[0].embedding, atol=1e-6)


def test_the_model_is_listed_for_embeddings_only(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list().data}

    assert set(listed) == {MODEL, EMBEDDER}
    assert listed[EMBEDDER].model_dump()["capabilities"] == ["embed"]
    with pytest.raises((BadRequestError, UnprocessableEntityError), match="embeddings"):
        client.chat.completions.create(
            model=EMBEDDER, messages=[{"role": "user", "content": "hello"}]
        )


def test_a_text_that_the_model_would_not_read_to_its_end_is_refused(client: OpenAI) -> None:
    long = "word " * 300
    with pytest.raises((BadRequestError, UnprocessableEntityError), match="input 1 has 302 tokens"):
        client.embeddings.create(model=EMBEDDER, input=["short", long])

    cut = client.embeddings.create(
        model=EMBEDDER, input=long, extra_body={"truncate_prompt_tokens": -1}
    )
    assert cut.usage.prompt_tokens == 256


def test_fewer_dimensions_and_token_ids_are_refused_by_name(client: OpenAI) -> None:
    with pytest.raises((BadRequestError, UnprocessableEntityError), match="384 dimensions"):
        client.embeddings.create(model=EMBEDDER, input="a", dimensions=100)
    with pytest.raises((BadRequestError, UnprocessableEntityError), match="token ids"):
        client.embeddings.create(model=EMBEDDER, input=[1, 2, 3])
