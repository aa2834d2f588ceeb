"""Conversations and their items, by OpenAI's client."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from redis.asyncio import Redis

from tests.integration.api.conftest import Rig


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def says(text: str, role: str = "user") -> Any:
    return {"type": "message", "role": role, "content": text}


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


async def test_a_conversation_is_made_found_changed_and_deleted(client: AsyncOpenAI) -> None:
    made = await client.conversations.create(metadata={"topic": "birds"})

    found = await client.conversations.retrieve(made.id)
    assert found == made
    assert (made.object, made.metadata) == ("conversation", {"topic": "birds"})
    changed = await client.conversations.update(made.id, metadata={"topic": "sleep"})
    assert changed.metadata == {"topic": "sleep"}
    assert (await client.conversations.retrieve(made.id)) == changed
    gone = await client.conversations.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    with pytest.raises(NotFoundError):
        await client.conversations.retrieve(made.id)


async def test_items_are_listed_in_both_orders_and_by_pages(client: AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[says(str(n)) for n in range(3)])
    added = await client.conversations.items.create(
        made.id, items=[says("3", "assistant"), says("4")]
    )

    oldest_first = [i async for i in client.conversations.items.list(made.id, order="asc", limit=2)]
    newest_first = [i async for i in client.conversations.items.list(made.id, limit=2)]

    assert texts(oldest_first) == ["0", "1", "2", "3", "4"]
    assert newest_first == oldest_first[::-1]
    assert added.data == oldest_first[3:]
    assert (added.first_id, added.last_id, added.has_more) == (
        oldest_first[3].id,
        oldest_first[4].id,
        False,
    )
    part: Any = added.data[0]
    assert (part.status, part.content[0].type) == ("completed", "output_text")


async def test_an_item_is_found_and_deleted_by_its_id(client: AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[says("a"), says("b")])
    first, second = [i async for i in client.conversations.items.list(made.id, order="asc")]

    assert (await client.conversations.items.retrieve(first.id, conversation_id=made.id)) == first
    left = await client.conversations.items.delete(first.id, conversation_id=made.id)

    assert left == made
    assert [i async for i in client.conversations.items.list(made.id)] == [second]
    with pytest.raises(NotFoundError):
        await client.conversations.items.retrieve(first.id, conversation_id=made.id)
    with pytest.raises(NotFoundError):
        await client.conversations.items.delete(first.id, conversation_id=made.id)


async def test_calls_of_tools_and_their_outputs_are_items(client: AsyncOpenAI) -> None:
    asked: list[Any] = [
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
    ]
    made = await client.conversations.create(items=asked)

    items: list[Any] = [i async for i in client.conversations.items.list(made.id, order="asc")]

    assert [(i.type, i.call_id, i.status) for i in items] == [
        ("function_call", "c1", "completed"),
        ("function_call_output", "c1", "completed"),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": [says("x")] * 21}, "items"),
        ({"items": [{"type": "web_search_call"}]}, "items[0].type"),
        ({"items": [says("x"), {"role": "nobody", "content": "x"}]}, "items[1]"),
        ({"metadata": {"torpor.x": "y"}}, "metadata.torpor.x"),
    ],
    ids=["too many", "hosted tool", "role", "metadata"],
)
async def test_what_is_no_item_is_refused_by_name(
    rig: Rig, body: dict[str, Any], field: str
) -> None:
    answer = await rig.client.post("/v1/conversations", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


async def test_after_must_be_an_item_of_the_conversation(client: AsyncOpenAI) -> None:
    made = await client.conversations.create()

    with pytest.raises(BadRequestError):
        await client.conversations.items.list(made.id, after="msg_of_another")


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["kept", "lost"])
async def test_a_repeat_under_one_key_makes_one_conversation_and_adds_items_once(
    rig: Rig, client: AsyncOpenAI, redis: Redis, is_answer_lost: bool
) -> None:
    """Also when the process died before it kept its answer under the key."""
    head = {"idempotency-key": "k"}
    body = {"items": [says("a"), says("b")]}

    async def twice(path: str) -> list[Any]:
        answers = []
        for _ in range(2):
            answers.append((await rig.client.post(path, json=body, headers=head)).json())
            if is_answer_lost:
                await redis.delete(*await redis.keys("torpor:replay:*"))
        return answers

    first, second = await twice("/v1/conversations")
    added, again = await twice(f"/v1/conversations/{first['id']}/items")

    assert first == second
    assert added == again
    found = [i async for i in client.conversations.items.list(first["id"], order="asc")]
    assert texts(found) == ["a", "b", "a", "b"]


async def test_nothing_is_left_of_a_deleted_conversation(client: AsyncOpenAI, redis: Redis) -> None:
    made = await client.conversations.create(items=[says("a")])
    await redis.hset(f"torpor:{{{made.id}}}:vectors", "x", b"v")

    await client.conversations.delete(made.id)

    assert await redis.keys(f"*{made.id}*") == []
