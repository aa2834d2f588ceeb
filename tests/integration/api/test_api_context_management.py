"""A history that is too long: compacted from a threshold on, cut at its beginning, or refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from api.settings import ApiSettings
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine

FILLER = "Clouds are light and they drift, and people like to look at them. " * 8
COMPACT: Any = [{"type": "compaction", "compact_threshold": 1000}]


@pytest.fixture
def api_settings(api_settings: ApiSettings) -> ApiSettings:
    models = (api_settings.models[0].model_copy(update={"context_tokens": 4000}),)
    return api_settings.model_copy(update={"models": models})


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def talk(turns: int, first: str = "The port is 8443.") -> list[Any]:
    """What was said, some 360 tokens a turn by the estimate of three bytes each."""
    said = [first, *[FILLER] * (2 * turns - 1)]
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]


def prompt(engine: FakeEngine) -> list[Any]:
    return list(engine.played[-1].request.body["messages"])


async def test_a_long_history_is_compacted_and_its_facts_stand_word_for_word(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    first = await client.responses.create(model="m", input=talk(5))

    second = await client.responses.create(
        model="m", input="And now?", previous_response_id=first.id, context_management=COMPACT
    )

    (compacted, now) = prompt(engine)
    assert (compacted["role"], now["content"]) == ("assistant", "And now?")
    assert "- user said: The port is 8443." in compacted["content"]
    assert len(compacted["content"]) < 6000
    assert [item.type for item in second.output] == ["compaction", "message"]
    assert second.output[0].id == second.id.replace("resp_", "cmp_")
    assert (await client.responses.retrieve(second.id)).output == second.output


async def test_a_stream_tells_the_same(client: AsyncOpenAI, engine: FakeEngine) -> None:
    first = await client.responses.create(model="m", input=talk(5))

    stream: Any = await client.responses.create(
        model="m",
        input="And now?",
        previous_response_id=first.id,
        context_management=COMPACT,
        stream=True,
    )
    events = [event async for event in stream]

    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [e.output_index for e in events if e.type == "response.output_item.added"] == [0, 1]
    assert [item.type for item in done] == ["compaction", "message"]
    assert events[-1].response.output == done
    stored = await client.responses.retrieve(events[-1].response.id)
    assert stored.output == done


async def test_a_short_history_is_left_as_it_is(client: AsyncOpenAI, engine: FakeEngine) -> None:
    first = await client.responses.create(model="m", input=talk(1))

    second = await client.responses.create(
        model="m", input="And now?", previous_response_id=first.id, context_management=COMPACT
    )

    assert len(prompt(engine)) == 4
    assert [item.type for item in second.output] == ["message"]


async def test_a_conversation_goes_on_from_its_compaction_and_carries_its_facts(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await client.conversations.create(items=talk(5))

    async def said(text: str) -> Any:
        return await client.responses.create(
            model="m", input=text, conversation=made.id, context_management=COMPACT
        )

    await said("one")
    await said("two")
    after_one = [message["content"] for message in prompt(engine)]
    await client.conversations.items.create(made.id, items=talk(4, "My name is Ann."))
    await said("three")

    assert after_one[1:] == ["one", engine.answer, "two"]
    text = prompt(engine)[0]["content"]
    assert "- user said: The port is 8443." in text
    assert "- user said: My name is Ann." in text
    items = [i async for i in client.conversations.items.list(made.id, order="asc", limit=100)]
    assert [i.type for i in items].count("compaction") == 2
    assert len({i.id for i in items}) == len(items)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([{"type": "compaction", "compact_threshold": 999}], "[0].compact_threshold"),
        ([{"type": "other", "compact_threshold": 1000}], "[0].type"),
        ([{"type": "compaction"}], "[0].compact_threshold"),
        ("auto", ""),
    ],
    ids=["threshold", "type", "none", "no list"],
)
async def test_a_wrong_management_is_refused_by_name(rig: Rig, given: Any, param: str) -> None:
    body = {"model": "m", "input": "x", "context_management": given}

    answer = await rig.client.post("/v1/responses", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"context_management{param}"


async def test_truncation_drops_the_oldest_and_keeps_what_is_asked_now(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await client.conversations.create(items=talk(9))
    await client.conversations.items.create(made.id, items=talk(9))

    await client.responses.create(
        model="m",
        input="And now?",
        conversation=made.id,
        truncation="auto",
        instructions="be kind",
        max_output_tokens=500,
    )

    told = prompt(engine)
    assert [told[0]["content"], told[-1]["content"]] == ["be kind", "And now?"]
    assert 10 < len(told) < 30
    items = [i async for i in client.conversations.items.list(made.id, limit=100)]
    assert len(items) == 38


async def test_truncation_never_begins_with_the_output_of_a_function(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": "x" * 9000}
    made = await client.conversations.create(items=[*talk(4), call, output, *talk(2)])

    await client.responses.create(
        model="m", input="And now?", conversation=made.id, truncation="auto"
    )

    roles = [message["role"] for message in prompt(engine)]
    assert roles[0] in ("user", "assistant")
    called = [m for m in prompt(engine) if m.get("tool_calls")]
    assert ("tool" in roles) == bool(called)


async def test_a_compaction_keeps_what_answers_said_of_values(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.answer = "They talked."
    said: Any = [
        {"role": "user", "content": "Which port?"},
        {"role": "assistant", "content": "It is 8443."},
    ]

    shorter = await client.responses.compact(model="m", input=said)

    items: Any = [item.model_dump(exclude_unset=True, warnings=False) for item in shorter.output]
    await client.responses.create(model="m", input=[*items, {"role": "user", "content": "So?"}])
    assert "- assistant said: It is 8443." in prompt(engine)[1]["content"]
