"""The image of the CPU predictor, built from its Dockerfile: its size, and that what was left out is not missed.

Only in the long form (`make test-containers`): the build takes minutes and a gigabyte of packages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from tests.containers.image import BASE, Image, built, readable, said, with_weights
from tests.containers.node import Container, Node, podman, store_image
from tests.containers.test_containers import FAST, IS_LONG, WHY_NOT
from tests.manifests.conftest import MANIFESTS, kustomize

pytestmark = [
    pytest.mark.skipif(not IS_LONG, reason="the image is built in the long form only"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(3600),
]
MOST_MB = 1500  # 1,430 when it was built last
URL = "http://127.0.0.1:8080/openai/v1"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"day": {"type": "string", "enum": ["today", "tomorrow"]}},
            "required": ["day"],
            "additionalProperties": False,
        },
    },
}
ANSWER = {
    "type": "object",
    "properties": {"flies": {"type": "boolean"}},
    "required": ["flies"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("predictor-image")
    model = ensure_model(DEFAULT_MODEL, Path(".torpor/models"), print)
    folder.chmod(0o755)
    return with_weights(
        built("predictor-cpu.Dockerfile", folder / "image"), readable(Path(model), folder)
    )


@pytest.fixture
def arguments() -> tuple[str, ...]:
    return ()


@pytest.fixture
def thinker(tmp_path: Path, image: Image, arguments: tuple[str, ...]) -> Iterator[Container]:
    """The predictor's container as its pod has it, with a real model, ready."""
    tmp_path.chmod(0o755)
    node = Node(kustomize(MANIFESTS / "overlays" / "queue-cpu"), tmp_path / "node", FAST)
    with closing(node):
        node.run("StatefulSet", "torpor-redis", "redis", store_image()).until_ready()
        made = node.run("InferenceService", "thinker", "kserve-container", image, *arguments)
        made.until_ready(300)
        yield made


def ask(thinker: Container, path: str, **body: Any) -> dict[str, Any]:
    """A call on the node's network."""
    words = {"model": "thinker", "temperature": 0, **body}
    said = thinker.node.call(lambda: httpx.post(f"{URL}/{path}", json=words, timeout=120))
    assert said.status_code == 200, [said.text, thinker.log()]
    answered: dict[str, Any] = said.json()
    return answered


def bytes_of(name: str) -> int:
    return int(said(*podman(), "image", "inspect", "-f", "{{.Size}}", name))


def test_the_image_is_small_beside_its_base(image: Image) -> None:
    assert (bytes_of(image.root[0]) - bytes_of(BASE)) / 1e6 < MOST_MB


@pytest.mark.parametrize(
    "arguments", [("--enable-auto-tool-choice", "--tool-call-parser", "hermes")]
)
def test_the_engine_chats_enforces_schemas_and_tools_and_gives_logprobs(thinker: Container) -> None:
    user = [{"role": "user", "content": "Does a hummingbird fly? Ask for the weather if need be."}]

    plain = ask(thinker, "chat/completions", messages=user, max_tokens=8, logprobs=True)
    assert plain["choices"][0]["message"]["content"]
    assert plain["choices"][0]["logprobs"]["content"]

    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
    shaped = ask(thinker, "chat/completions", messages=user, max_tokens=40, response_format=form)
    told = json.loads(shaped["choices"][0]["message"]["content"])
    assert isinstance(told["flies"], bool)

    named = {"type": "function", "function": {"name": "weather"}}
    for choice in (named, "required"):
        called = ask(
            thinker,
            "chat/completions",
            messages=user,
            max_tokens=60,
            tools=[WEATHER],
            tool_choice=choice,
        )
        (call,) = called["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"])["day"] in ("today", "tomorrow")

    choices = {"structured_outputs": {"regex": "(yes|no)"}}
    matched = ask(thinker, "completions", prompt="Do birds fly?", max_tokens=8, **choices)
    assert matched["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize("arguments", [("--runner", "pooling", "--convert", "embed")])
def test_the_engine_embeds(thinker: Container) -> None:
    told = ask(thinker, "embeddings", input=["a bird", "a plane"])

    assert [len(each["embedding"]) for each in told["data"]] == [576, 576]
