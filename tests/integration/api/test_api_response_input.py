"""The input of a response: counted, made shorter, and checked before anybody is woken."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from api.settings import ApiSettings
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, FakeEngine

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object"}}
HOSTED: list[dict[str, Any]] = [
    {"type": "web_search"},
    {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
    {"type": "local_shell"},
]
TALK = [
    {"type": "message", "role": "user", "content": "We launch on Tuesday."},
    {"type": "message", "role": "assistant", "phase": "final_answer", "content": "Understood."},
]


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_a_conversation_is_made_shorter_and_goes_on(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.answer = "They launch on Tuesday"
    shorter = await client.responses.compact(model="m", input=TALK)  # type: ignore[arg-type]

    assert [item.type for item in shorter.output] == ["message", "compaction"]
    assert shorter.usage.total_tokens == 10
    items = [item.model_dump(exclude_unset=True, warnings=False) for item in shorter.output]
    await client.responses.create(model="m", input=[*items, {"role": "user", "content": "When?"}])  # type: ignore[list-item]
    said = engine.played[-1].request.body["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert "They launch on Tuesday" in said[1]["content"]


async def test_the_answers_so_far_are_part_of_what_is_made_shorter(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    first = await client.responses.create(model="m", input="hi", instructions="be kind")

    await client.responses.compact(model="m", previous_response_id=first.id)

    said = engine.played[-1].request.body["messages"]
    assert [message["content"] for message in said[:2]] == ["hi", engine.answer]


@pytest.mark.parametrize(
    ("call", "param"),
    [
        pytest.param({"input": TALK}, "model", id="no model"),
        pytest.param({"model": "m"}, "input", id="nothing to shorten"),
        pytest.param({"model": "m", "input": TALK, "instructions": 7}, "instructions", id="a type"),
    ],
)
async def test_input_that_cannot_be_compacted_is_refused_by_name(
    rig: Rig, call: dict[str, Any], param: str
) -> None:
    answer = await rig.client.post("/v1/responses/compact", json=call)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_another_tenants_compaction_is_refused(client: AsyncOpenAI) -> None:
    item = {"type": "compaction", "encrypted_content": "gAAAAABn"}

    with pytest.raises(BadRequestError) as refusal:
        await client.responses.create(model="m", input=[item])  # type: ignore[list-item]

    assert refusal.value.param == "input[0].encrypted_content"


async def test_hosted_tools_are_refused_by_name(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await client.responses.create(model="m", input="hi", tools=[FUNCTION, *HOSTED])  # type: ignore[list-item]

    assert refusal.value.param == "tools[1].type"


async def test_a_setting_leaves_them_out(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    settings = api_settings.model_copy(update={"drop_unsupported_tools": True})
    call = {"model": "m", "input": "hi", "background": True, "tools": [*HOSTED, FUNCTION]}
    async with rig_over(settings, store, broker) as rig:
        answer = (await rig.client.post("/v1/responses", json=call)).json()
        job = await store.get(answer["id"].replace("resp_", "job_"))

    assert [tool["name"] for tool in answer["tools"]] == ["look"]
    assert job is not None
    assert [tool["function"]["name"] for tool in job.request.body["tools"]] == ["look"]


async def test_what_is_to_be_included_of_them_is_left_out_too(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    """The AI SDK asks for the sources of a search that it offers."""
    settings = api_settings.model_copy(update={"drop_unsupported_tools": True})
    call = {"model": "m", "input": "hi", "background": True, "tools": HOSTED}
    sources = ["web_search_call.action.sources", "computer_call_output.output.image_url"]
    async with rig_over(settings, store, broker) as rig:
        taken = await rig.client.post("/v1/responses", json=call | {"include": sources})
        refused = await rig.client.post("/v1/responses", json=call | {"include": ["files"]})

    assert taken.status_code == 200, taken.text
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include[0]")


async def test_a_call_with_no_other_tools_has_none(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    settings = api_settings.model_copy(update={"drop_unsupported_tools": True})
    call = {"model": "m", "input": "hi", "background": True, "tools": HOSTED, "tool_choice": "auto"}
    async with rig_over(settings, store, broker) as rig:
        answer = (await rig.client.post("/v1/responses", json=call)).json()
        job = await store.get(answer["id"].replace("resp_", "job_"))

    assert job is not None
    assert job.request.body.keys() & {"tools", "tool_choice"} == set()


async def test_an_output_without_its_function_call_is_refused(client: AsyncOpenAI) -> None:
    output = {"type": "function_call_output", "call_id": "call_7", "output": "7"}

    with pytest.raises(BadRequestError, match="call_7") as refusal:
        await client.responses.create(model="m", input=[output])  # type: ignore[list-item]

    assert refusal.value.param == "input"


async def test_without_a_tokenizer_nothing_is_counted(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await client.responses.input_tokens.count(model="m", input="hi")

    assert refusal.value.param == "model"


@pytest.fixture
def counted_model(tmp_path: Path) -> ModelCard:
    """A token a word, and a template that adds one a message and one at the end."""
    words = {word: number for number, word in enumerate(("[UNK]", "<m>", "<a>"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}<m> {{ m.content }} {% endfor %}<a>"
    (tmp_path / "chat_template.jinja").write_text(template)
    return ModelCard(name="m", context_tokens=64, tokenizer_file=tmp_path / "tokenizer.json")


async def test_input_tokens_are_counted_with_the_models_template_without_a_predictor(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, counted_model: ModelCard
) -> None:
    settings = api_settings.model_copy(update={"models": (counted_model,)})
    async with (
        rig_over(settings, store, broker) as rig,
        AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as client,
    ):
        counted = await client.responses.input_tokens.count(
            model="m", instructions="be kind", input="one two three"
        )

    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 8)
    assert broker.events == []
