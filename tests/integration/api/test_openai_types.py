"""Every answer and every stream event is what OpenAI's own types say, by their validation: the SDK itself takes
anything.
"""

from typing import Any

import orjson
import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine

TALK = [{"role": "user", "content": "hi"}]
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"} | {
    "body": {"model": "m", "messages": TALK}
}
CHAT: dict[str, Any] = {"messages": TALK}


@pytest.mark.parametrize(
    ("path", "call", "kind"),
    [
        ("/v1/chat/completions", CHAT, ChatCompletion),
        ("/v1/chat/completions/batch", {"messages": [TALK]}, ChatCompletion),
        ("/v1/completions", {"prompt": "hi"}, Completion),
        ("/v1/embeddings", {"input": "hi"}, CreateEmbeddingResponse),
        ("/v1/responses", {"input": "hi"}, Response),
        ("/v1/responses", {"input": "hi", "background": True}, Response),
        ("/v1/responses", {"input": "hi", "store": False, "temperature": 0.5}, Response),
    ],
)
async def test_an_answer_has_openais_type(
    rig: Rig, engine: FakeEngine, path: str, call: dict[str, Any], kind: Any
) -> None:
    answer = await rig.client.post(path, json={"model": "m"} | call)

    assert answer.status_code == 200, answer.text
    TypeAdapter(kind).validate_json(answer.content)


@pytest.mark.parametrize(
    ("path", "call", "kind"),
    [
        ("/v1/chat/completions", CHAT, ChatCompletionChunk),
        (
            "/v1/chat/completions",
            CHAT | {"stream_options": {"include_usage": True}},
            ChatCompletionChunk,
        ),
        ("/v1/completions", {"prompt": "hi"}, Completion),
        ("/v1/responses", {"input": "hi"}, ResponseStreamEvent),
        ("/v1/responses", {"input": "hi", "background": True}, ResponseStreamEvent),
    ],
)
async def test_every_event_of_a_stream_has_openais_type(
    rig: Rig, engine: FakeEngine, path: str, call: dict[str, Any], kind: Any
) -> None:
    answer = await rig.client.post(path, json={"model": "m", "stream": True} | call)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]

    events = [line for line in lines if line != "[DONE]"]
    assert len(events) > 2
    for event in events:
        if (
            kind is Completion
        ):  # OpenAI's type demands an end of every piece; its own streams say null
            event = orjson.dumps(_with_end(orjson.loads(event))).decode()
        TypeAdapter(kind).validate_json(event)


def _with_end(chunk: dict[str, Any]) -> dict[str, Any]:
    for choice in chunk["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return chunk


async def test_models_files_and_batches_have_openais_types(rig: Rig) -> None:
    models = (await rig.client.get("/v1/models")).json()["data"]
    made = await rig.client.post(
        "/v1/files", files={"file": ("x.jsonl", orjson.dumps(LINE))}, data={"purpose": "batch"}
    )
    batch = await rig.client.post(
        "/v1/batches",
        json={
            "input_file_id": made.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )

    for model in models:
        Model.model_validate(model)
    FileObject.model_validate(made.json())
    Batch.model_validate(batch.json())
