"""A capability that the model lacks is refused by every way in, before anything is queued."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.settings import ApiSettings
from eventing.job.capability import Capability
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker

TALK = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TOOL = {"name": "look", "parameters": {"type": "object"}}


@pytest.fixture
async def text_rig(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> AsyncIterator[Rig]:
    """Its one model makes text."""
    card = ModelCard(name="m", context_tokens=64, capabilities=frozenset({Capability.GENERATE}))
    settings = api_settings.model_copy(update={"models": (card,)})
    async with rig_over(settings, store, broker) as rig:
        yield rig


@pytest.mark.parametrize(
    ("path", "call", "status", "param"),
    [
        pytest.param(
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": [IMAGE]}]},
            400,
            "messages[0].content[0].type",
            id="an image",
        ),
        pytest.param(
            "/v1/chat/completions/batch",
            {"model": "m", "messages": [TALK, [{"role": "user", "content": [IMAGE]}]]},
            400,
            "messages[1][0].content[0].type",
            id="an image in one of two conversations",
        ),
        pytest.param(
            "/v1/chat/completions",
            {"model": "m", "messages": TALK, "tools": [{"type": "function", "function": TOOL}]},
            400,
            "tools",
            id="tools",
        ),
        pytest.param("/v1/embeddings", {"model": "m", "input": "a"}, 400, "model", id="embeddings"),
        pytest.param(
            "/v1/responses",
            {
                "model": "m",
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "data:image/png;base64,"}],
                    }
                ],
            },
            400,
            "input",
            id="an image in a response",
        ),
        pytest.param(
            "/v1/responses",
            {"model": "m", "input": "a", "tools": [{"type": "function", **TOOL}]},
            400,
            "tools",
            id="a response's tools",
        ),
        pytest.param(
            "/v1/jobs",
            {"url": "/v1/embeddings", "body": {"model": "m", "input": "a"}},
            422,
            "body.model",
            id="a job",
        ),
    ],
)
async def test_a_capability_that_the_model_lacks_is_refused_at_submit(
    text_rig: Rig, path: str, call: dict[str, Any], status: int, param: str
) -> None:
    answer = await text_rig.client.post(path, json=call)

    refusal = answer.json()
    told = refusal["error"]["param"] if "error" in refusal else refusal["field"]
    assert (answer.status_code, told) == (status, param)
    assert text_rig.broker.events == []
    assert (await text_rig.client.get("/v1/jobs")).json()["data"] == []
